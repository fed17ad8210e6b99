"""The text side's vocabulary: a byte-level BPE in CLIP's layout, trained on the dataset's own captions.

The result is a `CLIPTokenizer`, so any `AutoTokenizer.from_pretrained(checkpoint)` reads it, in this release of transformers and others.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from schemas.errors import InputError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from train.index import Dataset

# End is not id 2: CLIPTextModel takes the highest id of a text as its end where a config says eos_token_id 2.
BEGIN, END, PAD = "<|startoftext|>", "<|endoftext|>", "<|pad|>"
_SPECIALS = (BEGIN, END, PAD)
_WORD_END = "</w>"
# Every byte, inside a word and at its end: no text can fall outside the vocabulary.
MIN_VOCAB_SIZE = len(_SPECIALS) + 2 * 256


def train_tokenizer(captions: Iterable[str], vocab_size: int, context_length: int) -> "PreTrainedTokenizerBase":
    """Learn merges from captions (read once, lower-cased); the same captions in the same order give the same vocabulary.

    The vocabulary is smaller than `vocab_size` where the captions do not have that many repeated pairs.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    if vocab_size < MIN_VOCAB_SIZE:
        raise InputError(
            f"vocab_size must be at least {MIN_VOCAB_SIZE} (every byte twice and 3 marks), got {vocab_size}"
        )
    # An empty CLIPTokenizer carries CLIP's normalisation and word splitting; only the merges are ours.
    backend = _clip_tokenizer({}, [], context_length).backend_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainable = Tokenizer(models.BPE(end_of_word_suffix=_WORD_END))
    trainable.normalizer, trainable.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        # Numbered here because the trainer numbers what it meets in hash order, and breaks ties between pairs by number.
        special_tokens=[byte + _WORD_END for byte in alphabet],
        min_frequency=2,
        initial_alphabet=alphabet,
        end_of_word_suffix=_WORD_END,
        show_progress=False,
    )
    trainable.train_from_iterator(captions, trainer)
    learned = [tuple(merge) for merge in _merges(trainable)][: vocab_size - MIN_VOCAB_SIZE]
    tokens = [*_SPECIALS, *alphabet, *(byte + _WORD_END for byte in alphabet)]
    # Two pairs can merge into one string; a token has one id.
    tokens += [left + right for left, right in learned]
    vocab = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    return _clip_tokenizer(vocab, learned, context_length)


def sample_captions(dataset: "Dataset", limit: int = 1_000_000) -> Iterator[str]:
    """Yield the texts of at most `limit` samples, evenly spaced over the dataset, of every caption column in use."""
    stride = -(-dataset.num_samples // limit)
    for index in range(0, dataset.num_samples, stride):
        for caption in dataset.table.captions(index):
            texts = [caption] if isinstance(caption, str) else caption or ()
            yield from (text for text in texts if text)


def load_tokenizer(folder_or_id: str, revision: str = "") -> "PreTrainedTokenizerBase":
    """Load the tokenizer of a folder, or of a hub id at a pinned commit."""
    from transformers import AutoTokenizer

    require_revision(folder_or_id, revision)
    try:
        return AutoTokenizer.from_pretrained(folder_or_id, **({"revision": revision} if revision else {}))
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise InputError(f"{folder_or_id} holds no tokenizer that transformers can load: {reason}") from error


def require_revision(folder_or_id: str, revision: str) -> None:
    """Refuse a hub id without a commit: what it means would change under a run."""
    if not Path(folder_or_id).is_dir() and not revision:
        raise InputError(
            f"{folder_or_id!r} is no folder here; if it is a hub id, pin its commit (init_revision, tokenizer_revision, towers.image_revision or towers.text_revision)"
        )


def tokenize(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], context_length: int, *, trim: bool = True
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Return ids and attention mask (n, length), int64; a long text is cut and keeps its end mark.

    `trim` pads to the longest text of the batch instead of `context_length`; exact wherever padding is masked or comes after the
    end mark of a causal model, and several times faster for web captions.
    """
    encoded = tokenizer(
        list(texts),
        padding="longest" if trim else "max_length",
        truncation=True,
        max_length=context_length,
        return_attention_mask=True,
        return_tensors="pt",
    )
    return encoded["input_ids"], encoded["attention_mask"]


def _clip_tokenizer(
    vocab: dict[str, int], merges: list[tuple[str, ...]], context_length: int
) -> "PreTrainedTokenizerBase":
    from transformers import CLIPTokenizer

    vocab = vocab or {token: number for number, token in enumerate(_SPECIALS)}
    return CLIPTokenizer(
        vocab=vocab,
        merges=merges,
        unk_token=END,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        model_max_length=context_length,
    )


def _merges(tokenizer: object) -> list[list[str]]:
    import json

    content = json.loads(tokenizer.to_str())  # type: ignore[attr-defined]
    return [list(merge) for merge in content["model"]["merges"]]
