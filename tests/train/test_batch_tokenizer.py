from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from tests.schemas.test_direct_tokenizer import CAPTIONS, STRANGE, Shouting, make_words
from train.batch_tokenizer import BatchTokenizer
from train.tokenizer import tokenize, train_tokenizer

# Enough for several threads.
TEXTS = [*CAPTIONS, *STRANGE, *(f"a red dog and {number} cats" for number in range(700))]


@pytest.mark.parametrize("trim", [True, False])
@pytest.mark.parametrize("make", [lambda: train_tokenizer(CAPTIONS, 560, 16), make_words])
def test_ids_are_those_of_the_tokenizers_own_call(make: Callable[[], PreTrainedTokenizerBase], trim: bool) -> None:
    tokenizer = make()
    batch = BatchTokenizer(tokenizer, 16, trim=trim)
    assert batch.is_direct
    for texts in (TEXTS, TEXTS[:3], ["cat"], [""]):
        for found, expected in zip(batch(texts), tokenize(tokenizer, texts, 16, trim=trim), strict=True):
            assert found.dtype == expected.dtype
            assert torch.equal(found, expected)


@pytest.mark.parametrize("make", [lambda: make_words(Shouting), lambda: make_words(padding_side="left")])
def test_a_tokenizer_with_ways_of_its_own_is_asked_itself(make: Callable[[], PreTrainedTokenizerBase]) -> None:
    tokenizer = make()
    batch = BatchTokenizer(tokenizer, 8, trim=True)
    assert not batch.is_direct
    for found, expected in zip(batch(["a red dog", "a"]), tokenize(tokenizer, ["a red dog", "a"], 8), strict=True):
        assert torch.equal(found, expected)
