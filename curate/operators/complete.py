"""Captions for those rows alone whose own is noise."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from curate import images
from curate.captions.asking import Question, ask, judged_fields, judged_provenance
from curate.captions.framing import MAX_CHARACTERS, Prompt, clean, frame, tidy
from curate.captions.guards import Rules, Verdict, judge
from curate.fingerprint import canonical_json
from curate.models.engine import Request
from curate.models.generation import GenerationOperator, encode_picture, provenance_fields
from curate.operator import IMAGE_COLUMN, Annotate, Prepare
from schemas.errors import InputError

_INSTRUCTION = (
    "Write a caption of the picture in one sentence. The words below were found for it and most of them are true: use those that fit what can "
    "be seen, leave out the others."
)
_WITHOUT_CONCEPTS = "Write a caption of the picture in one sentence. Say what can be seen and guess nothing."
_CLOSING = "Answer with the caption only, on one line."
_MAX_CONCEPTS = 40
_OPTIONAL = ("concepts",)
_DIGEST_LENGTH = 16


@dataclass(frozen=True, kw_only=True)
class Complete(GenerationOperator):
    """A caption of the picture, conditioned on concepts, for rows above a threshold of noise (NLIP, arXiv 2212.07086; NEVLP).

    completed_caption          the alt-text where the row is sound; else the new caption, null where no answer was taken
    is_completed               whether the row was above the threshold, so that its caption was to be made
    completed_caption_refusal  why the last answer was not taken, empty where it was, null where nobody was asked
    completed_caption_num_tries, _model, _revision, _prompt_digest, _sampling, _finish_reason, _log_probability    where it comes from

    `noise` is noise_probability of noise_probability, or any other number: `bind.noise_probability=LABEL.COLUMN`; a row is asked about
    where it is above `threshold`, or at most it with `below=true` (a clip_score). A row without a number keeps its alt-text. Concepts are
    a text or a list: `bind.concepts=caption_tags.caption_tag_nouns`; without any, `with_concepts=false`. The model must see pictures.
    """

    name = "complete"
    version = 1
    reads = ("uid", "image", "alt_text", "noise_probability", *_OPTIONAL)
    nullable = ("alt_text", "noise_probability", *_OPTIONAL)
    writes = pa.schema([
        ("completed_caption", pa.string()),
        ("is_completed", pa.bool_()),
        *judged_fields("completed_caption"),
        *provenance_fields("completed_caption"),
    ])

    threshold: float = 0.5  # of the number that tells noise
    below: bool = False  # whether low numbers tell noise
    with_concepts: bool = True  # whether the column `concepts` is read
    num_tries: int = 2  # attempts in all; answers that are not drawn are not asked for again
    max_words: int = 60
    max_characters: int = MAX_CHARACTERS  # of the concepts that are shown

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_tries < 1:
            raise InputError(f"complete num_tries is {self.num_tries}; it must be 1 or more")
        if not self.with_concepts:
            object.__setattr__(self, "reads", tuple(name for name in self.reads if name not in _OPTIONAL))
            object.__setattr__(self, "nullable", tuple(name for name in self.nullable if name not in _OPTIONAL))

    def identity(self) -> Mapping[str, Any]:
        """Return the parameters with our words by their content."""
        content = hashlib.sha256(canonical_json([_INSTRUCTION, _WITHOUT_CONCEPTS, _CLOSING]).encode()).hexdigest()
        return {**super().identity(), "prompt": content[:_DIGEST_LENGTH]}

    def prepare(self) -> Prepare:
        """Encode the pictures that are asked about, and no others."""

        def prepare(batch: pa.Table) -> pa.Table:
            noise = batch["noise_probability"].to_pylist()
            pictures = images.pixels(batch[IMAGE_COLUMN])
            encoded = [
                encode_picture(picture, self.image_size) if self._is_noise(value) else b""
                for picture, value in zip(pictures, noise, strict=True)
            ]
            index = batch.column_names.index(IMAGE_COLUMN)
            return batch.set_column(index, IMAGE_COLUMN, pa.array(encoded, pa.large_binary()))

        return prepare

    def load(self) -> Annotate:
        engine, tries = self.open_engine(), self.num_tries if self.sampling.is_drawn else 1

        def annotate(batch: pa.Table) -> Mapping[str, Sequence[Any]]:
            noise = batch["noise_probability"].to_pylist()
            asked = [row for row, value in enumerate(noise) if self._is_noise(value)]
            concepts = batch["concepts"].to_pylist() if self.with_concepts else [None] * batch.num_rows
            uids, pictures = batch["uid"].to_pylist(), batch["image"].to_pylist()
            questions = [self._question(uids[row], pictures[row], concepts[row]) for row in asked]
            found = dict(zip(asked, ask(engine, self.sampling, questions, tries), strict=True))
            made = [found.get(row) for row in range(batch.num_rows)]
            captions = zip(made, batch["alt_text"].to_pylist(), strict=True)
            return {
                "completed_caption": [one.text if one else caption for one, caption in captions],
                "is_completed": [row in found for row in range(batch.num_rows)],
                **judged_provenance(self, "completed_caption", made),
                "error": [(one.error or None) if one else None for one in made],
            }

        return annotate

    def _is_noise(self, value: float | None) -> bool:
        if value is None:
            return False
        return value <= self.threshold if self.below else value > self.threshold

    def _question(self, uid: str, image: bytes, concepts: str | Sequence[str | None] | None) -> Question:
        words = clean(_list_concepts(concepts), self.max_characters)
        messages = frame(
            Prompt(
                instruction=_INSTRUCTION if words else _WITHOUT_CONCEPTS,
                parts={"Words": words} if words else {},
                closing=_CLOSING,
                max_characters=self.max_characters,
            )
        )
        rules = Rules(max_words=self.max_words, needs_source=False, keep_names=False, keep_numbers=False)

        def build(attempt: int) -> Request:
            return Request(messages=messages, sample=uid, image=image, seed=self.request_seed(uid, attempt))

        def take(answer: str) -> Verdict:
            return judge(answer, words, rules, prompt=[_INSTRUCTION, _WITHOUT_CONCEPTS, _CLOSING])

        return Question(build=build, judge=take)


def _list_concepts(concepts: str | Sequence[str | None] | None) -> str:
    if concepts is None or isinstance(concepts, str):
        return concepts or ""
    found = dict.fromkeys(tidy(concept).replace(",", " ") for concept in concepts if concept and concept.strip())
    return ", ".join(list(found)[:_MAX_CONCEPTS])
