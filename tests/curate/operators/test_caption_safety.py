"""Word lists: whole words, whatever their case, accents and signs; lists of one's own."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.operators.caption_safety import CaptionSafety, fold, read_lists
from schemas.errors import InputError
from tests.contract import check_operator, column

FINGERPRINT = "dc49bb99b27bb367e4fdafa12f6475fb58cd552822c5e454de04911106e1c495"


def measure(caption: str | None, operator: CaptionSafety | None = None) -> dict[str, Any]:
    found = (operator or CaptionSafety()).load()(pa.table({"alt_text": pa.array([caption], pa.string())}))
    return {name: values[0] for name, values in found.items()}


def test_contract() -> None:
    output = check_operator(CaptionSafety(), fingerprint=FINGERPRINT)
    assert not any(column(output, "caption_is_unsafe"))


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("Free PORN videos", ["porn"]),
        ("free-porn_videos", ["porn"]),
        ("p\u00f3rn", ["porn"]),
        ("\uff30\uff2f\uff32\uff2e", ["porn"]),
        ("sex,tape", ["sex tape"]),
        ("porn, porn and gore", ["porn", "gore"]),
        ("Scunthorpe, Essex: a grape and a cocktail", []),
        ("gore, Al Gore and Gore-Tex boots", ["gore"]),
        ("stars seen by the naked eye, and stellar corpses", []),
        ("the naked eye of a naked man", ["naked"]),
        ("rapeseed fields in Sussex", []),
        ("", []),
        (None, []),
        ("\U0001f346\U0001f351", []),
        ("\x00\x07", []),
        ("x" * 100_000 + " porn", []),  # beyond what is read
    ],
)
def test_words(caption: str | None, words: list[str]) -> None:
    found = measure(caption)
    assert found["caption_unsafe_words"] == words
    assert found["caption_is_unsafe"] == bool(words)


def test_kinds_and_counts() -> None:
    found = measure("gore, heroin, GORE and nudity")
    assert found["caption_unsafe_kinds"] == ["sexual", "violence", "drugs"]
    assert found["caption_num_unsafe_words"] == 4
    assert found["caption_unsafe_words"] == ["gore", "heroin", "nudity"]


def test_lists_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "words.json"
    path.write_text(json.dumps({"fruit": ["Apple", "blood orange"], "red": ["apple"]}))
    found = measure("a blood-orange and an APPLE", CaptionSafety(words=str(path)))
    assert found["caption_unsafe_kinds"] == ["fruit", "red"]
    assert found["caption_unsafe_words"] == ["blood orange", "apple"]
    path.write_text(json.dumps({"innocent": ["apple pie"], "fruit": ["apple", "pie crust"]}))
    found = measure("apple pie crust, apple", CaptionSafety(words=str(path)))
    assert found["caption_unsafe_kinds"] == ["fruit"]
    assert found["caption_unsafe_words"] == ["pie crust", "apple"]
    assert found["caption_num_unsafe_words"] == 2
    plain = tmp_path / "words.txt"
    plain.write_text("# fruit\napple\n\n")
    assert measure("apple", CaptionSafety(words=str(plain)))["caption_unsafe_kinds"] == ["unsafe"]
    assert CaptionSafety(words=str(plain)).identity() != CaptionSafety(words=str(path)).identity()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "must hold words by kind"),
        ("{}", "must hold words by kind"),
        ('{"a": "b"}', "must hold words by kind"),
        ("{", "is no JSON"),
        ('{"a": ["--"]}', "has the word '--'"),
    ],
)
def test_wrong_lists(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "words.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_lists(str(path))
    with pytest.raises(InputError, match="does not exist"):
        read_lists(str(tmp_path / "other.json"))


@given(st.text())
def test_any_text_folds_to_spaced_words(text: str) -> None:
    folded = fold(text)
    assert folded[0] == folded[-1] == " "
    assert "  " not in folded.strip()
    measure(text)
