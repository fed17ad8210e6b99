"""A dry run as people read it."""

from dataclasses import replace

import pytest

from curate.outlook import OperatorOutlook, Outlook
from pipelines.outlook_report import format_seconds, list_operators, list_totals, tabulate_outlook
from tests.pipelines.text import as_text

ENTRY = OperatorOutlook(
    label="b32",
    operator="clip_score",
    fingerprint="f" * 64,
    is_pool_wide=False,
    num_done=3,
    num_todo=2,
    num_rows=20_000,
    reason="2 shards new",
    seconds=7200.0,
    rate_source="this pool",
)
DONE = replace(ENTRY, label="words", num_done=5, num_todo=0, num_rows=0, reason="", seconds=0.0)
UNKNOWN = replace(ENTRY, label="own", seconds=None, rate_source="not measured", reason="[bold]changed")
OUTLOOK = Outlook(
    operators=(ENTRY, DONE, UNKNOWN),
    num_shards=5,
    pass_seconds=3600.0,
    outdated={"score": ["b32"]},
    rows_per_second=2.0,
)


def test_the_table_says_what_why_and_how_long() -> None:
    lines = as_text(tabulate_outlook(OUTLOOK, 2)).splitlines()
    assert lines[2].split() == [
        "b32",
        "clip_score",
        "3",
        "2",
        "20,000",
        "2.0",
        "h",
        "this",
        "pool",
        "2",
        "shards",
        "new",
    ]
    assert lines[3].split() == ["words", "clip_score", "5", "0", "up", "to", "date"]
    assert lines[4].split()[-3:] == ["not", "measured", "[bold]changed"]
    assert lines[5].startswith("about 3.0 h of work, 1.0 h of it reading and decoding: 1.5 h on 2 workers")
    assert lines[6] == "not counted, for nobody measured it yet: own"
    assert lines[7] == "score was made from b32 as it was; name it too to have it computed again"


def test_lines_name_only_what_is_to_do() -> None:
    assert list(list_operators(OUTLOOK)) == [
        "b32: 3 of 5 shards done, 2 to do, 2.0 h (2 shards new)",
        "own: 3 of 5 shards done, 2 to do ([bold]changed)",
    ]
    assert list(list_totals(replace(OUTLOOK, operators=(DONE,), outdated={}))) == []
    # Of what nobody measured no time is told.
    assert list(list_totals(replace(OUTLOOK, operators=(UNKNOWN,), pass_seconds=0.0, outdated={}))) == [
        "not counted, for nobody measured it yet: own"
    ]
    measured = replace(OUTLOOK, operators=(replace(ENTRY, rate_source="benchmark"),))
    assert any("a rate from the benchmark is of one core" in line for line in list_totals(measured))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "under 1 s"), (40, "40 s"), (150, "2.5 min"), (3600, "1.0 h"), (36000, "10 h"), (200_000, "2.3 d")],
)
def test_seconds_have_a_unit_that_suits_them(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
