"""Pictures of evaluation sets within the pool: a model that trains on them cannot be evaluated by them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from curate.colours import colour_distance
from curate.embedding import normalise
from curate.fingerprint import fingerprint, pool_digest
from curate.models.clip import to_matrix
from curate.operator import Annotate, Operator, ShardOperator
from curate.operators.clip_embedding import ClipEmbedding
from curate.operators.colour_layout import NUM_BYTES, ColourLayout, mirror
from curate.operators.perceptual_hash import MIN_DETAIL_BITS, MIRROR, PerceptualHash
from curate.store import Pool
from schemas.errors import InputError

# References compared at once: bounds memory for batches of a few hundred rows.
_BLOCK = 16_384
_FAR = 64


@dataclass(frozen=True, kw_only=True)
class Decontaminate(ShardOperator):
    """Whether the picture is in an evaluation set, by perceptual hash and colours, and with a model by embedding as well.

    is_contaminated              near a picture of `against` by either measure
    contamination_hash_distance  bits that differ from the nearest reference of the same colours, mirrored ones included, 0 to
                                 `max_distance`; null where none is that near
    contamination_cosine         the largest cosine with a reference, -1 to 1; null without `model`
    contamination_reference      uid in `against` of the nearest by hash, else by embedding; null where not contaminated

    `against` is a pool of its own: `winnow import FOLDER --pool eval`, then annotate that one with perceptual_hash, colour_layout and,
    where `model` is given, clip_embedding of that model. DataComp (arXiv 2304.14108) removes pairs above a cosine of 0.604169 by the
    descriptor of ISC 2021; for CLIP embeddings near copies begin at about 0.95. `winnow contamination` draws what was found beside its
    reference. 10,000 references cost 20 us per picture by hash, 60 us more by 512 dimensions.
    """

    name = "decontaminate"
    version = 1
    reads = ("image_perceptual_hash", "image_colour_layout", "image_embedding")
    writes = pa.schema([
        ("is_contaminated", pa.bool_()),
        ("contamination_hash_distance", pa.int32()),
        ("contamination_cosine", pa.float32()),
        ("contamination_reference", pa.string()),
    ])

    against: str  # folder or URL of the evaluation sets' pool
    model: str = ""  # of clip_embedding; empty: by hash only
    revision: str = ""
    max_distance: int = 6  # bits of 64 in which copies may differ, 0 to 16
    max_colour_distance: float = 2.5  # mean difference of the colours of copies, 0 to 255
    min_cosine: float = 0.95  # of copies by embedding

    def __post_init__(self) -> None:
        if not 0 <= self.max_distance <= 16:
            raise InputError(f"decontaminate max_distance is {self.max_distance}; it must be 0 to 16")
        if not -1 <= self.min_cosine <= 1:
            raise InputError(f"decontaminate min_cosine is {self.min_cosine}; it must be -1 to 1")
        for name in ("against", "model"):
            folder = getattr(self, name)
            if folder and Path(folder).is_dir():
                object.__setattr__(self, name, str(Path(folder).absolute()))
        if not self.model:
            # Without a model there is no embedding to read.
            object.__setattr__(self, "reads", self.reads[:2])

    def requires(self) -> tuple[Operator, ...]:
        suffix = f"{self.label}_" if self.label else ""
        hashes: tuple[Operator, ...] = (PerceptualHash(), ColourLayout())
        return (*hashes, self._embedding(f"{suffix}clip_embedding" if suffix else "")) if self.model else hashes

    def _embedding(self, label: str = "") -> ClipEmbedding:
        return ClipEmbedding(model=self.model, revision=self.revision, label=label)

    def identity(self) -> dict[str, Any]:
        """Return the thresholds and the references' identity; the embedding's fingerprint, an input, holds the model."""
        pool = Pool(self.against)
        digest = pool_digest({shard: pool.shard_header(shard).shard_digest for shard in pool.shards()})
        named = {name: getattr(self, name) for name in ("max_distance", "max_colour_distance", "min_cosine")}
        return {**named, "against": digest, "by_embedding": bool(self.model)}

    def load(self) -> Annotate:
        needed: list[Operator] = [PerceptualHash(), ColourLayout(), *([self._embedding()] if self.model else [])]
        references = _read_references(self.against, needed)

        def annotate(batch: pa.Table) -> Mapping[str, Sequence[Any]]:
            bits, by_hash = self._find_by_hash(batch, references)
            cosines, by_cosine = self._find_by_cosine(batch, references)
            is_near = bits <= self.max_distance
            is_alike = np.nan_to_num(cosines, nan=-2) >= self.min_cosine
            nearest = np.where(is_near, by_hash, by_cosine)
            return {
                "is_contaminated": pa.array(is_near | is_alike),
                "contamination_hash_distance": pa.array(bits.astype(np.int32), mask=~is_near),
                "contamination_cosine": pa.array(cosines, pa.float32(), from_pandas=True),
                "contamination_reference": pa.array(
                    [
                        references.uids[int(number)] if found else None
                        for number, found in zip(nearest, is_near | is_alike, strict=True)
                    ],
                    pa.string(),
                ),
            }

        return annotate

    def _find_by_hash(self, batch: pa.Table, references: "_References") -> tuple[np.ndarray, np.ndarray]:
        """Return the bits to the nearest reference of the same colours (64: none near), and its number."""
        hashes = batch.column("image_perceptual_hash").to_numpy().astype(np.uint64)
        colours = _to_layouts(batch.column("image_colour_layout"))
        best, numbers = np.full(len(hashes), _FAR), np.zeros(len(hashes), np.int64)
        has_detail = np.bitwise_count(hashes) >= MIN_DETAIL_BITS
        for turned, layouts in ((hashes, colours), (hashes ^ MIRROR, mirror(colours))):
            for start in range(0, len(references.hashes), _BLOCK):
                distances = np.bitwise_count(turned[:, None] ^ references.hashes[start : start + _BLOCK])
                rows, columns = np.nonzero((distances <= self.max_distance) & has_detail[:, None])
                gaps = distances[rows, columns]
                columns = columns + start
                is_copy = colour_distance(layouts[rows], references.layouts[columns]) <= self.max_colour_distance
                rows, columns, gaps = rows[is_copy], columns[is_copy], gaps[is_copy]
                order = np.lexsort((columns, gaps, rows))
                first = np.flatnonzero(np.diff(rows[order], prepend=-1))
                rows, columns, gaps = (values[order][first] for values in (rows, columns, gaps))
                is_better = gaps < best[rows]
                best[rows[is_better]] = gaps[is_better]
                numbers[rows[is_better]] = columns[is_better]
        return best, numbers

    def _find_by_cosine(self, batch: pa.Table, references: "_References") -> tuple[np.ndarray, np.ndarray]:
        """Return the largest cosine with a reference (NaN without a model) and its number."""
        best, numbers = np.full(batch.num_rows, np.nan, np.float32), np.zeros(batch.num_rows, np.int64)
        if not self.model or not batch.num_rows:
            return best, numbers
        vectors = normalise(to_matrix(batch.column("image_embedding")))
        for start in range(0, len(references.vectors), _BLOCK):
            cosines = vectors @ references.vectors[start : start + _BLOCK].T
            columns = cosines.argmax(axis=1)
            found = cosines[np.arange(len(columns)), columns]
            is_better = ~(found <= best)
            best[is_better], numbers[is_better] = found[is_better], columns[is_better] + start
        # A reference without a hash has a place in neither list of its own.
        return best, references.with_vector[numbers] if len(references.with_vector) else numbers


@dataclass(frozen=True, eq=False)
class _References:
    """The pictures of evaluation sets; `hashes` and `layouts` of all, `vectors` of those at `with_vector`."""

    uids: list[str]
    hashes: np.ndarray  # uint64
    layouts: np.ndarray  # uint8, pictures x 128
    vectors: np.ndarray  # float32 unit rows
    with_vector: np.ndarray


def _read_references(against: str, operators: Sequence[Operator]) -> _References:
    """Read the columns of `operators` from a pool; raises InputError where they are not there yet."""
    from curate.catalog import Catalog

    pool = Pool(against)
    by_fingerprint = {target.fingerprint: label for label, target in pool.labels().items()}
    columns = []
    for operator in operators:
        label = by_fingerprint.get(fingerprint(operator, {}))
        if label is None:
            described = (
                f"{operator.name}:model={operator.model}" if isinstance(operator, ClipEmbedding) else operator.name
            )
            raise InputError(
                f"the references {against!r} lack {operator.name} as the pool has it; run "
                f"`winnow annotate --pool {against} {described}`"
            )
        columns.append(f"{label}.{operator.writes.names[0]}")
    with Catalog(pool) as catalog:
        catalog.require_complete([column.split(".")[0] for column in columns])
        hash_column, layout_column, *others = columns
        vector = others[0] if others else "NULL"
        rows = catalog.sql(
            f"SELECT uid, {hash_column} AS hash, {layout_column} AS layout, {vector} AS vector FROM pool "
            f"WHERE {hash_column} IS NOT NULL ORDER BY uid"
        ).to_arrow_table()
    if not rows.num_rows:
        raise InputError(f"the references {against!r} hold no readable picture")
    has_vector = rows.column("vector").is_valid().to_numpy()
    found = rows.column("vector").filter(pa.array(has_vector))
    return _References(
        uids=rows.column("uid").to_pylist(),
        hashes=rows.column("hash").to_numpy().astype(np.uint64),
        layouts=_to_layouts(rows.column("layout")),
        vectors=normalise(to_matrix(found)) if len(found) else np.empty((0, 0), np.float32),
        with_vector=np.flatnonzero(has_vector),
    )


def _to_layouts(column: pa.ChunkedArray) -> np.ndarray:
    return np.frombuffer(b"".join(column.to_pylist()), np.uint8).reshape(-1, NUM_BYTES)
