"""What captions name, as tags of a vocabulary: nouns, their attributes, and both together."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from curate.fingerprint import file_identity
from curate.operator import Operator, PoolOperator
from curate.operators.caption_complexity import CaptionComplexity
from curate.pool_rows import EVERYTHING, missing_errors, stream_query
from schemas.errors import InputError
from schemas.sample import STATUS_SUCCESS

if TYPE_CHECKING:
    from duckdb import DuckDBPyRelation

    from curate.pool_work import PoolWork

# The lines of a parse that are objects ("bird: small, brown"), not actions ("chase(cat, bird)"), of rows with a picture.
_OBJECTS = (
    f"CASE WHEN status = '{STATUS_SUCCESS}' THEN list_filter(caption_parse, lambda line: NOT ends_with(line, ')')) END"
)
_NOUN = "split_part(line, ': ', 1)"
# What says whose it is names nothing that can be seen.
_ATTRIBUTES = (
    "list_filter(string_split(split_part(line, ': ', 2), ', '), "
    "lambda word: word NOT IN ('', 'my', 'your', 'his', 'her', 'its', 'our', 'their'))"
)
_TAGS = {
    "nouns": f"list_distinct(list_transform(objects, lambda line: {_NOUN}))",
    "phrases": f"list_distinct(flatten(list_transform(objects, lambda line: list_transform({_ATTRIBUTES}, "
    f"lambda attribute: attribute || ' ' || {_NOUN}))))",
    "adjectives": f"list_distinct(flatten(list_transform(objects, lambda line: {_ATTRIBUTES})))",
}


@dataclass(frozen=True, kw_only=True)
class CaptionTags(PoolOperator):
    """The tags of a vocabulary that a caption names, to be classified by (CatLIP, arXiv 2404.15653; TagAlign, arXiv 2312.14149).

    caption_tag_nouns       objects of the parse: cat, sofa for "black cat on a sofa"
    caption_tag_phrases     an attribute with its object: black cat
    caption_tag_adjectives  attributes: black
    caption_tag_ids         numbers in the vocabulary of all three, rising: the ones of a multi-hot vector

    All in base form, sorted, each once; "his" and its like are left out. The vocabulary is what at least `min_count` rows with a picture name, the most frequent
    `max_tags` of it, numbered from the most frequent on (0); or the lines of the file `vocabulary`, numbered from the first. To see it:
    `SELECT unnest(caption_tag_nouns) AS tag, count(*) FROM pool GROUP BY tag ORDER BY 2 DESC`. Reads `caption_parse` of
    caption_complexity. About 5 us per caption; the count spills to disk where memory does not suffice.
    """

    name = "caption_tags"
    version = 2
    reads = ("caption_parse", "status", "error_message")
    writes = pa.schema([
        ("caption_tag_nouns", pa.list_(pa.string())),
        ("caption_tag_phrases", pa.list_(pa.string())),
        ("caption_tag_adjectives", pa.list_(pa.string())),
        ("caption_tag_ids", pa.list_(pa.int32())),
    ])

    min_count: int = 10  # rows that must name a tag; CatLIP takes 500 of a billion
    max_tags: int = 100_000  # size of the vocabulary
    vocabulary: str = ""  # file of tags, one per line

    def __post_init__(self) -> None:
        if self.min_count < 1 or self.max_tags < 1:
            raise InputError("caption_tags: min_count and max_tags must be 1 or more")
        if self.vocabulary:
            object.__setattr__(self, "vocabulary", str(Path(self.vocabulary).absolute()))

    def requires(self) -> tuple[Operator, ...]:
        return () if "caption_parse" in self.bind else (CaptionComplexity(),)

    def identity(self) -> dict[str, Any]:
        """Return the vocabulary's digest, or how it is counted."""
        if self.vocabulary:
            return {"vocabulary": file_identity(self.vocabulary)}
        return {"min_count": self.min_count, "max_tags": self.max_tags}

    def annotate(self, pool: "DuckDBPyRelation", work: "PoolWork") -> Iterator[pa.Table]:  # noqa: ARG002 SQL counts
        numbers = _read_vocabulary(self.vocabulary) if self.vocabulary else self._count(pool)
        columns = ", ".join(f"{sql} AS {name}" for name, sql in _TAGS.items())
        query = f"SELECT *, {_OBJECTS} AS objects FROM {EVERYTHING}"
        for batch in stream_query(
            pool, f"SELECT uid, status, error_message, {columns} FROM ({query}) ORDER BY shard, row"
        ):
            yield self._write(batch, numbers)

    def _count(self, pool: "DuckDBPyRelation") -> dict[str, int]:
        """Return the pool's vocabulary with its numbers."""
        every = " || ".join(f"coalesce({sql}, [])" for sql in _TAGS.values())
        query = (
            f"SELECT tag FROM (SELECT unnest(list_distinct({every})) AS tag FROM (SELECT {_OBJECTS} AS objects FROM {EVERYTHING})) "
            f"GROUP BY tag HAVING count(*) >= {self.min_count} ORDER BY count(*) DESC, tag LIMIT {self.max_tags}"
        )
        tags = [tag for batch in stream_query(pool, query) for tag in batch.column(0).to_pylist()]
        return {tag: number for number, tag in enumerate(tags)}

    def _write(self, batch: pa.RecordBatch, numbers: Mapping[str, int]) -> pa.Table:
        is_lost = batch.column("nouns").is_null().to_numpy(zero_copy_only=False)
        found: dict[str, list[list[str] | None]] = {
            name: [
                None if tags is None else sorted(tag for tag in tags if tag in numbers) for tags in column.to_pylist()
            ]
            for name, column in ((name, batch.column(name)) for name in _TAGS)
        }
        ids = [
            None if tags[0] is None else sorted({numbers[tag] for some in tags for tag in some or ()})
            for tags in zip(*found.values(), strict=True)
        ]
        lists = {f"caption_tag_{name}": pa.array(values, pa.list_(pa.string())) for name, values in found.items()}
        return pa.table({
            "uid": batch.column("uid"),
            **lists,
            "caption_tag_ids": pa.array(ids, pa.list_(pa.int32())),
            "error": missing_errors(batch, is_lost, "caption_parse"),
        })


def _read_vocabulary(path: str) -> dict[str, int]:
    tags = Path(path).read_text(encoding="utf-8").splitlines()
    numbers: dict[str, int] = {}
    for number, tag in enumerate(tags):
        if not tag.strip():
            raise InputError(f"vocabulary {path!r}: line {number + 1} is blank; remove it")
        if numbers.setdefault(tag, number) != number:
            raise InputError(
                f"vocabulary {path!r}: line {number + 1}, {tag!r}, is line {numbers[tag] + 1} again; remove one"
            )
    if not numbers:
        raise InputError(f"vocabulary {path!r} holds no tags")
    return numbers
