"""One evaluation of a run by everything at once, and that it is not done twice."""

import json
from pathlib import Path

import pytest

from pipelines.evaluation import EVALUATION_FILE, evaluate_run, find_evaluation
from pipelines.recipe import EvaluateSection
from tests.train.dataset_builder import Sample, encode_picture, make_uid, write_dataset
from tests.train.training import SCENES, TINY, draw_scene
from train.config import TrainConfig
from train.trainer import train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a dataset of labelled scenes, and train on it for a moment."""
    root = tmp_path_factory.mktemp("evaluation")
    samples = [
        Sample(
            uid=make_uid(number),
            image=encode_picture(draw_scene(number, number // len(SCENES)), quality=90),
            captions={"alt_text": f"a {colour} {shape} on the {place} of a grey wall"},
            extra={"colour": colour, "place": place, "relevance": 1 + number % 3},
        )
        for number in range(2 * len(SCENES))
        for colour, shape, place in [SCENES[number % len(SCENES)]]
    ]
    write_dataset(root / "set", samples)
    train(str(root / "set"), str(root / "run"), TrainConfig(**{**TINY, "samples_seen": 160}))  # type: ignore[arg-type]
    return root


def test_everything_is_measured_once(folder: Path) -> None:
    section = EvaluateSection(
        data=("dataset",),
        label_column="colour",
        group_column="place",
        relevance_column="relevance",
        compositional=True,
        probe=True,
        shots=(2,),
        embedding=True,
        trigger="patch",
        target="red",
    )
    assert find_evaluation(str(folder / "run"), section, str(folder / "set")) is None
    results, was_current = evaluate_run(str(folder / "run"), section, str(folder / "set"))
    assert not was_current
    metrics = results["tiny"]
    assert {
        "text_to_image_recall@1",
        "text_to_image_ndcg@10",
        "acc1",
        "worst_place_acc1",
        "composition_attribution",
        "composition_order_all",
    } <= set(metrics)
    assert {
        "probe_acc1",
        "shots_2_acc1_std",
        "zero_shot_start_2_acc1",
        "modality_gap",
        "image_uniformity",
        "attack_success_rate",
    } <= set(metrics)
    assert metrics["probe_acc1"] > metrics["chance_probe_acc1"]
    again, was_current = evaluate_run(str(folder / "run"), section, str(folder / "set"))
    assert was_current
    assert again == results == json.loads((folder / "run" / EVALUATION_FILE).read_text())["results"]
    # What was measured in another way is measured again.
    older = json.loads((folder / "run" / EVALUATION_FILE).read_text())
    older["identity"]["version"] -= 1
    (folder / "run" / EVALUATION_FILE).write_text(json.dumps(older))
    assert find_evaluation(str(folder / "run"), section, str(folder / "set")) is None
    other = EvaluateSection(data=("dataset",), embedding=True)
    assert find_evaluation(str(folder / "run"), other, str(folder / "set")) is None
