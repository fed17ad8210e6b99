"""The whole demo in miniature, twice: the second time everything is there already."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from curate.executor import Executor
from curate.store import Pool, Store
from pipelines.demo.demo import REPORT_FILE, DemoReport, demo
from pipelines.demo.render import tabulate_demo
from pipelines.demo.web import FAULTS, TRUTH_FILE
from pipelines.recipe import load_recipe
from schemas.errors import InputError
from schemas.selection import LEDGER_FILE

SCALE = 0.06


@pytest.fixture(scope="module")
def report(ray_session: Executor, tmp_path_factory: pytest.TempPathFactory) -> DemoReport:
    return demo(str(tmp_path_factory.mktemp("demo")), executor=ray_session, scale=SCALE, port=0)


def _shares(report: DemoReport) -> Mapping[str, float]:
    return {row.kind: row.dropped_share for row in report.comparison.faults}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_row_is_accounted_for(report: DemoReport) -> None:
    truth = Store(report.out).read_table(TRUTH_FILE)
    ledger = Pool(f"{report.out}/pool").read_table(f"{report.selection.folder}/{LEDGER_FILE}")
    assert sorted(ledger["uid"].to_pylist()) == sorted(truth["uid"].to_pylist())
    assert report.comparison.num_rows == sum(row.num_rows for row in report.comparison.faults) == len(truth)
    assert sum(row.num_dropped for row in report.comparison.rules) == report.comparison.num_dropped


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_faults_that_columns_can_see_are_found(report: DemoReport) -> None:
    shares = _shares(report)
    for kind in ("tiny", "extreme_aspect", "not_found", "timeout", "opted_out"):
        assert shares[kind] == 1.0, kind
    for kind in ("broken_file", "file_name", "other_language"):
        assert shares[kind] > 0.8, kind
    assert set(shares) >= set(FAULTS)
    assert shares["redirected"] < 0.5 and shares["clean"] < 0.3
    assert report.comparison.kept_purity > 1 - report.comparison.num_faulty / report.comparison.num_rows + 0.15


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_raw_and_curated_are_trained_alike_and_learn(report: DemoReport) -> None:
    assert report.samples_seen["raw"] == report.samples_seen["curated"]
    assert report.num_samples["raw"] > report.num_samples["curated"] > 0
    raw, curated = load_recipe("demo-raw"), load_recipe("demo")
    assert raw.train == curated.train and raw.build == curated.build
    for model in ("raw", "curated", "trusted"):
        scenes = report.evaluation[model]["scenes"]
        assert scenes["text_to_image_recall@10"] > 1.3 * scenes["chance_text_to_image_recall@10"]
        assert "acc1" in report.evaluation[model]["colours_objects"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_report_can_be_read_and_shown(report: DemoReport) -> None:
    content = json.loads(Path(report.report_file).read_text())
    assert content["recall"] == report.comparison.recall
    assert {row["kind"] for row in content["faults"]} >= set(FAULTS)
    page = Path(report.page_file).read_text(encoding="utf-8")
    assert "Rule by rule" in page
    assert page.count("data:image/webp;base64,") > 100
    with Image.open(report.sheet_file) as sheet:
        assert sheet.width > 1000
    with Image.open(report.curve_file) as curve:
        assert curve.width < 500
    console = Console(width=170, record=True)
    with console.capture() as captured:
        console.print(tabulate_demo(report))
    text = captured.get()
    for word in ("funnel", "mismatched", "near_copy", "lost by mistake", "chance", "samples seen"):
        assert word in text


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_second_run_does_nothing_again(report: DemoReport, ray_session: Executor) -> None:
    said: list[str] = []
    before = json.loads(Path(report.report_file).read_text())
    again = demo(report.out, executor=ray_session, scale=SCALE, say=lambda text: said.append(str(text)))
    stages = [
        text for text in said if text.split(":")[0] in {"download", "annotate", "select", "build", "train", "evaluate"}
    ]
    assert len(stages) >= 15
    assert all("up to date" in text for text in stages if not text.startswith("select")), stages
    after = json.loads((Path(again.out) / REPORT_FILE).read_text())
    assert {**after, "seconds": {}} == {**before, "seconds": {}}


def test_a_folder_with_another_demo_is_refused(tmp_path: Path) -> None:
    Store(tmp_path).commit_json("web/settings.json", {"scale": 0.5})
    with pytest.raises(InputError, match=r"holds a demo with \{'scale': 0.5\}.*another folder with --out"):
        demo(str(tmp_path), executor=Executor(), scale=1.0)


def test_a_senseless_scale_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="demo scale is 0; it must be above 0"):
        demo(str(tmp_path), executor=Executor(), scale=0)
