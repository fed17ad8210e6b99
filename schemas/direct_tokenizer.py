"""Texts to token ids by the Rust half of a `transformers` tokenizer alone: the same ids, several times faster.

A tokenizer's own call takes longer to wrap what it found for each text than to find it, and holds Python's lock while it does.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Token ids of texts, with the marks that the tokenizer adds, cut and not padded; may be called from several threads.
EncodeTexts = Callable[[Sequence[str]], list[list[int]]]

# Where a tokenizer does something of its own in Python, it shows in one of these.
_PROBES = (
    *(
        "",
        " ",
        "a",
        "A Photo of a CAT, 3 dogs & 12.50!",
        "two\n words\t",
        "na\u00efve caf\u00e9 \u5317\u4eac \U0001f642",
    ),
    *("e\u0301", "<|endoftext|> </s> [SEP] <pad>", "don't 'quote' isn\u2019t", "long " * 600, "x" * 700),
)


def find_direct(tokenizer: "PreTrainedTokenizerBase", length: int) -> EncodeTexts | None:
    """Return the function from texts to ids of at most `length` tokens, or None where the Rust half alone would give others."""
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not hasattr(backend, "encode_batch_fast"):
        return None
    # A copy, because how it cuts and pads is a state of it, which every call of the tokenizer itself sets anew.
    copied = Tokenizer.from_str(backend.to_str())
    copied.enable_truncation(length)
    copied.no_padding()

    def encode(texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in copied.encode_batch_fast(list(texts))]

    expected = tokenizer(list(_PROBES), padding=False, truncation=True, max_length=length)["input_ids"]
    return encode if [list(ids) for ids in expected] == encode(_PROBES) else None
