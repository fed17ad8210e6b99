"""CAT's rule on strings: runs of characters, words that can be read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.text_overlap import letters, longest_common_run, seen_word_ratio


@pytest.mark.parametrize(
    ("strings", "caption", "run"),
    [
        (["SALE"], "summer sale", 4),
        (["SUMMER"], "summer sale", 6),
        (["mersa"], "summer sale", 5),  # a run may span words of the caption
        (["sum", "mer"], "summer sale", 3),  # but not two lines of text
        (["S.U-M M:E"], "summer", 5),
        (["50% OFF"], "now 50% off everything", 5),
        (["stra\u00dfe"], "STRASSE", 7),
        (["LE CHOL\u00c9RA"], "captioned Le Cholera", 9),
        (["MJOLK"], "mjo\u0308lk", 5),  # an accent by itself does not end a word, nor a run
        (["\u0439\u043e\u0434"], "\u0438\u0306\u043e\u0434", 3),
        (["\u304c\u3063\u3053\u3046"], "\u304b\u3063\u3053\u3046", 3),  # where it makes another letter it counts
        (["CO\u2082"], "CO2 and acetaldehyde", 3),
        (["\uff21\uff22\uff23"], "abc", 3),
        (["COLATM"], "cola\u2122", 4),  # a sign is no letter
        (["1/2 1/4"], "\u00bd \u00bc", 0),
        (["\u05e9\u05dc\u05d5\u05dd"], "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd", 4),
        (["\u732b\u306e\u5199\u771f"], "\u732b\u306e\u5199\u771f\u3067\u3059", 4),
        ([], "summer", 0),
        (["..."], "...", 0),
        (["summer"], "", 0),
        (["a" * 1000], "a" * 100_000, 1000),
    ],
)
def test_longest_common_run(strings: list[str], caption: str, run: int) -> None:
    assert longest_common_run(strings, caption) == run


@given(
    st.lists(st.text(st.sampled_from("abc "), max_size=8), max_size=3), st.text(st.sampled_from("abc "), max_size=12)
)
def test_equals_trying_every_run(strings: list[str], caption: str) -> None:
    runs = {
        string[start:stop]
        for string in map(letters, strings)
        for start in range(len(string))
        for stop in range(start + 1, len(string) + 1)
    }
    assert longest_common_run(strings, caption) == max((len(r) for r in runs if r in letters(caption)), default=0)


@pytest.mark.parametrize(
    ("strings", "caption", "ratio"),
    [
        (["twored circles"], "two red circles", 1.0),
        (["Chandra"], "gas and dust", 0.0),  # a short word inside another is not that word
        (["two redo"], "two red circles", 1 / 3),
        (["tworedx"], "two red circles", 0.0),
        (["anoldcat"], "an old cat", 1.0),  # words of two characters help to take a run apart
        (["YOGHURT36"], "mild yoghurt", 0.5),
        (["yog hurt"], "yoghurt", 1.0),
        (["thetheir"], "the heir their", 2 / 3),
        (["a" * 999], "aaa " + "a" * 999, 1.0),
        (["two"], "two red circles", 1 / 3),
        (["cir", "cles"], "circles", 0.0),
        (["LE CHOL\u00c9RA"], "the Cholera", 0.5),
        (["ma\u00f1ana"], "man\u0303ana", 1.0),
        (["x"], "a b", None),
        ([], "", None),
        ([], "a dog", 0.0),
    ],
)
def test_seen_word_ratio(strings: list[str], caption: str, ratio: float | None) -> None:
    assert seen_word_ratio(strings, caption) == (None if ratio is None else pytest.approx(ratio))
