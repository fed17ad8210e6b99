"""Text that was drawn into pictures is found, read and compared with the caption."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageDraw, ImageFont

from curate.columns import Input
from curate.models.ocr import Spotted
from curate.operators.text_spotting import TextSpotting
from schemas.errors import InputError
from tests.contract import check_operator, column, picture_input, run

pytest.importorskip("rapidocr", reason="the OCR engine is an extra: pip install 'winnow[ocr]'")

FINGERPRINT = "11f41cc3faedb1278b1306384927cb1d168a4b36e3607754f580669f67d9a9d3"


def with_text(text: str, *, width: int = 240, height: int = 120, size: int = 24, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(60, 120, (height, width, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    ImageDraw.Draw(picture).text((10, height // 3), text, fill=(255, 255, 255), font=ImageFont.load_default(size))
    return np.asarray(picture)


def spot(operator: TextSpotting, pictures: list[np.ndarray], captions: list[str | None]) -> dict[str, list[Any]]:
    inputs = {"image": picture_input(pictures), "alt_text": Input.from_column(pa.array(captions, pa.string()))}
    output = run(operator, inputs, len(pictures))
    assert not any(output.errors)
    return {name: column(output, name) for name in operator.writes.names}


def test_contract() -> None:
    output = check_operator(TextSpotting(), fingerprint=FINGERPRINT)
    assert column(output, "text_caption_ratio")[5] is None  # no caption
    assert column(output, "text_matches_caption")[5] is False


def test_drawn_text_is_read() -> None:
    found = spot(TextSpotting(), [with_text("SUMMER SALE"), with_text("")], ["The Summer Sale is on", "a grey wall"])
    assert found["text_strings"][0] == ["SUMMER SALE"]
    assert found["text_confidences"][0][0] > 0.9
    assert found["text_overlap_num_chars"][0] == len("summersale")
    assert found["text_caption_ratio"][0] == pytest.approx(2 / 3)  # the, summer, sale; "is" and "on" are too short
    assert found["text_matches_caption"] == [True, False]
    left, top, right, bottom = found["text_boxes"][0][0]
    assert 0 <= left < 0.1 < right < 0.9
    assert 0.2 < top < 0.45 < bottom < 0.8
    assert found["text_area_ratio"][0] == pytest.approx((right - left) * (bottom - top), abs=0.03)
    assert found["text_strings"][1] == []
    assert found["text_area_ratio"][1] == 0.0


def test_a_small_picture_is_read() -> None:
    found = spot(TextSpotting(), [with_text("two red", width=96, height=64, size=14)], ["two red circles"])
    assert found["text_matches_caption"] == [True]


@pytest.mark.parametrize(
    ("text", "confidence", "caption", "matches"),
    [
        ("hello", 0.8, "hello world", True),
        ("hello", 0.7999, "hello world", False),
        ("hell", 0.99, "hello world", False),
        ("low", 0.99, "hello world", False),
        ("lowor", 0.99, "hello world", True),
        ("HELLO", 0.99, "Hello", True),
        ("h-e-l-l-o", 0.99, "hello", True),
        ("jello", 0.99, "hello", False),
        ("hello", 0.99, "", False),
    ],
)
def test_the_rule_at_its_boundaries(text: str, confidence: float, caption: str, matches: bool) -> None:
    corners = np.array([[0, 0], [10, 0], [10, 5], [0, 5]], np.float32)
    row = TextSpotting()._describe([Spotted(text, confidence, corners)], (20, 40), caption)
    assert row["text_matches_caption"] is matches
    assert row["text_boxes"] == [[0.0, 0.0, 0.25, 0.25]]
    assert row["text_corners"] == [[0.0, 0.0, 0.25, 0.0, 0.25, 0.25, 0.0, 0.25]]


def test_two_lines_do_not_make_a_run() -> None:
    corners = np.zeros((4, 2), np.float32)
    row = TextSpotting()._describe([Spotted("hel", 1.0, corners), Spotted("lo", 1.0, corners)], (20, 40), "hello")
    assert row["text_overlap_num_chars"] == 3


def test_lines_that_overlap_count_once() -> None:
    corners = np.array([[0, 0], [20, 0], [20, 10], [0, 10]], np.float32)
    lines = [Spotted("one", 1.0, corners), Spotted("two", 1.0, corners + np.float32([0, 5]))]
    assert TextSpotting()._describe(lines, (20, 40), "")["text_area_ratio"] == pytest.approx(15 * 20 / 800, abs=0.06)


def test_a_slanted_line_is_given_by_its_corners() -> None:
    corners = np.array([[-2, 8], [8, -2], [22, 12], [12, 22]], np.float32)
    row = TextSpotting()._describe([Spotted("slanted", 1.0, corners)], (20, 40), "")
    assert row["text_corners"] == [pytest.approx([0, 0.4, 0.2, 0, 0.55, 0.6, 0.3, 1])]
    assert row["text_boxes"] == [pytest.approx([0, 0, 0.55, 1])]


def test_a_lone_character_and_a_guess_are_no_text() -> None:
    corners = np.array([[0, 0], [10, 0], [10, 5], [0, 5]], np.float32)
    lines = [
        Spotted("Y", 0.99, corners),
        Spotted("\u2161", 0.99, corners),
        Spotted("guess", 0.49, corners),
        Spotted("ok", 0.5, corners),
    ]
    row = TextSpotting()._describe(lines, (20, 40), "guess ok Y")
    assert row["text_strings"] == ["ok"]
    assert row["text_area_ratio"] == pytest.approx(1 / 16, abs=0.03)
    assert row["text_overlap_num_chars"] == 0  # half sure is not enough for the caption


@pytest.mark.parametrize(
    ("text", "confidence", "side", "is_text"),
    [
        ("or", 0.65, 19, False),  # as an emoji was read
        ("1V", 0.83, 15, False),
        ("VS", 0.99, 11, True),  # a button that shows two letters
        ("VS", 0.9, 11, True),
        ("918", 0.58, 19, False),
        ("HOSIRY", 0.62, 6, True),
        ("ok", 0.5, 5, True),  # 3 % of the picture per letter
        ("ok", 0.5, 6, False),  # 4.5 %
    ],
)
def test_a_drawing_is_no_letter(text: str, confidence: float, side: int, is_text: bool) -> None:
    corners = np.array([[0, 0], [side, 0], [side, side], [0, side]], np.float32)
    row = TextSpotting()._describe([Spotted(text, confidence, corners)], (20, 20), text)
    assert row["text_strings"] == ([text] if is_text else [])
    assert (row["text_area_ratio"] > 0) is is_text
    assert len(row["text_boxes"]) == is_text


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((1, 1, 3), np.uint8),
        np.zeros((2, 20_000, 3), np.uint8),
        np.full((20_000, 2, 3), 255, np.uint8),
        np.zeros((300, 300, 3), np.uint8),
        np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8),
        with_text("WALL OF TEXT " * 40, width=2000, height=300),
    ],
    ids=["1x1", "20000x2", "2x20000", "black", "noise", "wide"],
)
def test_hostile_pictures(picture: np.ndarray) -> None:
    found = spot(TextSpotting(), [picture], ["\u202e" + "x" * 100_000])
    assert 0 <= found["text_area_ratio"][0] <= 1
    assert all(0 <= value <= 1 for box in found["text_boxes"][0] for value in box)


def test_only_the_largest_lines_are_read() -> None:
    picture = np.concatenate([with_text("SMALL", size=14), with_text("LARGE", size=40)])
    assert spot(TextSpotting(max_strings=1), [picture], [None])["text_strings"] == [["LARGE"]]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [({"min_confidence": 1.5}, "must be 0 to 1"), ({"window": 0}, "window is 0"), ({"max_side": 0}, "max_side is 0")],
)
def test_wrong_parameters_are_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TextSpotting(**parameters)
