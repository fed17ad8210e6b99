"""Templates of captions, and how many captions share one."""

from typing import Any

import pyarrow as pa
import pytest

from curate.operators.caption_template import CaptionTemplate
from tests.contract import check_pool_operator

FINGERPRINT = "c25d84550393067c73bb90f1a3a3f5c1933c53108253e5c3ca649af3fdf4561c"


def check(captions: list[str | None]) -> dict[str, list[Any]]:
    rows = pa.table({
        "shard": pa.array([0] * len(captions), pa.int32()),
        "row": pa.array(range(len(captions)), pa.int32()),
        "uid": [f"{row:032x}" for row in range(len(captions))],
        "alt_text": pa.array(captions, pa.string()),
    })
    return check_pool_operator(CaptionTemplate(), fingerprint=FINGERPRINT, rows=rows).to_pydict()


def test_captions_of_one_template_fall_together() -> None:
    found = check([
        "photo of Maria Lopez at Paris | stock image 12345",
        "photo of John Smith at New York | stock image 99",
        "photo of John Smith at New York | stock image 99",
        "a dog on the beach",
        None,
        "   ",
    ])
    template = "photo of <name> at <name> | stock image <number>"
    assert found["caption_template"] == [template] * 3 + ["a dog on the beach", None, None]
    # The same caption twice is one caption of the template.
    assert found["caption_template_num_captions"] == [2, 2, 2, 1, None, None]
    assert found["caption_template_ratio"][:4] == pytest.approx([2 / 3, 2 / 3, 2 / 3, 1 / 3])
    assert found["error"] == [None] * 4 + ["no alt_text"] * 2


@pytest.mark.parametrize(
    ("caption", "template"),
    [
        ("IMG_2031.JPG", "<file>"),
        ("see https://example.com/a?b=1 now", "see <url> now"),
        ("write to a.b@example.org", "write to <mail>"),
        ("$19.99 off, 1,200 x 800, 50%", "<number> off, <number> x <number>"),
        ("Bank of the West", "<name>"),
        ("\u00c9mile Zola's house", "<name> house"),
        ("deadbeef00112233 figure", "<number> figure"),
        ("it's a 'quoted' one", "it's a 'quoted' one"),
        ("\U0001f600\U0001f600", "\U0001f600\U0001f600"),
        ("\u05e9\u05dc\u05d5\u05dd", "\u05e9\u05dc\u05d5\u05dd"),
        ("x" * 100_000, "x" * 100_000),
    ],
)
def test_what_is_masked(caption: str, template: str) -> None:
    assert check([caption])["caption_template"] == [template]


@pytest.mark.parametrize(
    ("captions", "num_captions"),
    [
        (["Stir Fry Mango Chicken", "Real Housewives"], 1),
        (["Wrecked By Love by Lauren Smith", "Origins by Ann Li"], 1),
        (["Nike 6.0 Zoom 2", "Canon 5.0 Kit 9"], 1),
        (["Yarn at example.com", "Wool at example.com"], 2),
        (["portrait of Ann Li", "portrait of Bo Ek"], 2),
        (["\u0444\u043e\u0442\u043e 1", "\u0444\u043e\u0442\u043e 2"], 2),
    ],
)
def test_a_template_has_a_word_of_its_own(captions: list[str | None], num_captions: int) -> None:
    found = check(captions)
    assert found["caption_template"][0] == found["caption_template"][1]
    assert found["caption_template_num_captions"] == [num_captions] * 2
    assert found["caption_template_ratio"] == [num_captions / 2] * 2
