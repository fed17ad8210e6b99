"""Clusters with exemplars before and after a selection: what it favours, and what it thins out."""

from dataclasses import dataclass

from pipelines.report.facts import FACTS, Facts, unquote

NUM_LARGEST, NUM_CHANGED = 4, 4


@dataclass(frozen=True, kw_only=True)
class ClusterView:
    """A cluster: its rows with a picture before and after, and rows at random of either."""

    number: int
    num_rows: int
    num_kept: int
    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Clusters:
    """The clusters of a pool; `views` are the largest, then those of which the smallest and the largest share is kept."""

    column: str
    num_clusters: int
    num_empty: int  # of which no row is kept
    kept_share: float  # of all rows in clusters
    views: tuple[ClusterView, ...]


def draw_clusters(facts: Facts, num_rows: int) -> Clusters | None:
    """Return the clusters to show with up to `num_rows` rows each before and after, or None where the pool has no clusters."""
    if facts.cluster is None:
        return None
    counted = facts.query(
        f"SELECT cluster, count(*), count_if(kept) FROM {FACTS} WHERE ok AND cluster IS NOT NULL GROUP BY cluster ORDER BY 2 DESC, 1"
    )
    if not counted:
        return None
    chosen = [number for number, _, _ in counted[:NUM_LARGEST]]
    if facts.choice:
        # Of a cluster of a few rows any share says little.
        typical = sum(count for _, count, _ in counted) / len(counted)
        sizeable = [row for row in counted if row[1] >= typical / 4 and row[0] not in chosen]
        by_share = sorted(sizeable, key=lambda row: (row[2] / row[1], row[0]))
        half = NUM_CHANGED // 2
        ends = by_share if len(by_share) <= NUM_CHANGED else by_share[:half] + by_share[-half:]
        chosen += [number for number, _, _ in ends]
    order = "(remote, hash)"
    drawn = {
        number: (before or [], after or [])
        for number, before, after in facts.query(
            f"SELECT cluster, min_by(rowid, {order}, {num_rows}), min_by(rowid, {order}, {num_rows}) FILTER (WHERE kept) "
            f"FROM {FACTS} WHERE ok AND cluster IN ({', '.join(map(str, chosen))}) GROUP BY cluster"
        )
    }
    counts = {number: (rows, kept) for number, rows, kept in counted}
    total = sum(rows for rows, _ in counts.values())
    return Clusters(
        column=unquote(facts.cluster[0]),
        num_clusters=len(counted),
        num_empty=sum(kept == 0 for _, kept in counts.values()),
        kept_share=sum(kept for _, kept in counts.values()) / total,
        views=tuple(
            ClusterView(
                number=number,
                num_rows=counts[number][0],
                num_kept=counts[number][1],
                before=tuple(drawn[number][0]),
                after=tuple(drawn[number][1]) if facts.choice else (),
            )
            for number in chosen
        ),
    )
