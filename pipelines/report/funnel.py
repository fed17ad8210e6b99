"""The funnel of a selection, and why rows were dropped: what each rule fails, fails first, and is alone in failing."""

from dataclasses import dataclass

from pipelines.report.facts import FACTS, Facts, is_download


@dataclass(frozen=True, kw_only=True)
class Step:
    """A rule: how many rows fail it, fail it first, fail nothing else, and are left after it."""

    rule: str
    sql: str
    num_failing: int
    num_first: int
    num_alone: int | None  # None for the download: what has no picture fails most rules with it
    num_left: int
    left_share: float  # of all rows
    before_share: float  # of all rows, that came to it


@dataclass(frozen=True, kw_only=True)
class Funnel:
    """All rules in their order; without a selection only the download."""

    num_rows: int
    num_downloaded: int
    num_kept: int
    effective_samples: float
    steps: tuple[Step, ...]


def make_funnel(facts: Facts) -> Funnel:
    """Return the funnel of the selection as its file states it, with the rows that one rule alone drops counted."""
    ((num_downloaded,),) = facts.query(f"SELECT count_if(ok) FROM {FACTS}")
    if facts.choice is None:
        return Funnel(
            num_rows=facts.num_rows,
            num_downloaded=num_downloaded,
            num_kept=num_downloaded,
            effective_samples=float(num_downloaded),
            steps=(),
        )
    content = facts.choice.content
    alone = dict(
        facts.query(f"SELECT first, count(*) FROM {FACTS} WHERE NOT kept AND bit_count(mask) = 1 GROUP BY first")
    )
    steps = []
    before = facts.num_rows
    for number, row in enumerate(content["funnel"]):
        steps.append(
            Step(
                rule=row["rule"],
                sql=row["sql"],
                num_failing=row["num_failing"],
                num_first=row["num_first_failing"],
                num_alone=None if is_download(row["rule"]) else alone.get(number, 0),
                num_left=row["num_remaining"],
                left_share=row["num_remaining"] / max(1, facts.num_rows),
                before_share=before / max(1, facts.num_rows),
            )
        )
        before = row["num_remaining"]
    return Funnel(
        num_rows=facts.num_rows,
        num_downloaded=num_downloaded,
        num_kept=content["num_kept"],
        effective_samples=content["effective_samples"],
        steps=tuple(steps),
    )
