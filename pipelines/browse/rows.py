"""The texts of every row by position: on disk as plain Arrow, mapped into memory, so that any row of millions is at hand at once.

A pool's Parquet files give a row only with the ten thousand around it. Here a copy of the few columns that a grid shows lies in a temporary
folder; what is never looked at is never loaded.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.catalog import SAMPLES, Catalog
from curate.expression import quote_name
from curate.models.generation import provenance_fields
from curate.store import ShardHeader

# Sample columns that a grid shows.
SHOWN = ("uid", "key", "url", "alt_text", "status", "error_message", "width", "height")
_BATCH_ROWS = 50_000
# A text that an operator made is told by its name, or by columns beside it that say how it was made.
_CAPTION = re.compile(r"(^|_)((re)?captions?|rewrites?)$")
_PROVENANCE = tuple(field.name for field in provenance_fields(""))


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a row lies."""

    header: ShardHeader
    shard_position: int  # of its shard among the shards
    row: int


class Rows:
    """The rows of a pool, by their position in it from 0."""

    def __init__(self, catalog: Catalog, folder: str) -> None:
        """Copy the columns out of the pool into a file in `folder`: about a second per million rows."""
        self.shards = tuple(catalog.shards)
        self._starts = np.cumsum([0, *(header.num_rows for header in self.shards)])
        self.captions = tuple(find_captions(catalog))
        self.table = _map(catalog, self.captions, folder)
        self._chunk_starts = np.cumsum([0, *(len(chunk) for chunk in self.table["uid"].chunks)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def place(self, position: int) -> Place:
        """Return where a row lies."""
        shard = int(np.searchsorted(self._starts, position, side="right")) - 1
        return Place(header=self.shards[shard], shard_position=shard, row=position - int(self._starts[shard]))

    def position(self, shard: int, row: int) -> int | None:
        """Return the position of a row of a shard, or None where there is no such row."""
        for number, header in enumerate(self.shards):
            if header.shard == shard:
                return int(self._starts[number]) + row if 0 <= row < header.num_rows else None
        return None

    def take(self, positions: Sequence[int]) -> list[dict[str, Any]]:
        """Return rows as values by column name; captions of operators by their number, as in `captions`."""
        return [self._row(position) for position in positions]

    def value(self, column: str, position: int) -> Any:
        """Return one value."""
        chunk = int(np.searchsorted(self._chunk_starts, position, side="right")) - 1
        return self.table[column].chunk(chunk)[position - int(self._chunk_starts[chunk])].as_py()

    def find(self, uids: Sequence[str]) -> dict[str, int]:
        """Return the positions of samples by uid; 20 ms per million rows. Unknown uids are left out."""
        wanted = pa.array(list(uids), pa.string())
        found = pc.index_in(self.table["uid"], value_set=wanted)
        (positions,) = np.nonzero(pc.is_valid(found).to_numpy())
        places = found.take(pa.array(positions)).to_pylist() if len(positions) else []
        return {wanted[place].as_py(): int(position) for place, position in zip(places, positions, strict=True)}

    def _row(self, position: int) -> dict[str, Any]:
        chunk = int(np.searchsorted(self._chunk_starts, position, side="right")) - 1
        row = position - int(self._chunk_starts[chunk])
        return {name: self.table[name].chunk(chunk)[row].as_py() for name in self.table.column_names}


def find_captions(catalog: Catalog) -> list[str]:
    """Return `label.column` of every caption that an operator made."""
    found = []
    for label, columns in catalog.label_columns.items():
        for column in columns:
            is_made = _CAPTION.search(column) or any(f"{column}{ending}" in columns for ending in _PROVENANCE)
            if is_made and catalog.column_type(label, column) in ("VARCHAR", "VARCHAR[]"):
                found.append(f"{label}.{column}")
    return found


def _map(catalog: Catalog, captions: Sequence[str], folder: str) -> pa.Table:
    """Write the columns to a file and return it mapped."""
    columns = [f"{SAMPLES}.{quote_name(name)}" for name in SHOWN if name in catalog.sample_columns]
    for number, caption in enumerate(captions):
        label, _, column = caption.partition(".")
        columns.append(f"{quote_name(label)}.{quote_name(column)} AS caption_{number}")
    labels = list(dict.fromkeys(caption.partition(".")[0] for caption in captions))
    path = f"{folder}/rows.arrow"
    with catalog.translate():
        relation = catalog.connection.sql(f"SELECT {', '.join(columns)} FROM {catalog.source(labels)}")
        reader = relation.to_arrow_reader(_BATCH_ROWS)
        with pa.OSFile(path, "wb") as file, pa.ipc.new_file(file, reader.schema) as writer:
            for batch in reader:
                writer.write_batch(batch)
    return pa.ipc.open_file(pa.memory_map(path)).read_all()


def texts_of(row: Mapping[str, Any], captions: Sequence[str]) -> dict[str, Any]:
    """Return the captions of a taken row by `label.column`, those that are there."""
    found = {caption: row.get(f"caption_{number}") for number, caption in enumerate(captions)}
    return {caption: text for caption, text in found.items() if text}
