"""How well each text of a list agrees with the picture and with the web text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from curate.models.clip import TowerOperator, load_model, load_tokenize, to_matrix
from curate.operator import Annotate, Operator, Prepare
from curate.operators.clip_embedding import ClipEmbedding
from curate.operators.clip_text_embedding import ClipTextEmbedding


@dataclass(frozen=True, kw_only=True)
class CaptionListScore(TowerOperator):
    """The cosines of every text of a list with the picture and with the alt-text, -1 to 1, higher agrees better.

    caption_scores       of each text with the picture, in the list's order; null where the text is blank
    caption_agreements   of each text with the alt-text
    top_caption          the text that agrees best with the picture, the first of equals; null where the list has none
    top_caption_score    its cosine

    `captions` is a list of texts, bound: `bind.captions=rewrite.rewrite`, or `sub_captions.sub_captions`. Computes the embeddings of picture
    and alt-text with `model` (see clip_embedding) where they are not there yet, and does not store those of the list, whose cost is that of
    clip_text_embedding for each text. For a column of one text a row there is caption_score.
    """

    name = "caption_list_score"
    version = 1
    reads = ("captions", "image_embedding", "text_embedding")
    writes = pa.schema([
        ("caption_scores", pa.list_(pa.float32())),
        ("caption_agreements", pa.list_(pa.float32())),
        ("top_caption", pa.string()),
        ("top_caption_score", pa.float32()),
    ])

    def requires(self) -> tuple[Operator, ...]:
        suffix = f"{self.label}_" if self.label else ""
        tower = {"model": self.model, "revision": self.revision}
        image_bind = {"image": self.bind["image"]} if "image" in self.bind else {}
        text_bind = {"alt_text": self.bind["alt_text"]} if "alt_text" in self.bind else {}
        return (
            ClipEmbedding(**tower, bind=image_bind, label=f"{suffix}clip_embedding" if suffix else ""),
            ClipTextEmbedding(**tower, bind=text_bind, label=f"{suffix}clip_text_embedding" if suffix else ""),
        )

    def identity(self) -> dict[str, Any]:
        """Return nothing: the embeddings' fingerprints hold the model."""
        return {}

    def prepare(self) -> Prepare:
        tokenize = load_tokenize(self.model, self.revision)

        def prepare(batch: pa.Table) -> pa.Table:
            lists = batch["captions"].to_pylist()
            ids = tokenize([text for texts in lists for text in texts if not _is_blank(text)])
            column = pa.array(_deal(ids, [sum(not _is_blank(text) for text in texts) for texts in lists]), _IDS)
            return batch.append_column("ids", column)

        return prepare

    def load(self) -> Annotate:
        model = load_model(self.model, self.revision)
        pad_id = load_tokenize(self.model, self.revision).pad_id

        def annotate(batch: pa.Table) -> Mapping[str, Sequence[Any]]:
            ids = batch["ids"].combine_chunks()
            features = model.encode_ids(ids.flatten(), pad_id)
            counts = ids.value_lengths().to_numpy()
            owners = np.repeat(np.arange(len(ids)), counts)
            scores, agreements = (
                _deal(_cosines(features, to_matrix(batch[name]), owners).tolist(), counts.tolist())
                for name in ("image_embedding", "text_embedding")
            )
            lists = batch["captions"].to_pylist()
            best = [max(range(len(row)), key=row.__getitem__) if row else None for row in scores]
            kept = [[text for text in texts if not _is_blank(text)] for texts in lists]
            return {
                "caption_scores": [_spread(texts, row) for texts, row in zip(lists, scores, strict=True)],
                "caption_agreements": [_spread(texts, row) for texts, row in zip(lists, agreements, strict=True)],
                "top_caption": [None if at is None else texts[at] for texts, at in zip(kept, best, strict=True)],
                "top_caption_score": [None if at is None else row[at] for row, at in zip(scores, best, strict=True)],
            }

        return annotate


_IDS = pa.list_(pa.list_(pa.int32()))


def _is_blank(text: str | None) -> bool:
    return not text or not text.strip()


def _deal(values: Sequence[Any], counts: Sequence[int]) -> list[list[Any]]:
    """Return values as lists of the given lengths."""
    ends = np.cumsum(counts, dtype=np.int64).tolist()
    return [list(values[end - count : end]) for end, count in zip(ends, counts, strict=True)]


def _cosines(texts: np.ndarray, others: np.ndarray, owners: np.ndarray) -> np.ndarray:
    if not len(texts):
        return np.zeros(0)
    # Half precision leaves the stored vectors a little off unit length.
    unit = others / np.linalg.norm(others, axis=1, keepdims=True)
    return np.asarray((texts * unit[owners]).sum(axis=1))


def _spread(texts: Sequence[str | None], values: Sequence[float]) -> list[float | None]:
    """Return a value for each text, null for blank ones."""
    left = iter(values)
    return [None if _is_blank(text) else next(left) for text in texts]
