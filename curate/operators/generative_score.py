"""How likely an image-to-text model finds the caption, given the picture: VisualGPTScore and its debiased form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from curate.images import pixels
from curate.models.captioner import Captioner, TokenizedCaption, is_chat_model, load_captioner
from curate.models.clip import TowerOperator
from curate.models.preprocess import ImageSettings, load_settings, prepare_images, stack_images
from curate.operator import Annotate, Prepare, Resources
from schemas.errors import InputError

_BATCH_SIZE = 32
# Noise around grey, as wide as in the paper's code; its side in pixels before the model's own resize.
_NULL_MEAN, _NULL_SPREAD, _NULL_SIDE = 0.5, 0.25, 224


@dataclass(frozen=True, kw_only=True)
class GenerativeScore(TowerOperator):
    """The caption's probability under an image-to-text model (VisualGPTScore, arXiv 2306.01879), alone and against its marginal one.

    generative_score         mean logarithm of the probability of the caption's tokens, each given the picture and those before it; 0 and
                             below, higher is likelier
    generative_null_score    the same without the picture: the probability averaged over `num_null_images` pictures of noise; how common
                             the caption is
    generative_pmi_score     generative_score - alpha x generative_null_score: what the picture tells of the caption, whatever its fluency
    generative_num_tokens    tokens scored, the end mark included
    is_generative_truncated  whether the caption had more than `max_tokens`: what lies beyond, and the end mark, are then not scored

    `model` is a folder or hub id of a BLIP, GIT or vision encoder-decoder captioner, or of a chat model, which is asked `prompt` and
    scored on the caption as its answer, one row at a time. The mean makes long and short captions comparable. The paper's best alpha
    lies between 0 and 1, by task; 0 gives generative_score. Scores compare captions under one model only. Costs one run of the picture's tower and
    1 + num_null_images runs of the decoder. `bind.alt_text` scores another text.
    """

    name = "generative_score"
    version = 1
    reads = ("image", "alt_text")
    writes = pa.schema([
        ("generative_score", pa.float32()),
        ("generative_null_score", pa.float32()),
        ("generative_pmi_score", pa.float32()),
        ("generative_num_tokens", pa.int32()),
        ("is_generative_truncated", pa.bool_()),
    ])
    resources = Resources(model=True, batch_size=_BATCH_SIZE)

    prompt: str = "Describe the picture in one sentence."  # what a chat model is asked
    max_tokens: int = 64  # of the caption; less where the model holds fewer
    alpha: float = 1.0  # share of the marginal in generative_pmi_score, 0 and up
    num_null_images: int = 3  # pictures of noise; 0: no marginal, and null in its columns
    seed: int = 0  # of the noise

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_tokens < 1 or self.num_null_images < 0 or not self.alpha >= 0:
            raise InputError("generative_score: max_tokens must be at least 1, num_null_images and alpha 0 or more")

    def identity(self) -> dict[str, Any]:
        """Return the parameters, the weights' digest or the pinned commit in place of the model's place."""
        names = ("prompt", "max_tokens", "alpha", "num_null_images", "seed")
        return {**super().identity(), **{name: getattr(self, name) for name in names}}

    def prepare(self) -> Prepare | None:
        """Return the function that resizes pictures; a chat model's processor does that itself."""
        if is_chat_model(self.model, self.revision):
            return None
        settings = load_settings(self.model, self.revision)

        def prepare(batch: pa.Table) -> pa.Table:
            return pa.table({"pixels": prepare_images(settings, batch["image"]), "alt_text": batch["alt_text"]})

        return prepare

    def load(self) -> Annotate:
        captioner = load_captioner(self.model, self.revision, self.prompt)
        settings = None if is_chat_model(self.model, self.revision) else load_settings(self.model, self.revision)
        nulls = [captioner.encode(picture) for picture in self._null_pictures(settings)]

        def annotate(batch: pa.Table) -> Mapping[str, Sequence[Any]]:
            if settings:
                pictures: Any = stack_images(settings, batch["pixels"])
            else:
                pictures = list(pixels(batch["image"]))
            captions = captioner.tokenize(batch["alt_text"].to_pylist(), self.max_tokens)
            return self._score(captioner, pictures, captions, nulls)

        return annotate

    def _null_pictures(self, settings: ImageSettings | None) -> list[Any]:
        """Return pictures of noise, each by itself as `encode` takes them."""
        random = np.random.default_rng(self.seed)
        side = (_NULL_SIDE, _NULL_SIDE) if settings is None else settings.size
        noise = random.normal(_NULL_MEAN, _NULL_SPREAD, (self.num_null_images, *side, 3))
        pictures = np.clip(np.rint(noise * 255), 0, 255).astype(np.uint8)
        return [[picture] if settings is None else picture[None] for picture in pictures]

    def _score(
        self, captioner: Captioner, pictures: Any, captions: list[TokenizedCaption], nulls: list[Any]
    ) -> dict[str, Any]:
        if not captions:
            return {field.name: pa.nulls(0, field.type) for field in self.writes}
        # A caption of no tokens is an end mark, or nothing, which says nothing about a picture.
        is_empty = np.array([len(caption.ids) <= (not caption.is_truncated) for caption in captions])
        lengths = np.array([len(caption.ids) for caption in captions])
        score = captioner.score(captioner.encode(pictures), captions) / lengths
        columns: dict[str, Any] = {"generative_score": score}
        if nulls:
            each = np.stack([captioner.score(features, captions) for features in nulls])
            marginal = (np.logaddexp.reduce(each, axis=0) - np.log(len(nulls))) / lengths
            columns |= {"generative_null_score": marginal, "generative_pmi_score": score - self.alpha * marginal}
        columns |= {
            "generative_num_tokens": lengths,
            "is_generative_truncated": np.array([caption.is_truncated for caption in captions]),
        }
        arrays = {
            field.name: pa.array(columns[field.name], mask=is_empty).cast(field.type)
            if field.name in columns
            else pa.nulls(len(captions), field.type)
            for field in self.writes
        }
        return {**arrays, "error": ["the caption has no words" if empty else None for empty in is_empty.tolist()]}
