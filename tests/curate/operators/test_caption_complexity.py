"""The columns of a parsed caption."""

import importlib.util

import pytest

from curate.operators.caption_complexity import CaptionComplexity
from schemas.errors import InputError
from tests.contract import check_operator, column

FINGERPRINT = "05e95d51d97786e1a460353a608f406d38c3b4bce3396e0b79ef31f075136a74"


def test_contract() -> None:
    output = check_operator(CaptionComplexity(), fingerprint=FINGERPRINT)
    # "a red circle number 0 on grey ground"
    assert column(output, "caption_parse")[0] == ["number: red, circle", "ground: grey"]
    assert column(output, "caption_complexity")[0] == 2
    assert column(output, "caption_num_objects")[0] == 2
    assert column(output, "caption_num_attributes")[0] == 3
    assert column(output, "caption_num_actions")[0] == 0
    # A missing caption says nothing.
    assert column(output, "caption_parse")[5] == []
    assert column(output, "caption_complexity")[5] == 0


def test_an_unknown_parser_is_refused() -> None:
    with pytest.raises(InputError, match="one of rules, spacy"):
        CaptionComplexity(parser="best")


@pytest.mark.skipif(importlib.util.find_spec("spacy") is not None, reason="spaCy is installed")
def test_without_spacy_the_message_says_what_to_install() -> None:
    with pytest.raises(InputError, match=r"winnow\[spacy\]"):
        CaptionComplexity(parser="spacy").load()
