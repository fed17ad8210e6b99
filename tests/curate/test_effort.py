"""Rates from a pool's own notes, and from the benchmark where it has none."""

import json
import re
from pathlib import Path

import pytest

from curate.annotate import annotate, parse_operator
from curate.effort import BENCHMARK, LOG_FILE, MEASURED, SIMILAR, Rates
from curate.executor import Executor
from curate.operator import Operator
from curate.plan import Planned, open_plan
from curate.store import Pool

ROOT = Path(__file__).parents[2]


def plan(pool: Pool, *operators: Operator) -> list[Planned]:
    return open_plan(pool, operators)[1]


def note(pool: Pool, *lines: dict[str, object] | str) -> None:
    path = Path(pool.locate(LOG_FILE))
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))


def line(planned: list[Planned], seconds: list[float], total: float, **more: object) -> dict[str, object]:
    return {
        "names": [each.operator.name for each in planned],
        "fingerprints": [each.fingerprint[:12] for each in planned],
        "shard": 0,
        "rows": 10,
        "seconds": total,
        "operator_seconds": seconds,
        "reads_pictures": True,
        **more,
    }


def test_notes_are_added_up(tiny_pool: Pool) -> None:
    members = plan(tiny_pool, parse_operator("image_stats"), parse_operator("caption_stats"))
    old = {"fingerprints": ["x"], "operators": ["x"], "rows": 5, "seconds": 1.0, "shard": 0}
    note(tiny_pool, old, line(members, [1.0, 0.5], 2.0), line(members[:1], [3.0], 4.0, rows=30), '{"cut off')
    rates = Rates(tiny_pool)
    assert rates.of(members[0]).seconds == pytest.approx(4.0 / 40)
    assert rates.of(members[1]).seconds == pytest.approx(0.5 / 10)
    assert rates.of(members[0]).source == MEASURED
    assert rates.of_pass(reads_pictures=True).seconds == pytest.approx(1.5 / 40)
    assert rates.of_pass(reads_pictures=False).source == BENCHMARK


def test_other_parameters_are_the_next_best(tiny_pool: Pool) -> None:
    first, second = (plan(tiny_pool, parse_operator(f"near_dedup:max_distance={bits}"))[-1] for bits in (4, 5))
    note(tiny_pool, line([first], [2.0], 2.0, shard=None))
    rates = Rates(tiny_pool)
    assert (rates.of(second).seconds, rates.of(second).source) == (0.2, SIMILAR)
    assert rates.of_pass(reads_pictures=True).source == BENCHMARK, "a pool-wide operator reads no shard"


def test_a_run_notes_what_each_operator_took(tiny_pool: Pool, ray_session: Executor) -> None:
    operators = [parse_operator(name) for name in ("image_quality", "caption_stats", "exact_dedup")]
    annotate(tiny_pool, operators, executor=ray_session)
    lines = [json.loads(text) for text in tiny_pool.read_bytes(LOG_FILE).decode().splitlines()]
    assert [entry["names"] for entry in lines] == [["image_quality", "caption_stats"]] * 2 + [["exact_dedup"]]
    for entry in lines:
        assert len(entry["operator_seconds"]) == len(entry["names"])
        assert 0 < sum(entry["operator_seconds"]) <= entry["seconds"] + 0.01
        assert entry["reads_pictures"] == (entry["shard"] is not None)
    rates = Rates(tiny_pool)
    assert {rates.of(planned).source for planned in plan(tiny_pool, *operators)} == {MEASURED}


def test_the_shipped_costs_are_those_of_the_newest_benchmark() -> None:
    newest = max((ROOT / "benchmarks" / "results").glob("operators_*.md"), key=lambda path: path.stem[-10:])
    shipped = json.loads((ROOT / "curate" / "operator_costs.json").read_text())
    assert shipped["source"] == newest.relative_to(ROOT).as_posix()
    rows = re.findall(r"^\| (\w+) \| [\d,.]+ \| ([\d,.]+) \|", newest.read_text(), re.MULTILINE)
    assert shipped["operators"] == {name: float(cost.replace(",", "")) for name, cost in rows}
