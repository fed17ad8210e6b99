from collections import Counter

import pytest

from schemas.errors import InputError
from train.captions import Mixture

AVAILABLE = ["alt_text", "recaption", "rewrite"]
DRAWS = [(number + 0.5) / 10_000 for number in range(10_000)]


def test_columns_come_at_their_probabilities() -> None:
    mixture = Mixture.resolve({"alt_text": 1, "recaption": 2, "rewrite[*]": 1}, AVAILABLE)
    assert mixture.probabilities == (0.25, 0.5, 0.25)
    counts = Counter(mixture.draw(["a", "b", ["a c", "a d"]], draw, 0.9) for draw in DRAWS)
    assert counts == {"a": 2500, "b": 5000, "a d": 2500}


def test_the_elements_of_a_list_are_drawn_evenly_and_blank_ones_left_out() -> None:
    mixture = Mixture.resolve({"rewrite[*]": 1}, ["rewrite"])
    counts = Counter(mixture.draw([["c", "", None, "d ", "  "]], 0.3, draw) for draw in DRAWS)
    assert counts == {"c": 5000, "d": 5000}


@pytest.mark.parametrize("blank", [None, "", "  ", [], [None, " "]])
def test_a_missing_caption_is_drawn_again_among_the_others(blank: object) -> None:
    mixture = Mixture.resolve({"alt_text": 0.5, "recaption": 0.1, "rewrite": 0.4}, AVAILABLE)
    counts = Counter(mixture.draw([blank, "b", "c"], draw, 0.0) for draw in DRAWS)  # type: ignore[list-item]
    assert counts["b"] == pytest.approx(2000, abs=2)
    assert counts["c"] == pytest.approx(8000, abs=2)


def test_laclips_draw_is_even_over_the_original_and_four_rewrites() -> None:
    mixture = Mixture.resolve({"alt_text": 0.2, "rewrite[*]": 0.8}, AVAILABLE)
    columns = ["web text", None, ["one a", "two b", "three c", "four d"]]
    captions = [columns[AVAILABLE.index(name)] for name in mixture.columns]
    drawn = Counter(mixture.draw(captions, draw, element) for draw in DRAWS[::100] for element in DRAWS[::100])
    assert drawn == {"web text": 2000, "one a": 2000, "two b": 2000, "three c": 2000, "four d": 2000}


@pytest.mark.parametrize("short", [None, "", "  ", "cats", " cats "])
def test_an_element_that_says_nothing_gives_way_to_the_web_text(short: str | None) -> None:
    mixture = Mixture.resolve({"alt_text": 0.2, "rewrite[*]": 0.8}, AVAILABLE)
    columns = ["web text", None, ["one a", short, short, short]]
    captions = [columns[AVAILABLE.index(name)] for name in mixture.columns]
    drawn = Counter(mixture.draw(captions, draw, element) for draw in DRAWS[::100] for element in DRAWS[::100])
    assert drawn == {"web text": 8000, "one a": 2000}
    # Without a web text the list makes do with what it has.
    alone = Mixture.resolve({"rewrite[*]": 1}, ["rewrite"])
    assert {alone.draw([["cats", None]], 0.5, draw) for draw in DRAWS[::100]} == {"cats"}


def test_one_word_is_enough_where_words_are_not_parted() -> None:
    mixture = Mixture.resolve({"rewrite[*]": 1}, AVAILABLE)
    assert mixture.draw([["\u4e00\u53ea\u732b"], "web text"], 0.5, 0.5) == "\u4e00\u53ea\u732b"


def test_a_column_of_probability_zero_is_only_fallen_back_to() -> None:
    mixture = Mixture.resolve({"recaption": 1, "alt_text": 0}, AVAILABLE)
    assert {mixture.draw(["b", "a"], draw, 0.5) for draw in DRAWS[::100]} == {"b"}
    assert {mixture.draw([None, "a"], draw, 0.5) for draw in DRAWS[::100]} == {"a"}


def test_the_web_text_is_the_last_resort_without_being_named() -> None:
    mixture = Mixture.resolve({"rewrite[*]": 1}, AVAILABLE)
    assert mixture.columns == ("rewrite", "alt_text")
    assert mixture.draw([[], "web"], 0.99, 0.99) == "web"
    assert mixture.draw([[], None], 0.99, 0.99) == ""


def test_a_column_whose_name_ends_in_the_suffix_is_taken_as_it_is() -> None:
    assert Mixture.resolve({"rewrite[*]": 1}, ["rewrite[*]"]).columns == ("rewrite[*]",)


def test_an_unknown_column_is_refused_with_those_there_are() -> None:
    with pytest.raises(InputError, match=r"caption column 'recap' is not in the dataset, which has alt_text, rewrite"):
        Mixture.resolve({"recap": 1}, ["alt_text", "rewrite"])


@pytest.mark.parametrize("captions", [{}, {"alt_text": 0.0}, {"alt_text": -1.0}, {"alt_text": float("nan")}])
def test_probabilities_that_are_none_are_refused(captions: dict[str, float]) -> None:
    with pytest.raises(InputError, match="caption probabilities are 0 or more and not all 0"):
        Mixture.resolve(captions, AVAILABLE)
