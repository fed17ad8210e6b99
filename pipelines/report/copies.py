"""Groups of copies as pictures: the largest ones of every operator that finds any, and some at random."""

from collections.abc import Iterator
from dataclasses import dataclass

from curate.expression import quote_name
from pipelines.report.facts import FACTS, Facts

# Columns that name a group: those of exact_dedup, near_dedup and caption_dedup, and of whatever else follows their example.
_SUFFIX = "_group"
NUM_LARGEST, NUM_RANDOM = 3, 3


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows that are copies of each other; some of them are shown."""

    num_rows: int
    num_kept: int
    positions: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class CopyGroups:
    """The groups that one column names."""

    column: str
    num_groups: int  # of two rows and more with a picture
    num_rows: int  # in them
    num_kept: int  # of those rows
    groups: tuple[Group, ...]


def find_copies(facts: Facts, num_rows: int) -> list[CopyGroups]:
    """Return the groups of every `*_group` column of text, up to `num_rows` rows of each group shown; columns without groups are left out."""
    return [found for place in _columns(facts) for found in [_find(facts, *place, num_rows)] if found.num_groups]


def _columns(facts: Facts) -> Iterator[tuple[str, str]]:
    for label, columns in facts.catalog.label_columns.items():
        for name in columns:
            if name.endswith(_SUFFIX) and facts.catalog.column_type(label, name) == "VARCHAR":
                yield label, name


def _find(facts: Facts, label: str, name: str, num_rows: int) -> CopyGroups:
    column, title = f"{quote_name(label)}.{quote_name(name)}", f"{label}.{name}"
    # Rows of the pool's table and of the label lie in one order, so they are joined by their place.
    source = facts.catalog.source([label])
    facts.query(
        f"CREATE OR REPLACE TEMP TABLE report_members AS SELECT hash({column}) AS member_of, samples.shard AS shard, samples.row AS row "
        f"FROM {source} WHERE {column} IS NOT NULL AND samples.status = 'success'"
    )
    facts.query(
        "CREATE OR REPLACE TEMP TABLE report_groups AS SELECT member_of, count(*) AS num_rows FROM report_members "
        "GROUP BY member_of HAVING count(*) > 1"
    )
    ((num_groups, total),) = facts.query("SELECT count(*), coalesce(sum(num_rows), 0) FROM report_groups")
    if not num_groups:
        return CopyGroups(column=title, num_groups=0, num_rows=0, num_kept=0, groups=())
    chosen = [
        name
        for (name,) in facts.query(
            f"(SELECT member_of FROM report_groups ORDER BY num_rows DESC, member_of LIMIT {NUM_LARGEST}) UNION ALL "
            f"(SELECT member_of FROM report_groups ORDER BY hash(member_of) LIMIT {NUM_RANDOM})"
        )
    ]
    members = (
        f"SELECT member_of, f.rowid AS position, f.kept AS kept, f.remote AS remote, f.hash AS hash FROM report_members m JOIN {FACTS} f "
        "ON m.shard = f.shard AND m.row = f.row"
    )
    ((num_kept,),) = facts.query(
        f"SELECT count_if(kept) FROM ({members}) WHERE member_of IN (SELECT member_of FROM report_groups)"
    )
    # The row that is kept stands first, then those whose tars are opened anyway.
    rows = facts.query(
        f"SELECT member_of, count(*), count_if(kept), min_by(position, (NOT kept, remote, hash), {num_rows}) FROM ({members}) "
        f"WHERE member_of IN ({', '.join(map(str, chosen))}) GROUP BY member_of"
    )
    by_name = {name: Group(num_rows=count, num_kept=kept, positions=tuple(found)) for name, count, kept, found in rows}
    return CopyGroups(
        column=title,
        num_groups=num_groups,
        num_rows=int(total),
        num_kept=num_kept,
        groups=tuple(by_name[name] for name in dict.fromkeys(chosen)),
    )
