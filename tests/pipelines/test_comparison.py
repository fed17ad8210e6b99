import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from curate.store import Store
from pipelines.comparison import Cell, Comparison, describe_comparison, format_markdown, write_comparison


def _metrics(value: float) -> dict[str, dict[str, float]]:
    return {
        "scenes": {
            "mean_recall@1": value,
            "image_to_text_recall@1": 0.5,
            "chance_mean_recall@1": 0.01,
            "num_images": 9.0,
        },
        "wds_vtab-pets_test": {"acc1": 0.9, "mean_per_class_recall": value / 2, "acc5": 1.0},
    }


@pytest.fixture
def comparison() -> Comparison:
    """Two arms, three seeds: seeds shift both alike, the second is better by 10, 10 and -5 points."""
    values = {("a", 0): 0.1, ("a", 1): 0.5, ("a", 2): 0.3, ("b|c", 0): 0.2, ("b|c", 1): 0.6, ("b|c", 2): 0.25}
    return Comparison(
        arms={"a": {}, "b|c": {"train.lr": 0.001}},
        seeds=(0, 1, 2),
        samples_seen=1000,
        cells=[Cell(arm=arm, seed=seed, metrics=_metrics(value)) for (arm, seed), value in values.items()],
    )


def test_differences_are_paired_by_seed(comparison: Comparison) -> None:
    score = comparison.scores()["scenes", "mean_recall@1"]["b|c"]
    assert score.mean == pytest.approx(0.35)
    assert score.std == pytest.approx(0.2179449)
    assert score.difference == pytest.approx(0.05)
    # The differences spread less than the values: what the seeds do to both cancels.
    assert score.difference_std == pytest.approx(0.0866025)
    assert score.num_higher == 2
    first = comparison.scores()["scenes", "mean_recall@1"]["a"]
    assert (first.difference, first.difference_std, first.num_higher) == (0.0, 0.0, 0)


def test_markdown_shows_the_main_metrics_and_what_differs(comparison: Comparison) -> None:
    text = format_markdown(comparison)
    assert "| data | metric | a | b\\|c |" in text
    assert "| scenes | mean_recall@1 | 30.0 +- 20.0 | 35.0 +- 21.8 (+5.0 +- 8.7, 2 of 3) |" in text
    assert "image_to_text_recall@1" not in text
    # Of DataComp's tasks the metric that counts, and their average, which says that it lacks tasks.
    assert "| wds_vtab-pets_test | mean_per_class_recall | 15.0 +- 10.0 |" in text
    assert "| wds_vtab-pets_test | acc1 |" not in text
    assert "| DataComp | Average (1 of 38) | 15.0 +- 10.0 |" in text
    assert "- a: the first arm" in text
    assert "- b\\|c: `train.lr: 0.001`" in text


def test_files_hold_every_result(comparison: Comparison, tmp_path: Path) -> None:
    folder = Store(tmp_path / "out")
    write_comparison(comparison, folder)
    rows = pq.read_table(tmp_path / "out" / "results.parquet").to_pylist()
    assert len(rows) == 6 * 8  # of every cell 3 and 3 metrics, and the averages VTAB and Average
    found = next(row for row in rows if (row["arm"], row["seed"], row["metric"]) == ("b|c", 1, "mean_recall@1"))
    assert found == {"arm": "b|c", "seed": 1, "data": "scenes", "metric": "mean_recall@1", "value": 0.6, "chance": 0.01}
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert content == json.loads(json.dumps(describe_comparison(comparison)))
    assert content["arms"][1] == {"name": "b|c", "differences": {"train.lr": 0.001}}
    assert (tmp_path / "out" / "comparison.svg").read_text().startswith("<svg")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    write_comparison(comparison, folder)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}


def test_one_seed_has_no_spread(comparison: Comparison) -> None:
    single = Comparison(
        arms=comparison.arms, seeds=(0,), samples_seen=1, cells=[c for c in comparison.cells if c.seed == 0]
    )
    assert single.scores()["scenes", "mean_recall@1"]["b|c"].std == 0.0
