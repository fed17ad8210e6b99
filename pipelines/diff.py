"""Compares two selections of a pool: what only one keeps, which rules made the difference, and rows to look at."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from curate.catalog import Catalog
from curate.expression import quote_text
from curate.store import Pool
from pipelines.why import find_selections
from schemas.errors import InputError
from schemas.selection import LEDGER_FILE

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


@dataclass(frozen=True, kw_only=True)
class Side:
    """What only one of the two keeps."""

    folder: str  # of the selection that keeps them
    num_samples: int
    reasons: Mapping[str, int]  # first rule of the other selection that drops them: how many
    examples: tuple[Mapping[str, Any], ...]  # uid, url, alt_text, reason


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Two selections side by side."""

    num_rows: int
    num_both: int
    num_neither: int
    only_first: Side
    only_second: Side
    mean_weights: tuple[float, float]  # over the samples that both keep
    num_reweighted: int  # of those, whose share of all draws differs by more than a millionth of itself

    @property
    def jaccard(self) -> float:
        """Samples that both keep / samples that either keeps, 0 to 1; 1 where neither keeps any."""
        either = self.num_both + self.only_first.num_samples + self.only_second.num_samples
        return self.num_both / either if either else 1.0

    def to_dict(self) -> dict[str, object]:
        """Return the difference as JSON values."""
        return {**asdict(self), "jaccard": self.jaccard}


def diff(pool: Pool, first: str, second: str, *, num_examples: int = 5) -> Difference:
    """Compare two selections, given by name or folder; examples are drawn by the hash of their uid, the same every time.

    Raises InputError where a name means several selections, or the ledgers are of different pools (one was made before the pool grew).
    """
    folders = [_one(pool, name) for name in (first, second)]
    with Catalog(pool) as catalog, catalog.translate():
        connection = catalog.connection
        paths = [pool.locate(f"{folder}/{LEDGER_FILE}") for folder in folders]
        counts = [int(pool.read_footer(f"{folder}/{LEDGER_FILE}").num_rows) for folder in folders]
        if counts[0] != counts[1]:
            raise InputError(
                f"{folders[0]} has {counts[0]:,} rows and {folders[1]} {counts[1]:,}: the pool grew between them; run `winnow select` "
                "again for the older one"
            )
        # Two ledgers of one pool hold its rows in its order.
        connection.execute(
            "CREATE TEMP VIEW sides AS SELECT a.uid, a.url, a.kept AS first_kept, b.kept AS second_kept, b.uid AS other_uid, "
            "a.first_failing_rule AS first_reason, b.first_failing_rule AS second_reason, a.weight AS first_weight, "
            f"b.weight AS second_weight FROM read_parquet({quote_text(paths[0])}) AS a POSITIONAL JOIN "
            f"read_parquet({quote_text(paths[1])}) AS b"
        )
        return _compare(catalog, connection, folders, num_examples)


def _one(pool: Pool, name: str) -> str:
    found = find_selections(pool, name)
    if len(found) > 1:
        raise InputError(f"{name!r} means several selections; give one of: {', '.join(found)}")
    return found[0]


def _compare(
    catalog: Catalog, connection: "DuckDBPyConnection", folders: Sequence[str], num_examples: int
) -> Difference:
    query = (
        "SELECT count(*), count_if(uid <> other_uid), count_if(first_kept AND second_kept), "
        "count_if(NOT first_kept AND NOT second_kept), sum(first_weight), sum(second_weight), "
        "avg(first_weight) FILTER (first_kept AND second_kept), avg(second_weight) FILTER (first_kept AND second_kept) FROM sides"
    )
    (total, foreign, both, neither, first_sum, second_sum, *means) = connection.execute(query).fetchall()[0]
    if foreign:
        raise InputError(
            f"{folders[0]} and {folders[1]} do not hold the same samples in one order; run `winnow select` again for both"
        )
    scale = f"first_weight * {second_sum or 0} - second_weight * {first_sum or 0}"
    ((reweighted,),) = connection.execute(
        f"SELECT count(*) FROM sides WHERE first_kept AND second_kept AND abs({scale}) > 1e-6 * first_weight * {second_sum or 0}"
    ).fetchall()
    return Difference(
        num_rows=total,
        num_both=both,
        num_neither=neither,
        only_first=_side(catalog, connection, folders[0], "first", "second", num_examples),
        only_second=_side(catalog, connection, folders[1], "second", "first", num_examples),
        mean_weights=(float(means[0] or 0.0), float(means[1] or 0.0)),
        num_reweighted=reweighted,
    )


def _side(
    catalog: Catalog, connection: "DuckDBPyConnection", folder: str, keeper: str, dropper: str, num_examples: int
) -> Side:
    only = f"{keeper}_kept AND NOT {dropper}_kept"
    reasons = connection.execute(
        f"SELECT {dropper}_reason, count(*) FROM sides WHERE {only} GROUP BY 1 ORDER BY 2 DESC, 1"
    ).fetchall()
    examples = connection.execute(
        f"SELECT uid, url, {dropper}_reason FROM sides WHERE {only} ORDER BY md5(uid) LIMIT {num_examples}"
    ).fetchall()
    listed = ", ".join(quote_text(uid) for uid, _, _ in examples) or "''"
    texts = dict(catalog.sql(f"SELECT uid, alt_text FROM samples WHERE uid IN ({listed})").fetchall())
    return Side(
        folder=folder,
        num_samples=sum(count for _, count in reasons),
        reasons=dict(reasons),
        examples=tuple(
            {"uid": uid, "url": url, "alt_text": texts.get(uid), "reason": reason} for uid, url, reason in examples
        ),
    )
