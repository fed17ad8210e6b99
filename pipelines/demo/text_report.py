"""What the demo's models of text can do, measured through the operators that use them, on scenes that neither has seen."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from curate.operator import ShardOperator
from curate.operators.recaption import Recaption
from curate.operators.rewrite import Rewrite
from pipelines.demo.captions import caption
from pipelines.demo.picture import Picture, make_body
from pipelines.demo.scenes import Scene, make_scene
from pipelines.demo.text_accuracy import CaptionAccuracy, measure_captions, measure_rewrites
from pipelines.demo.text_models import CAPTIONER_FOLDER, EXAMPLES_FILE, REWRITER_FOLDER

_PROBES = 60_000_000  # scenes from this number on are neither of the web nor of any training
_MAX_NEW_TOKENS = 40
_NUM_EXAMPLES = 8


@dataclass(frozen=True, kw_only=True)
class TextModelReport:
    """How good the captioner and the rewriter are, with some of what they said."""

    captions: CaptionAccuracy
    num_rewrites: int
    taken_rewrites: float  # share that the guards take, 0 to 1
    faithful_rewrites: float  # share of all that say the same in other words, 0 to 1
    caption_examples: Sequence[tuple[str, str | None]]  # a true caption, and the captioner's
    rewrite_examples: Sequence[tuple[str, str | None]]


def measure_text_models(folder: Path, num_scenes: int = 300) -> TextModelReport:
    """Caption and rewrite scenes that neither model has seen."""
    scenes = [make_scene(_PROBES + number) for number in range(num_scenes)]
    texts = [caption(scene, 0) for scene in scenes]
    captions = _caption(folder, scenes)
    rewrites = _rewrite(folder, texts)
    pairs = [(text, rewrite) for text, row in zip(texts, rewrites, strict=True) for rewrite in row]
    return TextModelReport(
        captions=measure_captions(scenes, captions),
        num_rewrites=len(pairs),
        taken_rewrites=sum(rewrite is not None for _, rewrite in pairs) / len(pairs),
        faithful_rewrites=measure_rewrites(*zip(*pairs, strict=True)),
        caption_examples=list(zip(texts, captions, strict=True))[:_NUM_EXAMPLES],
        rewrite_examples=pairs[:: len(rewrites[0])][:_NUM_EXAMPLES],
    )


def _caption(folder: Path, scenes: Sequence[Scene]) -> list[str | None]:
    operator = Recaption(model=str(folder / CAPTIONER_FOLDER), max_new_tokens=_MAX_NEW_TOKENS, cache="none")
    pictures = pa.array([make_body(Picture(scene=scene)) for scene in scenes], pa.large_binary())
    return _run(operator, "image", pictures)


def _rewrite(folder: Path, texts: Sequence[str]) -> list[list[str | None]]:
    operator = Rewrite(
        model=str(folder / REWRITER_FOLDER),
        examples=str(folder / EXAMPLES_FILE),
        max_new_tokens=_MAX_NEW_TOKENS,
        cache="none",
    )
    return _run(operator, "alt_text", pa.array(texts))


def _run(operator: ShardOperator, column: str, values: pa.Array) -> list[Any]:
    annotate, size = operator.load(), operator.resources.batch_size
    table = pa.table({"uid": [f"{number:032x}" for number in range(len(values))], column: values})
    found: list[Any] = []
    for start in range(0, len(values), size):
        found += annotate(table.slice(start, size))[operator.name]
    return found
