from pathlib import Path

import pytest

from schemas.errors import InputError
from tests.train.dataset_builder import make_samples, write_dataset
from train.index import Dataset
from train.tokenizer import MIN_VOCAB_SIZE, load_tokenizer, sample_captions, tokenize, train_tokenizer

CAPTIONS = ["a red dog", "two blue cats on a mat", "a red dog and a cat", "the cat sat", "red red red"] * 3
# Scripts, emoji, control characters and white space that the captions never showed.
STRANGE = ["Привет, мир! 🙂", "日本語", "", "a\x00b\t\n  c", "RED DOG", "x" * 300]


def test_training_is_deterministic() -> None:
    first, second = (train_tokenizer(iter(CAPTIONS), 560, 16).backend_tokenizer.to_str() for _ in range(2))
    assert first == second


def test_merges_make_frequent_words_one_token() -> None:
    tokenizer = train_tokenizer(CAPTIONS, 560, 16)
    assert MIN_VOCAB_SIZE < len(tokenizer) <= 560
    assert tokenizer.tokenize("Red cat") == ["red</w>", "cat</w>"]


def test_ids_of_the_marks_suit_clip() -> None:
    tokenizer = train_tokenizer(CAPTIONS, 560, 16)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, 2)
    assert tokenizer("a cat")["input_ids"][0] == 0
    assert tokenizer("a cat")["input_ids"][-1] == 1


def test_no_text_falls_outside_the_vocabulary() -> None:
    # The unknown token is the end mark: one inside a text would cut it there.
    tokenizer = train_tokenizer(CAPTIONS, 560, 400)
    for text in STRANGE:
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == 0
        assert ids[-1] == 1
        assert not {0, 1, 2} & set(ids[1:-1])
    assert tokenizer.decode(tokenizer("Привет 🙂")["input_ids"], skip_special_tokens=True) == "привет 🙂"


def test_auto_tokenizer_reads_it_back(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(CAPTIONS, 560, 16)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    texts = CAPTIONS + STRANGE
    assert loaded(texts)["input_ids"] == tokenizer(texts)["input_ids"]
    assert loaded.model_max_length == 16


def test_tokenize_cuts_and_trims() -> None:
    tokenizer = train_tokenizer(CAPTIONS, 560, 8)
    ids, mask = tokenize(tokenizer, ["cat", "red dog"], 8)
    assert ids.shape == (2, 4)
    assert ids[0].tolist()[2:] == [1, 2]
    assert mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    ids, _ = tokenize(tokenizer, ["cat " * 20, "dog"], 8)
    assert ids.shape == (2, 8)
    assert ids[0, -1] == 1
    assert tokenize(tokenizer, ["cat"], 8, trim=False)[0].shape == (1, 8)


def test_captions_of_every_column_are_sampled(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, make_samples(9), captions={"alt_text": 0.5, "rewrite[*]": 0.5})
    texts = list(sample_captions(Dataset.open(str(folder), cache=str(tmp_path / "cache"))))
    assert texts.count("alt 4") == 1
    assert {"rewrite 5.0", "rewrite 5.1"} <= set(texts)
    assert not any(text.startswith("recaption") for text in texts)
    few = list(sample_captions(Dataset.open(str(folder), cache=str(tmp_path / "cache")), limit=3))
    assert [text for text in few if text.startswith("alt")] == ["alt 0", "alt 3", "alt 6"]


def test_errors_say_what_to_do() -> None:
    with pytest.raises(InputError, match="vocab_size must be at least 515"):
        train_tokenizer(CAPTIONS, 300, 16)
    with pytest.raises(InputError, match="pin its commit"):
        load_tokenizer("someone/some-clip")
