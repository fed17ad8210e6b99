"""Faces: found where they are drawn, not where there are none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curate.models.faces import find_weights
from curate.operators.face_boxes import FaceBoxes
from schemas.errors import InputError
from tests.contract import check_operator, column, picture_input, run
from tests.faces import draw_face

FINGERPRINT = "586e5044db3a4e069c3f01b959239f09ab798019b596a7d729e7a5a156820b77"


def measure(*pictures: np.ndarray, operator: FaceBoxes | None = None) -> list[dict[str, Any]]:
    output = run(operator or FaceBoxes(), {"image": picture_input(pictures)}, len(pictures))
    assert not any(output.errors)
    return [{name: column(output, name)[row] for name in FaceBoxes.writes.names} for row in range(len(pictures))]


def test_contract() -> None:
    output = check_operator(FaceBoxes(), fingerprint=FINGERPRINT)
    assert not any(column(output, "num_faces"))  # circles and squares


@pytest.mark.parametrize(("x", "y", "size"), [(160, 120, 160), (80, 90, 90), (230, 150, 110)])
def test_a_face_is_where_it_was_drawn(x: int, y: int, size: int) -> None:
    (found,) = measure(draw_face(x, y, size))
    assert found["num_faces"] == 1
    left, top, right, bottom = found["face_bboxes"][0]
    assert left < x / 320 < right
    assert top < y / 240 < bottom
    assert 0.3 < (right - left) * 320 / size < 1.1
    assert found["face_scores"][0] > 0.7
    assert found["face_area_ratio"] == pytest.approx((right - left) * (bottom - top), rel=1e-4)


def test_the_largest_comes_first() -> None:
    both = np.concatenate([draw_face(160, 120, 80), draw_face(160, 120, 180)], axis=1)
    (found,) = measure(both)
    areas = [(right - left) * (bottom - top) for left, top, right, bottom in found["face_bboxes"]]
    assert len(areas) == 2
    assert areas == sorted(areas, reverse=True)


def test_large_pictures_are_reduced() -> None:
    large = draw_face(1600, 1200, 1500, canvas=(3200, 2400))
    (found,) = measure(large)
    assert found["num_faces"] == 1


@pytest.mark.parametrize("shape", [(1, 1), (2, 20_000), (31, 31)])
@pytest.mark.parametrize("value", [0, 128, 255])
def test_odd_pictures_have_no_faces(shape: tuple[int, int], value: int) -> None:
    (found,) = measure(np.full((*shape, 3), value, np.uint8))
    assert found == {"face_bboxes": [], "face_scores": [], "num_faces": 0, "face_area_ratio": 0.0}


@pytest.mark.parametrize("shape", [(30, 640), (640, 30)])
def test_flat_pictures_give_the_same_after_any_other(shape: tuple[int, int]) -> None:
    """Their network once read what the picture before had left in memory."""
    random = np.random.default_rng(0)
    flat, other = (random.integers(0, 256, (*size, 3), np.uint8) for size in (shape, (480, 640)))
    found = measure(*[flat, other] * 40, operator=FaceBoxes(min_score=0.02))[::2]
    assert all(faces == found[0] for faces in found)


def test_other_weights_are_part_of_the_identity(tmp_path: Path) -> None:
    other = tmp_path / "other.onnx"
    other.write_bytes(Path(find_weights()).read_bytes() + b"x")
    assert FaceBoxes(weights=str(other)).identity() != FaceBoxes().identity()
    same = tmp_path / "same.onnx"
    same.write_bytes(Path(find_weights()).read_bytes())
    assert FaceBoxes(weights=str(same)).identity() == FaceBoxes().identity()


@pytest.mark.parametrize(
    ("parameters", "message"), [({"min_score": 0}, "min_score is 0"), ({"max_side": 8}, "max_side is 8")]
)
def test_wrong_parameters(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        FaceBoxes(**parameters)
