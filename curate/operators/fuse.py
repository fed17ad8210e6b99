"""One description made of everything that is known of a picture in words."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from curate.captions.asking import Made, Question, ask, judged_fields, judged_provenance
from curate.captions.framing import MAX_CHARACTERS, Prompt, clean, frame, tidy
from curate.captions.guards import Rules, Verdict, judge
from curate.fingerprint import canonical_json
from curate.models.engine import Request
from curate.models.generation import GenerationOperator, provenance_fields
from curate.operator import Annotate
from schemas.errors import InputError

# An input and what the prompt calls it. The alt-text comes first: its names count.
_PARTS = {"alt_text": "Web text", "recaption": "Caption of the picture", "tags": "Seen in the picture"}
_TEXTS = ("alt_text", "recaption")
_INSTRUCTION = (
    "You are given what is known of one picture: its text from the web, which may be wrong about it but knows names, a caption made of the "
    "picture, which is right but plain, or a list of what was seen in it. Merge them into one description of the picture. Keep the names and "
    "numbers of the web text that fit the picture, leave out advertising, file names and whatever contradicts the picture, and add nothing."
)
_CLOSING = "Answer with the merged description only: one or two sentences on one line."
_MAX_TAGS = 60
_DIGEST_LENGTH = 16


@dataclass(frozen=True, kw_only=True)
class Fuse(GenerationOperator):
    """Alt-text, recaption and tags as one description (RWKV-CLIP, arXiv 2406.06973; CapsFusion, arXiv 2310.20550; VeCLIP, arXiv 2310.07699).

    fused_caption             the description; null where no answer was taken
    fused_caption_parts       what the row had: alt_text, recaption, tags. With one text alone that text is the description, and nobody is asked
    fused_caption_refusal     why the last answer was not taken, empty where it was: empty, refusal, too_short, too_long, repetition, prompt,
                              language, names (only where `keep_names`), unrelated (shares no word with any part)
    fused_caption_num_tries   how often it was asked for
    fused_caption_model, _revision, _prompt_digest, _sampling, _finish_reason, _log_probability    where it comes from

    `parts` says what is read, `alt_text recaption` where there are no tags. Tags are a text or a list of texts: bind them, such as
    `bind.tags=caption_complexity.caption_parse` of a recaption, or `bind.tags=text_spotting.text_strings`. A part that a row lacks is left
    out. Every part is cut to `max_characters` and cannot leave its frame.
    """

    name = "fuse"
    version = 1
    reads = ("uid", *_PARTS)
    nullable = tuple(_PARTS)
    writes = pa.schema([
        ("fused_caption", pa.string()),
        ("fused_caption_parts", pa.list_(pa.string())),
        *judged_fields("fused_caption"),
        *provenance_fields("fused_caption"),
    ])

    temperature: float = 0.7
    top_p: float = 0.95
    max_new_tokens: int = 128
    parts: str = "alt_text recaption tags"  # which of the three are read
    num_tries: int = 2  # attempts in all
    max_words: int = 120
    keep_names: bool = (
        False  # refuse descriptions without the alt-text's names: strict, for names may contradict the picture
    )
    max_characters: int = MAX_CHARACTERS  # of each part

    def __post_init__(self) -> None:
        super().__post_init__()
        chosen = self.parts.split()
        if not chosen or set(chosen) - set(_PARTS) or len(set(chosen)) < len(chosen):
            raise InputError(f"fuse parts is {self.parts!r}; it takes some of {' '.join(_PARTS)}")
        if self.num_tries < 1:
            raise InputError(f"fuse num_tries is {self.num_tries}; it must be 1 or more")
        ordered = tuple(name for name in _PARTS if name in chosen)
        object.__setattr__(self, "parts", " ".join(ordered))
        # What is not read need not be there.
        object.__setattr__(self, "reads", ("uid", *ordered))
        object.__setattr__(self, "nullable", ordered)

    def identity(self) -> Mapping[str, Any]:
        """Return the parameters with our words by their content."""
        content = hashlib.sha256(canonical_json([_INSTRUCTION, _CLOSING, _PARTS]).encode()).hexdigest()
        return {**super().identity(), "prompt": content[:_DIGEST_LENGTH]}

    def load(self) -> Annotate:
        engine, names = self.open_engine(), self.parts.split()

        def annotate(batch: pa.Table) -> Mapping[str, Sequence[Any]]:
            columns = {name: batch[name].to_pylist() for name in names}
            rows = [
                {name: text for name in names if (text := _as_text(columns[name][row]))}
                for row in range(batch.num_rows)
            ]
            asked = [row for row, parts in enumerate(rows) if len(parts) > 1 or "tags" in parts]
            uids = batch["uid"].to_pylist()
            questions = [self._question(uids[row], rows[row]) for row in asked]
            found = dict(zip(asked, ask(engine, self.sampling, questions, self.num_tries), strict=True))
            made = [found.get(row) for row in range(batch.num_rows)]
            return {
                "fused_caption": [_caption(parts, one) for parts, one in zip(rows, made, strict=True)],
                "fused_caption_parts": [list(parts) for parts in rows],
                **judged_provenance(self, "fused_caption", made),
                "error": [_error(parts, one) for parts, one in zip(rows, made, strict=True)],
            }

        return annotate

    def _question(self, uid: str, parts: Mapping[str, str]) -> Question:
        messages = frame(
            Prompt(
                instruction=_INSTRUCTION,
                parts={_PARTS[name]: text for name, text in parts.items()},
                closing=_CLOSING,
                max_characters=self.max_characters,
            )
        )
        cleaned = {name: clean(text, self.max_characters) for name, text in parts.items()}
        texts = " . ".join(cleaned[name] for name in _TEXTS if name in cleaned)
        rules = Rules(max_words=self.max_words, keep_names=False, keep_numbers=False, may_copy=True)
        names = Rules(max_words=self.max_words, keep_numbers=False, may_copy=True)

        def build(attempt: int) -> Request:
            return Request(messages=messages, sample=uid, seed=self.request_seed(uid, attempt))

        def take(answer: str) -> Verdict:
            verdict = judge(answer, f"{texts} . {cleaned.get('tags', '')}", rules, prompt=[_INSTRUCTION, _CLOSING])
            if verdict.reason or not self.keep_names or "alt_text" not in cleaned:
                return verdict
            return judge(answer, cleaned["alt_text"], names)

        return Question(build=build, judge=take)


def _as_text(value: str | Sequence[str | None] | None) -> str:
    """Return a part as text: tags as a list with commas."""
    if value is None or isinstance(value, str):
        return (value or "") if clean(value or "") else ""
    tags = dict.fromkeys(tidy(tag).replace(",", " ") for tag in value if tag and tag.strip())
    return ", ".join(list(tags)[:_MAX_TAGS])


def _caption(parts: Mapping[str, str], made: Made | None) -> str | None:
    if made is not None:
        return made.text
    return next((tidy(text) for text in parts.values()), None)


def _error(parts: Mapping[str, str], made: Made | None) -> str | None:
    if made is not None:
        return made.error or None
    return None if parts else "nothing to fuse"
