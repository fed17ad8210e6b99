"""Datasets and runs are read as they lie, beside each other."""

import json
from pathlib import Path

import pytest

from pipelines.report.training import read_training

HOSTILE = 'run"><script>alert(1)<script>'


def make_run(folder: Path, losses: list[float], results: dict[str, dict[str, float]] | None = None) -> str:
    folder.mkdir(parents=True)
    points = [{"step": n, "samples_seen": 32 * n, "loss": loss, "lr": 1e-3} for n, loss in enumerate(losses, 1)]
    text = "".join(json.dumps(point) + "\n" for point in points)
    (folder / "metrics.jsonl").write_text(text + '{"step": 99, "loss', encoding="utf-8")
    if results is not None:
        (folder / "evaluation.json").write_text(json.dumps({"results": results}), encoding="utf-8")
    return str(folder)


def test_curves_and_results_side_by_side(tmp_path: Path) -> None:
    raw = make_run(tmp_path / "raw", [3.0, 2.0], {"scenes": {"acc1": 0.25, "chance_acc1": 0.1, "num_images": 4.0}})
    curated = make_run(tmp_path / HOSTILE, [3.0, 1.0], {"scenes": {"acc1": 0.5, "attack_success_rate": 0.1}})
    found = read_training((), (raw, curated))
    assert [chart.title for chart in found.charts] == ["Training loss", "Learning rate"]
    assert found.charts[0].drawn == ("raw", HOSTILE)
    assert "<script>" not in found.charts[0].svg
    rows = {(row.data, row.metric): row for row in found.results}
    assert set(rows) == {("scenes", "acc1"), ("scenes", "attack_success_rate")}
    assert rows["scenes", "acc1"].values == (0.25, 0.5)
    assert rows["scenes", "acc1"].chance == 0.1
    assert rows["scenes", "acc1"].best == (1,)
    # An attack that succeeds is not the best; and a run without the metric has no value.
    assert rows["scenes", "attack_success_rate"].values == (None, 0.1)
    assert rows["scenes", "attack_success_rate"].best == ()


def test_long_curves_are_thinned_to_means(tmp_path: Path) -> None:
    run = make_run(tmp_path / "long", [float(number % 2) for number in range(4_320)])
    svg = read_training((), (run,)).charts[0].svg
    points = svg.split('points="')[1].split('"')[0].split()
    assert len(points) == 240
    heights = {point.split(",")[1] for point in points}
    assert len(heights) == 1  # neighbours alternate, so all means are alike


def test_runs_of_one_name_are_told_apart_and_diverged_ones_are_drawn(tmp_path: Path) -> None:
    first = make_run(tmp_path / "a" / "run", [1.0, float("nan"), 3.0])
    second = make_run(tmp_path / "b" / "run", [1.0])
    found = read_training((), (first, second))
    assert [run.name for run in found.runs] == [first, second]
    assert "nan" not in found.charts[0].svg


@pytest.mark.parametrize("suffix", ["", "/", "/index.json"])
def test_a_dataset_by_its_index(tmp_path: Path, suffix: str) -> None:
    index = {
        "name": "mine",
        "kind": "build",
        "num_samples": 5,
        "captions": {"alt_text": 1.0},
        "shards": [{"tar_bytes": 100}, {"tar_bytes": 50}],
        "selection": {"name": "mine", "fingerprint": "f" * 64},
    }
    (tmp_path / "index.json").write_text(json.dumps(index), encoding="utf-8")
    (found,) = read_training((f"{tmp_path}{suffix}",), ()).datasets
    assert (found.num_samples, found.num_shards, found.num_bytes) == (5, 2, 150)
    assert found.selection == f"mine-{'f' * 12}"
