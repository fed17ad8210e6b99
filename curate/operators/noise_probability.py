"""Which pairs a model could not learn: the probability that picture and caption do not belong together."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from curate.fingerprint import file_identity
from curate.mixture import Mixture, fit_mixture
from curate.operator import PoolOperator
from curate.pool_rows import missing_errors, stream_query
from schemas.errors import InputError
from schemas.sample import STATUS_SUCCESS
from schemas.sample_loss import find_sample_losses, read_sample_losses

if TYPE_CHECKING:
    from duckdb import DuckDBPyRelation

    from curate.pool_work import PoolWork

# The fit counts losses in so many bins between the smallest and the largest: far finer than any variance it may find.
_NUM_BINS = 1 << 16


@dataclass(frozen=True, kw_only=True)
class NoiseProbability(PoolOperator):
    """The probability that a pair is noise, from a trained model's loss on it (NLIP, arXiv 2212.07086; NEVLP).

    sample_loss         mean contrastive loss of the pair over its draws, 0 and up
    noise_probability   0 to 1: posterior of the component with the higher mean in a mixture of two normal distributions over all losses;
                        a higher loss never has a lower probability

    `losses` is the folder of a run of `winnow train` that recorded its losses by sample, or its sample_losses.parquet. Sound pairs are
    learnt first, so take losses from early in training, before noise is learnt by heart. A row that was never drawn, or fewer than
    `min_draws` times, is null. Losses are scaled to 0 to 1 before the fit, as DivideMix does (arXiv 2002.07394), whose least variance is
    taken over too. About 5 s per million rows.
    """

    name = "noise_probability"
    version = 1
    reads = ("status", "error_message")
    writes = pa.schema([("sample_loss", pa.float32()), ("noise_probability", pa.float64())])

    losses: str  # folder of a run, or its sample_losses.parquet
    min_draws: int = 1  # draws from which on a loss counts
    min_variance: float = 5e-4  # of a component, of losses scaled to 0 to 1

    def __post_init__(self) -> None:
        if self.min_draws < 1 or not self.min_variance > 0:
            raise InputError("noise_probability: min_draws must be at least 1, min_variance above 0")
        object.__setattr__(self, "losses", str(Path(self.losses).absolute()))

    def identity(self) -> dict[str, Any]:
        """Return the parameters, the digest of the losses in place of their path."""
        return {**super().identity(), "losses": file_identity(str(find_sample_losses(self.losses)))}

    def annotate(self, pool: "DuckDBPyRelation", work: "PoolWork") -> Iterator[pa.Table]:  # noqa: ARG002 DuckDB joins, and spills
        path = find_sample_losses(self.losses)
        lowest, highest = self._range(path)
        mixture = self._fit(path, lowest, highest) if lowest < np.inf else None
        source = "read_parquet('" + str(path).replace("'", "''") + "')"
        drawn = f"SELECT uid, loss FROM {source} WHERE num_draws >= {self.min_draws}"
        _check_unique(pool, source, path)
        query = (
            "SELECT everything.uid, status, error_message, "
            f"CASE WHEN status = '{STATUS_SUCCESS}' THEN loss END AS loss "
            f"FROM everything LEFT JOIN ({drawn}) AS drawn ON everything.uid = drawn.uid ORDER BY shard, row"
        )
        for batch in stream_query(pool, query):
            losses = batch.column("loss")
            is_known = losses.is_valid().to_numpy(zero_copy_only=False)
            values = losses.fill_null(0).to_numpy(zero_copy_only=False).astype(np.float64)
            scaled = (values - lowest) / (highest - lowest) if mixture else values
            probability = mixture.upper_probability(scaled) if mixture else values
            has_failed = np.array([status != STATUS_SUCCESS for status in batch.column("status").to_pylist()], bool)
            yield pa.table({
                "uid": batch.column("uid"),
                "sample_loss": losses.cast(pa.float32()),
                "noise_probability": pa.array(probability, mask=~is_known),
                "error": missing_errors(batch, has_failed, "loss"),
            })

    def _range(self, path: Path) -> tuple[float, float]:
        """Return the smallest and the largest loss that counts; infinite and the wrong way round where none does."""
        lowest, highest = np.inf, -np.inf
        for losses in self._read(path):
            lowest, highest = min(lowest, losses.min(initial=np.inf)), max(highest, losses.max(initial=-np.inf))
        if lowest == highest:
            raise InputError(
                f"every loss in {path} is {lowest:g}: there is nothing to tell pairs apart by; train longer"
            )
        return float(lowest), float(highest)

    def _fit(self, path: Path, lowest: float, highest: float) -> Mixture:
        counts = np.zeros(_NUM_BINS, np.int64)
        for losses in self._read(path):
            places = ((losses - lowest) / (highest - lowest) * _NUM_BINS).astype(np.int64)
            counts += np.bincount(np.minimum(places, _NUM_BINS - 1), minlength=_NUM_BINS)
        filled = np.flatnonzero(counts)
        return fit_mixture((filled + 0.5) / _NUM_BINS, counts[filled], self.min_variance)

    def _read(self, path: Path) -> Iterator[np.ndarray]:
        for table in read_sample_losses(path):
            draws = table.column("num_draws").to_numpy()
            yield table.column("loss").to_numpy()[draws >= self.min_draws].astype(np.float64)


def _check_unique(pool: "DuckDBPyRelation", source: str, path: Path) -> None:
    twice = f"SELECT uid FROM {source} GROUP BY uid HAVING count(*) > 1 ORDER BY uid LIMIT 1"
    for batch in stream_query(pool, twice):
        for uid in batch.column(0).to_pylist():
            raise InputError(f"{path} holds uid {uid} twice; a run writes each sample once, with its mean loss")
