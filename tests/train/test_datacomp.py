"""DataComp's tasks on tiny folders in the layout that its download script leaves."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from schemas.errors import InputError
from tests.train.evaluate.encoder import ColourEncoder
from tests.train.evaluate.test_folder import COLOURS, flat, write_folder
from tests.train.evaluate.test_hub_cache import (
    RETRIEVAL_SCHEMA,
    retrieval_rows,
    unpack,
    write_cached_set,
    write_flickr,
    write_games,
)
from train.datacomp import SCORED, TASKS, find_task, summarise
from train.evaluate.suite import evaluate_model, expand

NAMES = "\n".join(" ".join(map(str, colour)) for colour in COLOURS.values()) + "\n"
TEMPLATES = "a {c}.\n"


def _npy(*values: int) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array(values, dtype=np.int64))
    return file.getvalue()


def _classes(root: Path, task: str, rows: list[tuple[str, int, bytes]]) -> None:
    """Write a classification: the colour of each picture, its class, and its metadata where it has any."""
    members = []
    for number, (colour, label, metadata) in enumerate(rows):
        members += [(f"s{number}.webp", flat(COLOURS[colour], "webp")), (f"s{number}.cls", str(label).encode())]
        members += [(f"s{number}.npy", metadata)] if metadata else []
    write_folder(root / f"wds_{task}_test", [members], classnames=NAMES, zeroshot_classification_templates=TEMPLATES)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Write five of the tasks, one without a main metric, and a folder that is no set."""
    _classes(tmp_path, "imagenet1k", [("red", 0, b""), ("green", 1, b""), ("blue", 0, b"")])
    _classes(tmp_path, "vtab-pets", [("red", 0, b""), ("red", 0, b""), ("red", 0, b""), ("blue", 1, b"")])
    _classes(tmp_path, "wilds-fmow", [
        ("red", 0, _npy(0, 3, 0)),
        ("green", 1, _npy(0, 3, 1)),
        ("green", 1, _npy(4, 3, 1)),
        ("green", 2, _npy(4, 3, 2)),
    ])  # fmt: skip
    members = [("0.jpg", flat(COLOURS["red"], "jpeg")), ("0.txt", b"250 10 10\n")]
    write_folder(tmp_path / "wds_mscoco_captions_test", [members], dataset_type="retrieval")
    games = {"cue": "250 10 10", "candidates": ["red", "green", "blue"], "associations": ["red"]}
    pictures = [(f"{name}.jpg", flat(colour, "jpeg")) for name, colour in COLOURS.items()]
    folder = write_folder(tmp_path / "wds_misc-winogavil_test", [pictures])
    (folder / "winogavil.jsonl").write_text(json.dumps(games))
    _classes(tmp_path, "fairface", [("red", 0, b"")])
    (tmp_path / "hf_cache").mkdir()
    return tmp_path


def test_a_root_of_folders_is_evaluated_and_summarised(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert [Path(entry).name for entry in expand(str(root))] == [
        "wds_imagenet1k_test",
        "wds_misc-winogavil_test",
        "wds_mscoco_captions_test",
        "wds_vtab-pets_test",
        "wds_wilds-fmow_test",
    ]
    assert "without a main metric are passed over root=" in caplog.text
    assert "sets=wds_fairface_test" in caplog.text
    results = evaluate_model(ColourEncoder(), [str(root)], num_workers=0)
    assert results["wds_wilds-fmow_test"]["acc1[region=4]"] == 0.5
    assert results["wds_misc-winogavil_test"]["jaccard"] == 1.0
    summary = summarise(results)
    assert summary is not None
    # Pets count by class: one always right, the other never. The game has under ten candidates, so it has no score of DataComp's.
    assert summary.scores == pytest.approx({
        "ImageNet 1k": 2 / 3,
        "MSCOCO": 1.0,
        "Oxford-IIIT Pet": 0.5,
        "FMoW": 0.5,
    })
    retrieval = summary.groups["Retrieval"]
    assert (retrieval.mean, retrieval.num_tasks, list(retrieval.missing)) == (1.0, 3, ["Flickr", "WinoGAViL"])
    average = summary.groups["Average"]
    assert average.mean == pytest.approx((2 / 3 + 1 + 0.5 + 0.5) / 4)
    assert average.num_tasks == 38
    assert len(average.missing) == 34
    assert "ImageNet dist. shifts" not in summary.groups


def test_the_list_is_datacomps() -> None:
    assert len(SCORED) == 38
    assert {task.name for task in TASKS} - {task.name for task in SCORED} == {"FairFace", "UTKFace"}
    assert sum(task.is_vtab for task in TASKS) == 13
    assert sum(task.is_shift for task in TASKS) == 6
    assert sum(task.is_retrieval for task in TASKS) == 3
    by_recall = {task.name for task in TASKS if task.metric == "mean_per_class_recall"}
    assert by_recall == {"Caltech-101", "FGVC Aircraft", "Oxford Flowers-102", "Oxford-IIIT Pet"}
    folders = [folder for task in TASKS for folder in task.folders]
    assert len(set(folders)) == len(folders)
    dollar = find_task("wds_dollar_street_test")
    assert dollar is not None
    assert dollar.metric == "worst_income_ds_acc5"
    assert find_task("wds_mine_test") is None
    assert find_task("cars") is None  # somebody's own
    assert summarise({"mine": {"acc1": 1.0}}) is None


def test_complete_groups_miss_nothing() -> None:
    results = {f"wds_{task.folders[0]}_test": {task.metric: number / 38} for number, task in enumerate(SCORED)}
    summary = summarise(results)
    assert summary is not None
    assert all(not group.missing for group in summary.groups.values())
    assert summary.groups["Average"].mean == pytest.approx(sum(range(38)) / 38 / 38)
    assert list(summary.groups) == ["ImageNet dist. shifts", "VTAB", "Retrieval", "Average"]


def test_a_folder_with_all_38_gives_datacomps_average(tmp_path: Path) -> None:
    """The layout is what `download_evalsets.py` leaves: 35 folders of tars and two without a main metric, and three sets in `hf_cache`."""
    expected = {}
    for number, task in enumerate(TASKS):
        if task.hub:
            continue
        is_right = number % 2 == 0
        metadata = _npy(*([0] * len(task.metadata))) if task.metadata else b""
        folder = next((name for name in task.folders if name.startswith("vtab-")), task.folders[0])
        _classes(tmp_path, folder, [("red", 0 if is_right else 2, metadata)])
        if task.metric:
            # Of three classes the right one is always among five.
            expected[task.name] = float(is_right or task.metric.endswith("acc5"))
    cache = tmp_path / "hf_cache"
    write_flickr(cache)
    images = unpack(cache, "images_mscoco_2014_5k_test", COLOURS)
    coco = [row for row in retrieval_rows(images) if row["filename"] != "green"]
    write_cached_set(cache, "mscoco_2014_5k_test_image_text_retrieval", RETRIEVAL_SCHEMA, coco)
    write_games(cache)
    expected |= {"Flickr": (2 / 3 + 3 / 4) / 2, "MSCOCO": 1.0, "WinoGAViL": 1 / 3}
    summary = summarise(evaluate_model(ColourEncoder(), [str(tmp_path)], num_workers=0))
    assert summary is not None
    assert summary.scores == pytest.approx(expected)
    assert list(summary.scores) == [task.name for task in SCORED]
    average = summary.groups["Average"]
    assert (average.num_tasks, list(average.missing)) == (38, [])
    assert average.mean == pytest.approx(sum(expected.values()) / 38)
    assert 0.4 < average.mean < 0.7
    assert summary.groups["Retrieval"].mean == pytest.approx(sum(list(expected.values())[-3:]) / 3)


def test_names_without_test_are_known_and_give_way() -> None:
    for name, task in [
        ("wds_flickr30k", "Flickr"),  # CLIP_benchmark's, on the Hub
        ("wds_mscoco_captions", "MSCOCO"),
        ("wds_vtab-pets", "Oxford-IIIT Pet"),
        ("nlphuji___winogavil", "WinoGAViL"),
        ("nlphuji___flickr_1k_test_image_text_retrieval", "Flickr"),
    ]:
        found = find_task(name)
        assert found is not None
        assert found.name == task
    assert find_task("nlphuji___") is None
    assert find_task("nlphuji___cars") is None
    assert find_task("wds_mscoco_captions2017") is None
    bare, ours, hub = ({"mean_recall@1": share} for share in (0.1, 0.2, 0.3))
    both = {"a/wds_flickr30k": bare, "wds_flickr30k_test": ours}
    for results in (both, dict(reversed(both.items()))):
        summary = summarise(results)
        assert summary is not None
        assert summary.scores == {"Flickr": 0.2}
    summary = summarise({**both, "b/hf_cache/nlphuji___flickr_1k_test_image_text_retrieval": hub})
    assert summary is not None
    assert summary.scores == {"Flickr": 0.3}


def test_a_set_without_its_metadata_is_named_before_anything_is_measured(root: Path) -> None:
    shutil.rmtree(root / "wds_wilds-fmow_test")
    _classes(root, "wilds-fmow", [("red", 0, b"")])
    model = ColourEncoder()
    with pytest.raises(
        InputError, match=r"DataComp's FMoW needs a \.npy member with region, year, y beside every image"
    ):
        evaluate_model(model, [str(root)], num_workers=0)
    assert model.batches == []
