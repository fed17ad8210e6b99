"""The mix of sources: target shares, rows that meet them, weights that meet them, and how it came out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from curate.selection import Mix
from schemas.errors import InputError

# Rounding of shares must not cost a row.
_TOLERANCE = 1e-9
_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class MixRow:
    """A source: the share it was to have, and the shares it has of the rows kept and of the draws, which follow the weights."""

    source: str
    target_share: float
    num_rows: int
    row_share: float
    draw_share: float


def target_shares(mix: Mix, counts: Mapping[str, int]) -> dict[str, float]:
    """Return the shares of the sources, which add up to 1; `counts` are the rows left of each. Raises InputError where a source has none."""
    if mix.temperature is not None:
        asked = {source: float(count) ** (1 / mix.temperature) for source, count in counts.items()}
    else:
        absent = [source for source in mix.shares if source not in counts]
        if absent:
            largest = sorted(counts, key=lambda source: (-counts[source], source))[:_SHOWN]
            raise InputError(
                f"mix gives a share to {', '.join(map(repr, absent))}, of which no row is left; "
                f"{mix.by} has {', '.join(map(repr, largest)) or 'no values'}"
            )
        asked = dict(mix.shares)
    total = sum(asked.values())
    return {source: share / total for source, share in asked.items()}


def share_out(shares: Mapping[str, float], counts: Mapping[str, int], num_samples: int | None) -> dict[str, int]:
    """Return how many rows of each source stay: `num_samples` in all, or as many as there can be, to the nearest row of the shares."""
    scarcest = min(shares, key=lambda source: counts[source] / shares[source])
    possible = int(counts[scarcest] / shares[scarcest] + _TOLERANCE)
    total = possible if num_samples is None else num_samples
    if total > possible:
        raise InputError(
            f"mix cannot give {total:,} rows: of {scarcest!r}, with a share of {shares[scarcest]:.3g}, {counts[scarcest]:,} are left, which "
            f"allows {possible:,}; lower num_samples or that share"
        )
    exact = {source: total * share for source, share in shares.items()}
    rows = {source: int(value + _TOLERANCE) for source, value in exact.items()}
    # The rows that rounding left over go to those who lost the most by it.
    losers = sorted(exact, key=lambda source: (rows[source] - exact[source], source))
    for source in losers[: total - sum(rows.values())]:
        rows[source] += 1
    return rows


def realise(
    mix: Mix,
    shares: Mapping[str, float],
    names: Sequence[str],
    codes: npt.NDArray[np.integer],
    weights: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.float64], tuple[MixRow, ...]]:
    """Return the weights of the rows kept, scaled to the shares where the mix is by weight, and how each source came out.

    `codes` are the rows' sources, numbers of `names`. The sum of all weights stays, and so do ratios within a source.
    """
    num_rows = np.bincount(codes, minlength=len(names))
    sums = np.bincount(codes, weights, minlength=len(names))
    if mix.how == "weights" and len(codes):
        lost = [name for name, total in zip(names, sums.tolist(), strict=True) if not total]
        if lost:
            raise InputError(
                f"every row of {lost[0]!r} has weight 0, so no mix can draw it; change the weight or the mix"
            )
        present = np.array([shares[name] for name in names])
        # A later limit may have left a source without rows.
        factors = present / present.sum() * sums.sum() / sums
        weights = weights * factors[codes]
        sums = sums * factors
    found = {name: number for number, name in enumerate(names)}
    rows = []
    for source in sorted(shares, key=lambda source: (-shares[source], source)):
        number = found.get(source)
        count = 0 if number is None else int(num_rows[number])
        drawn = 0.0 if number is None else float(sums[number] / sums.sum())
        row = MixRow(
            source=source,
            target_share=shares[source],
            num_rows=count,
            row_share=count / max(len(codes), 1),
            draw_share=drawn,
        )
        rows.append(row)
    return weights, tuple(rows)
