from collections.abc import Callable

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from schemas.direct_tokenizer import find_direct
from train.tokenizer import train_tokenizer

CAPTIONS = ["a red dog", "two blue cats on a mat", "a red dog and a cat", "the cat sat", "red red red"] * 3
# Scripts, emoji, control characters and white space that the captions never showed.
STRANGE = ["Привет, мир! 🙂", "日本語", "", "a\x00b\t\n  c", "RED DOG", "x" * 300, "cat " * 40]


class Shouting(PreTrainedTokenizerFast):
    """Does something in Python that its Rust half knows nothing of."""

    def __call__(self, text, **options):
        return super().__call__([one.upper() for one in text], **options)


def make_words(
    kind: type[PreTrainedTokenizerFast] = PreTrainedTokenizerFast, **options: object
) -> PreTrainedTokenizerBase:
    vocabulary = {
        word: number for number, word in enumerate(["[UNK]", "[PAD]", "a", "red", "dog", "RED", "DOG", "cat"])
    }
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return kind(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", **options)


@pytest.mark.parametrize("make", [lambda: train_tokenizer(CAPTIONS, 560, 16), make_words])
def test_ids_are_those_of_the_tokenizers_own_call(make: Callable[[], PreTrainedTokenizerBase]) -> None:
    tokenizer = make()
    encode = find_direct(tokenizer, 16)
    assert encode is not None
    texts = CAPTIONS + STRANGE
    expected = tokenizer(texts, truncation=True, max_length=16)["input_ids"]
    assert encode(texts) == expected
    assert encode([]) == []
    # Another length asked of the tokenizer itself changes nothing.
    tokenizer(texts, truncation=True, max_length=5, padding="longest")
    assert encode(texts) == expected


def test_a_tokenizer_with_ways_of_its_own_is_told() -> None:
    assert find_direct(make_words(Shouting), 16) is None
