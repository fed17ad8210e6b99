"""A sweep as a table on a terminal, as JSON, as Parquet and CSV, and as a picture."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from curate.axis import read_condition
from curate.selection import Selection
from curate.sweep import Point, SweepConfig, SweepReport, sweep
from pipelines.sweep_plot import draw_sweep
from pipelines.sweep_report import describe_sweep, most_frequent, tabulate_sweep, write_table
from schemas.errors import InputError
from tests.curate.pool_builder import annotated_pool
from tests.pipelines.text import as_text


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> SweepReport:
    pool = annotated_pool(tmp_path_factory.mktemp("report") / "pool")
    axis = read_condition("b32.clip_score > {0.05,1,7}")
    config = SweepConfig(axes=(axis,), base=Selection(name="base", weight="1 + row"), shares=("caption_language",))
    return sweep(pool, config)


COMMANDS = ["select a", "select b", "=select c"]


def test_the_terminal_shows_points_shares_and_overlaps(report: SweepReport) -> None:
    text = as_text(tabulate_sweep(report))
    kept = [point.num_kept for point in report.points]
    assert [line.split()[:3] for line in text.splitlines() if line[:1] in "123" and "%" in line] == [
        [str(number + 1), value, str(kept[number])] for number, value in enumerate(("0.05", "1", "7"))
    ]
    assert "caption_language en" in text
    assert f"{kept[1] / kept[0]:.2f}" in text
    assert "30 of 36 rows pass the rules that stay (30 were downloaded)" in text


def test_json_has_everything(report: SweepReport) -> None:
    found = describe_sweep(report, COMMANDS)
    assert json.loads(json.dumps(found)) == found
    points = found["points"]
    assert isinstance(points, list)
    assert points[0]["rules"] == {"b32_clip_score": "b32.clip_score > 0.05"}
    assert points[0]["command"] == "select a"
    assert points[2]["means"] == {"b32.clip_score": None, "siglip.clip_score": None}
    assert found["containment"][1][0] == 1.0  # type: ignore[index]
    assert found["jaccard"][0][2] == 0.0  # type: ignore[index]


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_table_has_a_row_per_point(suffix: str, report: SweepReport, tmp_path: Path) -> None:
    scores = {point.selection.name: {"acc": number / 2} for number, point in enumerate(report.points)}
    path = tmp_path / f"points{suffix}"
    write_table(report, COMMANDS, path, scores)
    is_csv = suffix == ".csv"
    rows = list(csv.DictReader(io.StringIO(path.read_text()))) if is_csv else pq.read_table(path).to_pylist()
    assert [float(row["b32.clip_score > _"]) for row in rows] == [0.05, 1, 7]
    assert [int(row["num_kept"]) for row in rows] == [point.num_kept for point in report.points]
    shares = [float(rows[0][f"share caption_language = {value}"]) for value in ("en", "de")]
    assert sum(shares) == pytest.approx(1)
    assert [float(row["score acc"]) for row in rows] == [0, 0.5, 1]
    assert float(rows[1]["jaccard base-0.05"]) == pytest.approx(report.jaccard(1, 0), abs=1e-5)
    assert rows[0]["command"] == "select a"


def test_a_table_ends_in_parquet_or_csv(report: SweepReport, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--table .*x.txt ends in neither .parquet nor .csv"):
        write_table(report, COMMANDS, tmp_path / "x.txt")


def make_report(values: list[dict[str, str]], kept: list[int], language: str = "en") -> SweepReport:
    points = tuple(
        Point(
            values=own,
            selection=Selection(name=f"p-{number}"),
            num_kept=count,
            effective_samples=None,
            means={"score": None if number == 0 else count / 100},
            counts={"language": {language: count, "fr": 0}},
        )
        for number, (own, count) in enumerate(zip(values, kept, strict=True))
    )
    overlaps = np.minimum.outer(kept, kept)
    return SweepReport(num_rows=100, num_downloaded=90, num_candidates=80, points=points, overlaps=overlaps)


def read(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def test_curves_have_four_panels_and_fall_where_fewer_rows_are_kept(report: SweepReport) -> None:
    data = draw_sweep(report)
    picture = read(data)
    assert picture.size == (1240, 1080)
    assert draw_sweep(report) == data
    pixels = np.asarray(picture.convert("RGB")).astype(int)
    panel = pixels[50:306, 78:602]
    is_blue = np.abs(panel - (66, 105, 208)).sum(axis=2) < 60
    third = is_blue.shape[1] // 3
    heights = [np.flatnonzero(is_blue[:, start : start + third].any(axis=1)).min() for start in (0, third, 2 * third)]
    assert heights == sorted(heights)
    assert heights[0] < heights[2]


def test_two_axes_make_a_map_that_is_darker_where_more_is_kept() -> None:
    grid = [{"a": a, "b": b} for a in ("1", "2") for b in ("1", "2", "3")]
    picture = read(draw_sweep(make_report(grid, [60, 50, 40, 30, 20, 10]))).convert("L")
    assert picture.getpixel((90, 60)) < picture.getpixel((590, 290))  # type: ignore[operator]


def test_texts_of_the_web_are_only_drawn() -> None:
    hostile = "<script>\u202e{}[/red]\n" + "x" * 300
    report = make_report([{hostile: "\u732b"}, {hostile: "[bold]"}], [5, 3], language=hostile)
    assert read(draw_sweep(report)).size[0] == 1240
    assert "[bold]" in as_text(tabulate_sweep(report))
    assert most_frequent(report, "language", 5) == [hostile]


def test_scores_are_drawn_and_shown() -> None:
    report = make_report([{"a": "1"}, {"a": "2"}], [5, 3])
    scores = {"p-0": {"acc1": 0.25}, "p-1": {"acc1": 0.5}}
    assert "0.2500" in as_text(tabulate_sweep(report, scores))
    assert draw_sweep(report, scores) != draw_sweep(report)
