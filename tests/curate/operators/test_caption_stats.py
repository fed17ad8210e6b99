"""Counts, ratios and flags of captions."""

from typing import Any

import pyarrow as pa
import pytest

from curate.columns import Input
from curate.operators.caption_stats import CaptionStats
from tests.contract import check_operator, column, run
from tests.pool import BORDER_ROW, NULL_CAPTION_ROW

FINGERPRINT = "d52cb300a61df406bd8aec7b73539ba03345cd6673218b9a32c6272c440e5c0e"


def measure(*captions: str | None) -> dict[str, list[Any]]:
    output = run(CaptionStats(), {"alt_text": Input.from_column(pa.array(captions, pa.string()))}, len(captions))
    return {name: column(output, name) for name in CaptionStats.writes.names}


def test_contract() -> None:
    output = check_operator(CaptionStats(), fingerprint=FINGERPRINT)
    assert column(output, "caption_num_words")[0] == 8
    assert column(output, "caption_num_words")[NULL_CAPTION_ROW] == 0
    assert column(output, "caption_is_file_name")[BORDER_ROW] is True
    assert not any(output.errors)


def test_counts_and_ratios() -> None:
    found = measure("The cat, the CAT & 42 dogs")
    assert found["caption_num_words"] == [7]
    assert found["caption_num_chars"] == [26]
    # "cat," is another word than "cat"; "the" and "The" are one.
    assert found["caption_repetition_ratio"][0] == pytest.approx(1 / 7)
    assert found["caption_digit_ratio"][0] == pytest.approx(2 / 26)
    assert found["caption_symbol_ratio"][0] == pytest.approx(2 / 26)
    assert found["caption_upper_ratio"][0] == pytest.approx(4 / 16)


def test_characters_are_unicode() -> None:
    found = measure("日本の猫", "ÉTÉ à Paris", "हिन्दी")
    assert found["caption_num_chars"] == [4, 11, 6]
    assert found["caption_num_words"] == [1, 3, 1]
    assert found["caption_upper_ratio"][1] == pytest.approx(4 / 9)
    assert found["caption_symbol_ratio"] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("caption", [None, "", "   "])
def test_nothing_is_zero(caption: str | None) -> None:
    found = measure(caption)
    assert [found[name][0] for name in ("caption_num_words", "caption_repetition_ratio", "caption_upper_ratio")] == [
        0,
        0,
        0,
    ]
    assert not any(found[name][0] for name in ("caption_has_url", "caption_is_file_name", "caption_is_boilerplate"))


@pytest.mark.parametrize(
    "caption",
    ["see https://example.org/x", "www.shop.example for more", "photo from flickr.com", "Visit example.co.uk/page now"],
)
def test_urls(caption: str) -> None:
    assert measure(caption)["caption_has_url"] == [True]


@pytest.mark.parametrize(
    "caption", ["a cat on a mat", "version 2.0 of it", "e.g. a dog. and a cat", "St.Petersburg at night"]
)
def test_not_urls(caption: str) -> None:
    assert measure(caption)["caption_has_url"] == [False]


@pytest.mark.parametrize(
    "caption",
    [
        "IMG_0042.JPG",
        "IMG_20190612_142233",
        "DSC01234",
        "dscn 0012",
        "my holiday photo 3.jpg",
        "e3b0c44298fc1c149afbf4c8996fb924",
        "123e4567-e89b-12d3-a456-426614174000",
        "20190612_142233",
        "screenshot 2020-01-01 10.22.33",
        "P1010023",
        "image(12)",
        "beach-sunset-final.png",
    ],
)
def test_file_names(caption: str) -> None:
    assert measure(caption)["caption_is_file_name"] == [True]


@pytest.mark.parametrize(
    "caption",
    [
        "a photo of a beach",
        "image of two dogs",
        "Boeing 747",
        "the file photo.jpg shows a man who is walking along the river in the evening light",
        "defaced",
        "Apollo 11",
    ],
)
def test_not_file_names(caption: str) -> None:
    assert measure(caption)["caption_is_file_name"] == [False]


@pytest.mark.parametrize(
    "caption",
    [
        "Image not available",
        "No image available",
        "Click to enlarge",
        "click here for more information",
        "image may contain: person, outdoor",
        "Thumbnail 3",
        "placeholder",
        "Logo",
        "All rights reserved",
        "digital art selected for the #",
        "Share on Facebook",
        "photo coming soon",
        "Buy now",
        "View full size",
        "No description available.",
        "no alt text provided",
        "Buy now with free shipping",
        "Slide 3 of 12",
        "image 4/10",
        "Sign up for our newsletter",
        "This photo is subject to copyright",
    ],
)
def test_boilerplate(caption: str) -> None:
    assert measure(caption)["caption_is_boilerplate"] == [True]


@pytest.mark.parametrize(
    "caption",
    [
        "a photo of a woman who clicks a pen",
        "the logo of a football club on a red shirt",
        "an image of a lion in the grass",
        "people view the full moon",
        "a default judge in a court room",
        "stock of books on a shelf",
        "home of the president",
        "shares on the floor of an exchange",
        "Baby clothes, free shipping",
        "Shop online in China",
        "2 of 5 kittens asleep",
        "a woman signs up a new member",
    ],
)
def test_not_boilerplate(caption: str) -> None:
    assert measure(caption)["caption_is_boilerplate"] == [False]


def test_kinds_of_characters_agree_with_regular_expressions() -> None:
    import pyarrow.compute as pc

    from curate.operators.caption_stats import count_kinds

    every = [chr(code) for code in [*range(128), 0xC9, 0xE9, 0x663, 0x4E00, 0x20AC, 0x301, 0xA0, 0x3000, 0x1F600]]
    # A slice, so that offsets do not start at 0.
    texts = pa.array(["left out", "", "A b, 3", "É 42 €", "".join(every), *every]).slice(1)
    patterns = [r"\p{Nd}", r"\p{Lu}", r"\p{L}", r"[^\p{L}\p{M}\p{N}\p{Z}\s]"]
    expected = [pc.count_substring_regex(texts, pattern).to_pylist() for pattern in patterns]
    assert count_kinds(texts).tolist() == expected
