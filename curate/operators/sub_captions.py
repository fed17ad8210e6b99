"""A long caption cut into sentences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from curate.captions.sentences import Span, merge_spans, split_sentences
from curate.operator import Annotate, ShardOperator
from schemas.errors import InputError


@dataclass(frozen=True, kw_only=True)
class SubCaptions(ShardOperator):
    """The sentences of a caption, to be drawn as captions of their own (DreamLIP, arXiv 2403.17007); about 20 us per caption.

    sub_captions          the sentences in order, each exactly the characters between its start and end
    sub_caption_starts    where each begins in its caption, in characters from 0
    sub_caption_ends      where it ends: the first character after it
    sub_caption_texts     which text of a list it comes from, from 0; all 0 where the input is one text
    num_sub_captions      how many, 0 and up

    Cuts at line ends and at the stops of Latin, Chinese, Arabic and Hindi script; not within numbers, addresses and abbreviations, nor
    before a small letter. Bullets are left out. To cut another text: `bind.alt_text=recaption.recaption`; a list of texts is cut text by
    text. In a mixture write `sub_captions.sub_captions[*]`.
    """

    name = "sub_captions"
    version = 1
    reads = ("alt_text",)
    writes = pa.schema([
        ("sub_captions", pa.list_(pa.string())),
        ("sub_caption_starts", pa.list_(pa.int32())),
        ("sub_caption_ends", pa.list_(pa.int32())),
        ("sub_caption_texts", pa.list_(pa.int32())),
        ("num_sub_captions", pa.int32()),
    ])

    min_words: int = 2  # sentences with fewer are left out
    merge: int = 1  # consecutive sentences put together
    max_sub_captions: int = 0  # keep the first so many; 0: all

    def __post_init__(self) -> None:
        if self.min_words < 1 or self.merge < 1 or self.max_sub_captions < 0:
            raise InputError("sub_captions: min_words and merge must be 1 or more, max_sub_captions 0 or more")

    def load(self) -> Annotate:
        def annotate(batch: pa.Table) -> Mapping[str, Sequence[Any]]:
            rows = [self._cut(value) for value in batch.column("alt_text").to_pylist()]
            return {
                "sub_captions": [[span.of(text) for _, text, span in found] for found in rows],
                "sub_caption_starts": [[span.start for _, _, span in found] for found in rows],
                "sub_caption_ends": [[span.end for _, _, span in found] for found in rows],
                "sub_caption_texts": [[number for number, _, _ in found] for found in rows],
                "num_sub_captions": [len(found) for found in rows],
            }

        return annotate

    def _cut(self, value: str | list[str | None]) -> list[tuple[int, str, Span]]:
        texts = [value] if isinstance(value, str) else value
        found = []
        for number, text in enumerate(texts):
            spans = [span for span in split_sentences(text or "") if len(span.of(text or "").split()) >= self.min_words]
            found += [(number, text or "", span) for span in merge_spans(spans, self.merge)]
        return found[: self.max_sub_captions or None]
