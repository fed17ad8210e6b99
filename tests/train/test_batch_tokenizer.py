from collections.abc import Callable

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tests.train.test_tokenizer import CAPTIONS, STRANGE
from train.batch_tokenizer import BatchTokenizer
from train.tokenizer import tokenize, train_tokenizer

TEXTS = [*CAPTIONS, *STRANGE, "cat " * 40, *(f"a red dog and {number} cats" for number in range(700))]


class Shouting(PreTrainedTokenizerFast):
    """Does something in Python that its Rust half knows nothing of."""

    def __call__(self, text, **options):
        return super().__call__([one.upper() for one in text], **options)


def words(kind: type[PreTrainedTokenizerFast] = PreTrainedTokenizerFast, **options: object) -> PreTrainedTokenizerBase:
    vocabulary = {
        word: number for number, word in enumerate(["[UNK]", "[PAD]", "a", "red", "dog", "RED", "DOG", "cat"])
    }
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return kind(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", **options)


@pytest.mark.parametrize("trim", [True, False])
@pytest.mark.parametrize("make", [lambda: train_tokenizer(CAPTIONS, 560, 16), words])
def test_ids_are_those_of_the_tokenizers_own_call(make: Callable[[], PreTrainedTokenizerBase], trim: bool) -> None:
    tokenizer = make()
    batch = BatchTokenizer(tokenizer, 16, trim=trim)
    assert batch.is_direct
    for texts in (TEXTS, TEXTS[:3], ["cat"], [""]):
        for found, expected in zip(batch(texts), tokenize(tokenizer, texts, 16, trim=trim), strict=True):
            assert found.dtype == expected.dtype
            assert torch.equal(found, expected)


@pytest.mark.parametrize("make", [lambda: words(Shouting), lambda: words(padding_side="left")])
def test_a_tokenizer_with_ways_of_its_own_is_asked_itself(make: Callable[[], PreTrainedTokenizerBase]) -> None:
    tokenizer = make()
    batch = BatchTokenizer(tokenizer, 8, trim=True)
    assert not batch.is_direct
    for found, expected in zip(batch(["a red dog", "a"]), tokenize(tokenizer, ["a red dog", "a"], 8), strict=True):
        assert torch.equal(found, expected)


def test_other_lengths_asked_of_the_tokenizer_change_nothing() -> None:
    tokenizer = train_tokenizer(CAPTIONS, 560, 16)
    batch = BatchTokenizer(tokenizer, 16, trim=True)
    before = batch(TEXTS)[0]
    tokenize(tokenizer, TEXTS, 5)
    assert torch.equal(batch(TEXTS)[0], before)
    assert before.shape[1] == 16
