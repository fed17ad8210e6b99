"""The cuts of a selection, one after the other: the best share by a score, a cap per group, the mix of sources, a cap in all.

They work on the table `verdict`, which has a row for every row of the pool, and on the view `alive`: the rows nothing has dropped so far.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from curate.catalog import SAMPLES, Catalog
from curate.expression import quote_text
from curate.selection import Mix, Selection, Top
from curate.source_mix import MixRow, realise, share_out, target_shares
from schemas.selection import LIMIT_RULE, MIX_RULE, PER_GROUP_RULE, TOP_RULE

VERDICT = "verdict"
_ALIVE = "alive"


def cut_columns(catalog: Catalog, selection: Selection, *, where: str, downloaded: str) -> list[str]:
    """Return the columns of `verdict` that hold the weight and what the cuts of a selection read, as SQL.

    Each is null unless `where` holds; the score of a top share of the pool unless `downloaded` does.
    """
    columns = {"weight": f"({catalog.expand(selection.weight)}\n)::DOUBLE"}
    if selection.top:
        columns["top_score"] = f"({catalog.expand(selection.top.by)}\n)::DOUBLE"
    if selection.per_group:
        columns["group_key"] = catalog.expand(selection.per_group.by)
        columns["group_order"] = catalog.expand(selection.per_group.order or "NULL")
    if selection.mix:
        columns["mix_source"] = f"({catalog.expand(selection.mix.by)}\n)::VARCHAR"
        columns["mix_order"] = catalog.expand(selection.mix.order or "NULL")
    if selection.limit:
        columns["limit_score"] = catalog.expand(selection.limit.by or "NULL")
    if selection.per_group or selection.mix or selection.limit:
        columns["uid"] = f"{SAMPLES}.uid"
    conditions = dict.fromkeys(columns, where)
    if selection.top and selection.top.of == "pool":
        conditions["top_score"] = downloaded
    # Under a CASE, a logarithm of zero in a row that is dropped anyway does not end the query.
    return [f"CASE WHEN {conditions[name]} THEN ({sql}\n) END AS {name}" for name, sql in columns.items()]


def run_cuts(
    catalog: Catalog, selection: Selection, candidates: str, found: dict[str, object]
) -> Iterator[tuple[str, str, npt.NDArray[np.int64]]]:
    """Yield (reason, description, positions of the rows it leaves) for each cut; thresholds and shares go to `found`.

    `candidates` is the query of the rows that the rules left, with their `position` in the pool.
    """
    _set_alive(catalog, candidates)
    for reason, description, query in _cuts(catalog, selection, found):
        catalog.connection.execute(f"CREATE OR REPLACE TEMP TABLE survivors_{reason} AS {query}")
        _set_alive(catalog, f"SELECT * FROM survivors_{reason}")
        table = catalog.connection.sql(f"SELECT position FROM survivors_{reason}").to_arrow_table()
        yield reason, description, table["position"].to_numpy()


def apply_mix(
    catalog: Catalog, mix: Mix, cuts: Mapping[str, object], weight: npt.NDArray[np.float64]
) -> tuple[MixRow, ...]:
    """Return how the sources came out; where the mix is by weight, scale `weight`, one for every row of the pool, to its shares first."""
    table = catalog.connection.sql(f"SELECT position, mix_source FROM {_ALIVE}").to_arrow_table()
    sources = table["mix_source"].combine_chunks().dictionary_encode()
    positions, codes = table["position"].to_numpy(), sources.indices.to_numpy()
    shares = cuts["mix_shares"]
    assert isinstance(shares, dict)
    names = sources.dictionary.to_pylist()
    weights, rows = realise(mix, shares, names, codes, weight[positions])
    weight[positions] = weights
    return rows


def _set_alive(catalog: Catalog, query: str) -> None:
    """Name the rows that no rule and no cut so far has dropped."""
    catalog.connection.execute(f"CREATE OR REPLACE TEMP VIEW {_ALIVE} AS {query}")


def _cuts(catalog: Catalog, selection: Selection, found: dict[str, object]) -> Iterator[tuple[str, str, str]]:
    """Yield (reason, description, query of the survivors) for each cut, in order; thresholds go to `found`."""
    random = f"md5('{selection.seed}:' || uid)"
    if top := selection.top:
        threshold = _find_threshold(catalog, top)
        found["top_threshold"] = threshold
        description = f"{top.by} in the top {top.fraction:g}" + (" of the pool" if top.of == "pool" else "")
        if threshold is None:
            yield TOP_RULE, description, f"SELECT * FROM {_ALIVE} WHERE false"
        else:
            kept = f"top_score >= {threshold!r}::DOUBLE AND NOT isnan(top_score)"
            yield TOP_RULE, f"{description} (>= {threshold:g})", f"SELECT * FROM {_ALIVE} WHERE {kept}"
    if cap := selection.per_group:
        score = f"group_order {_direction(cap.descending)} NULLS LAST, " if cap.order else ""
        place = f"row_number() OVER (PARTITION BY group_key ORDER BY {score}{random}, uid, position)"
        query = f"SELECT * FROM {_ALIVE} QUALIFY {place} <= {cap.num_samples}"
        yield PER_GROUP_RULE, f"at most {cap.num_samples} per {cap.by}", query
    if mix := selection.mix:
        yield MIX_RULE, f"{mix.by} in the shares of the mix, by {mix.how}", _mix_query(catalog, mix, random, found)
    if limit := selection.limit:
        order = f"limit_score {_direction(limit.descending)} NULLS LAST, uid" if limit.by else f"{random}, uid"
        query = f"SELECT * FROM {_ALIVE} ORDER BY {order}, position LIMIT {limit.num_samples}"
        yield LIMIT_RULE, f"at most {limit.num_samples}" + (f" by {limit.by}" if limit.by else " at random"), query


def _mix_query(catalog: Catalog, mix: Mix, random: str, found: dict[str, object]) -> str:
    """Return the query of the rows that a mix keeps; target shares go to `found`."""
    counts = dict(
        catalog.connection.execute(
            f"SELECT mix_source, count(*) FROM {_ALIVE} WHERE mix_source IS NOT NULL GROUP BY mix_source ORDER BY mix_source"
        ).fetchall()
    )
    shares = target_shares(mix, counts)
    found["mix_shares"] = shares
    if not shares:
        return f"SELECT * FROM {_ALIVE} WHERE false"
    most = share_out(shares, counts, mix.num_samples) if mix.how == "cut" else counts
    quotas = ", ".join(f"({quote_text(source)}, {most[source]})" for source in shares)
    score = "mix_order DESC NULLS LAST, " if mix.order else ""
    place = f"row_number() OVER (PARTITION BY mix_source ORDER BY {score}{random}, uid, position)"
    return (
        f"SELECT {_ALIVE}.* FROM {_ALIVE} JOIN (VALUES {quotas}) AS quota(source, most) ON mix_source = quota.source "
        f"QUALIFY {place} <= quota.most"
    )


def _direction(descending: bool) -> str:
    return "DESC" if descending else "ASC"


def _find_threshold(catalog: Catalog, top: Top) -> float | None:
    # The score is null for the rows that do not count.
    rows = VERDICT if top.of == "pool" else _ALIVE
    scored = f"FROM {rows} WHERE top_score IS NOT NULL AND NOT isnan(top_score)"
    ((count,),) = catalog.connection.execute(f"SELECT count(*) {scored}").fetchall()
    if not count:
        return None
    index = min(int(count * top.fraction), count - 1)
    ((threshold,),) = catalog.connection.execute(
        f"SELECT top_score {scored} ORDER BY top_score DESC LIMIT 1 OFFSET {index}"
    ).fetchall()
    return float(threshold)
