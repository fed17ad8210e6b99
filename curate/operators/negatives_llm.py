"""Hard negative captions written by a language model."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from curate.captions.asking import Made, Question, ask, judged_fields, judged_provenance
from curate.captions.framing import MAX_CHARACTERS, Prompt, clean, frame, tidy
from curate.captions.guards import Rules, Verdict, find_reason
from curate.fingerprint import canonical_json
from curate.models.engine import Request
from curate.models.generation import GenerationOperator, provenance_fields
from curate.operator import Annotate
from schemas.errors import InputError

KINDS = ("object", "attribute", "count", "action", "relation", "order")
_INSTRUCTION = (
    "For a caption of a picture, write {count} other captions that are nearly the same but false of the picture. Each changes one thing: an "
    "object, an attribute, a count, an action, a relation, or the order of two things. It must read naturally, and it must not say the same in "
    'other words. Answer with JSON and nothing else: {{"negatives": [{{"kind": "...", "caption": "..."}}]}}, where kind is one of {kinds}.'
)
_CLOSING = "Answer with the JSON for this caption."
_EXAMPLES = (
    (
        "a black cat sleeps under a wooden chair",
        (
            ("attribute", "a white cat sleeps under a wooden chair"),
            ("relation", "a black cat sleeps on a wooden chair"),
        ),
    ),
    (
        "two girls throw a ball to a small dog",
        (("count", "three girls throw a ball to a small dog"), ("action", "two girls hide a ball from a small dog")),
    ),
    (
        "a man with a red hat next to a green bicycle",
        (
            ("order", "a man with a green hat next to a red bicycle"),
            ("object", "a man with a red hat next to a green bus"),
        ),
    ),
)
_KEYS = {"kind", "caption"}
_WORD = re.compile(r"[^\W_]+")
_ARTICLES = frozenset(["a", "an", "the"])
_MIN_KEPT = 0.4
_DIGEST_LENGTH = 16
# More of an answer than this is no list of captions.
_MAX_ANSWER = 20_000


@dataclass(frozen=True, kw_only=True)
class NegativesLlm(GenerationOperator):
    """Captions that are nearly the alt-text's and false, by a language model (TripletCLIP, arXiv 2411.02545).

    negatives                the captions, `count` at most, each other than the caption and than the others
    negative_kinds           what each changes: object, attribute, count, action, relation or order
    num_negatives            how many, 0 and up
    negatives_refusal        why the last answer was not taken, empty where it was: json (none, or cut), schema (other keys, kinds or types),
                             negatives (none of them is one: a copy, the same words but for articles, or another caption altogether), and
                             the reasons of rewrite for what it says
    negatives_num_tries, _model, _revision, _prompt_digest, _sampling, _finish_reason, _log_probability    where they come from

    The answer is JSON of a fixed schema, checked key by key. A negative keeps at least 40 % of the caption's words and changes at least one
    that is no article, or the order. The columns are those of `negatives`, which needs no model; give one of them a label where both are
    there.
    """

    name = "negatives_llm"
    version = 1
    reads = ("uid", "alt_text")
    writes = pa.schema([
        ("negatives", pa.list_(pa.string())),
        ("negative_kinds", pa.list_(pa.string())),
        ("num_negatives", pa.int32()),
        *judged_fields("negatives"),
        *provenance_fields("negatives"),
    ])

    temperature: float = 0.7
    top_p: float = 0.95
    max_new_tokens: int = 256
    count: int = 2  # negatives of a caption
    num_tries: int = 2  # attempts in all
    max_characters: int = MAX_CHARACTERS  # of the caption that is shown

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.count < 1 or self.num_tries < 1:
            raise InputError("negatives_llm: count and num_tries must be 1 or more")

    def identity(self) -> Mapping[str, Any]:
        """Return the parameters with our words by their content."""
        content = hashlib.sha256(canonical_json([_INSTRUCTION, _CLOSING, _EXAMPLES]).encode()).hexdigest()
        return {**super().identity(), "prompt": content[:_DIGEST_LENGTH]}

    def load(self) -> Annotate:
        engine = self.open_engine()

        def annotate(batch: pa.Table) -> Mapping[str, Sequence[Any]]:
            captions = [clean(text, self.max_characters) for text in batch["alt_text"].to_pylist()]
            uids = batch["uid"].to_pylist()
            asked = [row for row, caption in enumerate(captions) if caption]
            questions = [self._question(uids[row], captions[row]) for row in asked]
            found = dict(zip(asked, ask(engine, self.sampling, questions, self.num_tries), strict=True))
            made = [found.get(row) for row in range(batch.num_rows)]
            pairs = [_read_made(one, caption, self.count) for one, caption in zip(made, captions, strict=True)]
            return {
                "negatives": [[caption for _, caption in found] for found in pairs],
                "negative_kinds": [[kind for kind, _ in found] for found in pairs],
                "num_negatives": [len(found) for found in pairs],
                **judged_provenance(self, "negatives", made),
                "error": [(one.error or None) if one else "blank caption" for one in made],
            }

        return annotate

    def _question(self, uid: str, caption: str) -> Question:
        messages = frame(self._prompt(caption))

        def build(attempt: int) -> Request:
            return Request(messages=messages, sample=uid, seed=self.request_seed(uid, attempt))

        def take(answer: str) -> Verdict:
            reason, _ = read_negatives(answer, caption, self.count)
            # The answer is read again where it was taken.
            return Verdict(answer, reason)

        return Question(build=build, judge=take, is_prose=False)

    def _prompt(self, caption: str) -> Prompt:
        instruction = _INSTRUCTION.format(count=self.count, kinds=", ".join(KINDS))
        return Prompt(
            instruction=instruction,
            parts={"Caption": caption},
            examples=[(given, _as_json(negatives[: self.count])) for given, negatives in _EXAMPLES],
            closing=_CLOSING,
            max_characters=self.max_characters,
            has_json_examples=True,
        )


def read_negatives(answer: str, caption: str, count: int) -> tuple[str, list[tuple[str, str]]]:
    """Return why an answer is not taken ("" where it is), and its negatives as (kind, caption)."""
    start, end = answer.find("{"), answer.rfind("}")
    try:
        content = json.loads(answer[start : end + 1]) if 0 <= start < end and end - start < _MAX_ANSWER else None
    except (ValueError, RecursionError):
        content = None
    if content is None:
        return "json", []
    if not isinstance(content, dict) or set(content) != {"negatives"} or not isinstance(content["negatives"], list):
        return "schema", []
    if not all(_is_valid(entry) for entry in content["negatives"]):
        return "schema", []
    found: list[tuple[str, str]] = []
    reasons = []
    for entry in content["negatives"]:
        text = tidy(entry["caption"])
        rules = Rules(min_words=1, max_words=2 * len(caption.split()) + 8, keep_names=False, keep_numbers=False)
        reason = find_reason(text, caption, rules)
        if reason and reason != "copy":
            reasons.append(reason)
        elif is_negative(text, caption) and text.lower() not in (other.lower() for _, other in found):
            found.append((entry["kind"], text))
    return ("" if found else next(iter(reasons), "negatives")), found[:count]


def is_negative(text: str, caption: str) -> bool:
    """Tell whether a text is nearly a caption and not the same: other words or another order, articles aside."""
    words, own = ([word for word in _WORD.findall(part.lower()) if word not in _ARTICLES] for part in (text, caption))
    return words != own and len(set(words) & set(own)) >= _MIN_KEPT * len(set(own))


def _is_valid(entry: object) -> bool:
    return (
        isinstance(entry, dict)
        and set(entry) == _KEYS
        and all(isinstance(value, str) for value in entry.values())
        and entry["kind"] in KINDS
        and bool(entry["caption"].strip())
    )


def _read_made(made: Made | None, caption: str, count: int) -> list[tuple[str, str]]:
    return read_negatives(made.text, caption, count)[1] if made and made.text is not None else []


def _as_json(negatives: Sequence[tuple[str, str]]) -> str:
    return json.dumps({"negatives": [{"kind": kind, "caption": text} for kind, text in negatives]})
