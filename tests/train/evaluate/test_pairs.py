import json
from pathlib import Path

import numpy as np
import pytest
import torch

from schemas.errors import InputError
from schemas.progress import SilentProgress
from tests.train.dataset_builder import encode_picture
from tests.train.evaluate.encoder import ColourEncoder
from tests.train.evaluate.test_folder import COLOURS, flat
from train.evaluate.features import encode_images
from train.evaluate.pairs import read_pairs
from train.evaluate.suite import evaluate_model
from train.evaluate.task import CompositionTask

RED, GREEN, BLUE = "250 10 10", "10 250 10", "10 10 250"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write pictures and two files in SugarCrepe's layout."""
    (tmp_path / "val2017").mkdir()
    for name, colour in COLOURS.items():
        (tmp_path / "val2017" / f"{name}.png").write_bytes(flat(colour))
    swap = {
        "0": {"filename": "red.png", "caption": RED, "negative_caption": GREEN},
        "1": {"filename": "green.png", "caption": GREEN, "negative_caption": BLUE},
        "2": {"filename": "red.png", "caption": BLUE, "negative_caption": RED},
    }
    add = {"0": {"filename": "blue.png", "caption": GREEN, "negative_caption": BLUE}}
    (tmp_path / "swap_obj.json").write_text(json.dumps(swap))
    (tmp_path / "add_att.json").write_text(json.dumps(add))
    return tmp_path


def test_sugarcrepe_is_read_and_measured_by_kind(folder: Path) -> None:
    model = ColourEncoder()
    (metrics,) = evaluate_model(model, [str(folder)], num_workers=0).values()
    assert metrics["composition_swap_obj"] == pytest.approx(2 / 3)
    assert metrics["composition_add_att"] == 0.0
    assert metrics["chance_composition_mean"] == 0.5
    assert metrics["num_composition_swap_obj"] == 3
    assert sum(model.batches) == 3  # every picture once
    (alone,) = evaluate_model(ColourEncoder(), [str(folder / "add_att.json")], num_workers=2).items()
    assert alone[0] == "add_att"
    assert alone[1]["composition_add_att"] == 0.0


def test_other_spellings(folder: Path) -> None:
    rows = [
        {"image": "red.png", "caption": RED, "negatives": {"order": [GREEN, BLUE], "relation": BLUE}},
        {"image_path": str(folder / "val2017" / "blue.png"), "true_caption": BLUE, "false_caption": RED},
        {"image": "green.png", "caption": GREEN, "negatives": [RED]},
    ]
    path = folder / "mine.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    (task,) = read_pairs(str(path)).tasks
    assert isinstance(task, CompositionTask)
    assert list(task.negatives) == [{"order": [GREEN, BLUE], "relation": [BLUE]}, {"mine": [RED]}, {"mine": [RED]}]
    assert evaluate_model(ColourEncoder(), [str(path)], num_workers=0)["mine"]["composition_mean"] == 1.0


def test_aro_shows_the_part_of_the_image_that_its_box_names(tmp_path: Path) -> None:
    pixels = np.full((40, 100, 3), COLOURS["green"], dtype=np.uint8)
    pixels[:, :30], pixels[10:30, 60:90] = COLOURS["red"], COLOURS["blue"]
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").write_bytes(encode_picture(pixels, "png"))
    # The keys of visual_genome_relation.json, and a row without a box.
    rows = [
        {"image_path": "1.png", "bbox_x": 0, "bbox_y": 0, "bbox_w": 30, "bbox_h": 40, "true_caption": RED},
        {"image_path": "1.png", "bbox_x": 60, "bbox_y": 10, "bbox_w": 30, "bbox_h": 20, "true_caption": BLUE},
        {"image_path": "1.png", "bbox_x": 60.4, "bbox_y": 9.6, "bbox_w": 30, "bbox_h": 20, "true_caption": BLUE},
        {"image_path": "1.png", "true_caption": "80 150 90"},
    ]
    wrong = [{"false_caption": text, "relation_name": "left of"} for text in (BLUE, RED, GREEN, RED)]
    path = tmp_path / "visual_genome_relation.json"
    path.write_text(json.dumps([row | other for row, other in zip(rows, wrong, strict=True)]))
    model = ColourEncoder()
    metrics = evaluate_model(model, [str(path)], num_workers=0)["visual_genome_relation"]
    assert metrics["composition_visual_genome_relation"] == 1.0
    assert sum(model.batches) == 3  # every part once; that of the third row is the second's, rounded
    (task,) = read_pairs(str(path)).tasks
    assert isinstance(task, CompositionTask)
    features = encode_images(model, task.images, batch_size=4, num_workers=0, progress=SilentProgress())
    expected = model.encode_text([RED, BLUE, BLUE])
    torch.testing.assert_close(features[:3], expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    "box",
    [
        {"bbox_x": 0, "bbox_y": 0, "bbox_w": 3},
        {"bbox_x": 0, "bbox_y": 0, "bbox_w": 0, "bbox_h": 5},
        {"bbox_x": 0, "bbox_y": 0, "bbox_w": "3", "bbox_h": 5},
        {"bbox_x": 0, "bbox_y": 0, "bbox_w": 10**400, "bbox_h": 5},
        {"bbox_x": float("nan"), "bbox_y": 0, "bbox_w": 5, "bbox_h": 5},
    ],
)
def test_boxes_that_are_none_are_named(folder: Path, box: dict[str, object]) -> None:
    path = folder / "x.jsonl"
    path.write_text(json.dumps({"image": "red.png", "caption": "a", "negative_caption": "b", **box}))
    with pytest.raises(InputError, match=r"x\.jsonl entry 1 has no part of an image in bbox_x, bbox_y, bbox_w, bbox_h"):
        read_pairs(str(path))


def test_mistakes_are_named(folder: Path) -> None:
    path = folder / "x.jsonl"
    for content, message in [
        ('{"image": "red.png", "caption": "a"}', r"x\.jsonl entry 1 has none of negative_caption, false_caption"),
        (
            '{"image": "grey.png", "caption": "a"}',
            r"image 'grey\.png' of .*x\.jsonl is neither in .* nor in its folders",
        ),
        ("[1]", r"x\.jsonl is no list of objects"),
        ("{", r"x\.jsonl is not JSON"),
        ("", r"x\.jsonl holds no pairs"),
    ]:
        path.write_text(content)
        with pytest.raises(InputError, match=message):
            read_pairs(str(path))
    path.write_text(json.dumps({"image": "/nowhere/a.png", "caption": "a", "negative_caption": "b"}))
    with pytest.raises(InputError, match=r"image /nowhere/a\.png is missing"):
        evaluate_model(ColourEncoder(), [str(path)], num_workers=0)
