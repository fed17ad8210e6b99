"""Which rows to show for each rule: kept, dropped, borderline and any at random; drawn by a hash of the uid, so the same every time."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

from pipelines.report.facts import FACTS, MAX_RULES, Facts, Measure, describe_rule, is_download
from pipelines.report.threshold import Threshold


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Rows under a heading: their positions in the pool, and the measures whose values stand beside them."""

    title: str
    note: str
    kind: str  # kept, dropped, near or calm: its colour
    positions: tuple[int, ...] = ()
    measures: tuple[Measure, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RuleGalleries:
    """A rule with its galleries; `has_threshold` is false where it compares nothing with a number."""

    rule: str
    sql: str
    num_failing: int
    galleries: tuple[Gallery, ...]
    has_threshold: bool


# Rows of the drawn shards come first: each tar that has to be opened costs time.
_AT_RANDOM = "(remote, hash)"
# Or galleries of any rows and of kept ones would show the same.
_AT_RANDOM_OTHERWISE = "(remote, hash(hash))"


@dataclass(frozen=True, kw_only=True)
class _Draw:
    """Rows to draw: the gallery they go to, a SQL condition, their number, and an order of which the first are drawn."""

    gallery: Gallery
    condition: str
    num_rows: int
    order: str = _AT_RANDOM


def draw_overall(facts: Facts, num_rows: int) -> list[Gallery]:
    """Return rows at random: of the whole pool, and of what the selection keeps and of what it drops."""
    draw = partial(_Draw, num_rows=num_rows)
    anything = Gallery(title="Any of the pool", note="rows with a picture, at random", kind="calm")
    draws = [draw(gallery=anything, condition="ok", order=_AT_RANDOM_OTHERWISE)]
    if facts.choice:
        kept = Gallery(title="Kept", note="by all rules", kind="kept")
        dropped = Gallery(title="Dropped", note="by any rule", kind="dropped")
        draws += [draw(gallery=kept, condition="kept"), draw(gallery=dropped, condition="ok AND NOT kept")]
    return _run(facts, draws)


def draw_rules(facts: Facts, num_rows: int) -> list[RuleGalleries]:
    """Return the galleries of every rule that rows with a picture can fail."""
    if facts.choice is None:
        return []
    rules = [rule for rule in facts.rules[:MAX_RULES] if not is_download(rule)]
    draws = {rule: list(_draws(facts, rule, num_rows)) for rule in rules}
    drawn = iter(_run(facts, [draw for own in draws.values() for draw in own]))
    by_rule = {rule: list(itertools.islice(drawn, len(own))) for rule, own in draws.items()}
    failing = {row["rule"]: int(row["num_failing"]) for row in facts.choice.content["funnel"]}
    return [
        RuleGalleries(
            rule=rule,
            sql=describe_rule(facts.choice, rule),
            num_failing=failing[rule],
            galleries=tuple(by_rule[rule]),
            has_threshold=any(gallery.kind == "near" for gallery in by_rule[rule]),
        )
        for rule in rules
    ]


def _draws(facts: Facts, rule: str, num_rows: int) -> Iterator[_Draw]:
    bit = facts.mask_of(rule)
    passes, fails = f"ok AND mask & {bit} = 0", f"ok AND mask & {bit} <> 0"
    # The rows that no earlier rule has dropped: what this rule decides on.
    reached = f"mask & {bit - 1} = 0"
    own = _own_measures(facts.measures, rule)
    gallery = partial(Gallery, measures=tuple(measure for measure, _ in own))
    draw = partial(_Draw, num_rows=num_rows)
    dropped = gallery(title="Dropped", note="first by this rule, at random", kind="dropped")
    yield draw(gallery=dropped, condition=f"{fails} AND {reached}")
    half = max(1, num_rows // (2 * max(1, len(own))))
    for measure, threshold in own:
        for side, condition in (("just dropped", fails), ("just kept by it", passes)):
            note = f"nearest to {measure.title} = {threshold.value:.6g}"
            yield draw(
                gallery=gallery(title=f"Borderline, {side}", note=note, kind="near"),
                condition=f"{condition} AND {reached} AND {measure.column} IS NOT NULL",
                order=f"(remote, abs({measure.column} - {threshold.value!r}::DOUBLE), hash)",
                num_rows=half,
            )
    kept = gallery(title="Kept", note="passes this rule and all before it, at random", kind="kept")
    yield draw(gallery=kept, condition=f"{passes} AND {reached}")
    anything = gallery(title="Any", note="that come to this rule, at random", kind="calm")
    yield draw(gallery=anything, condition=f"ok AND {reached}", order=_AT_RANDOM_OTHERWISE)


def _own_measures(measures: tuple[Measure, ...], rule: str) -> list[tuple[Measure, Threshold]]:
    """Return what a rule compares; at most three, for a rule of many comparisons would fill the page."""
    found = [(each, threshold) for each in measures for threshold in each.thresholds if threshold.rule == rule]
    return found[:3]


def _run(facts: Facts, draws: list[_Draw]) -> list[Gallery]:
    """Return the gallery of each draw with its rows; one pass over the table finds all of them."""
    if not draws:
        return []
    columns = ", ".join(
        f"min_by(rowid, {draw.order}, {draw.num_rows}) FILTER (WHERE {draw.condition})" for draw in draws
    )
    ((*found,),) = facts.query(f"SELECT {columns} FROM {FACTS}")
    return [
        replace(draw.gallery, positions=tuple(positions or ())) for draw, positions in zip(draws, found, strict=True)
    ]
