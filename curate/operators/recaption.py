"""A caption made of the picture, by an image-to-text model or a chat model that sees."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

import pyarrow as pa

from curate.captions.asking import Question, ask, judged_fields, judged_provenance
from curate.captions.framing import Prompt, frame
from curate.captions.guards import Rules, Verdict, judge
from curate.fingerprint import canonical_json
from curate.models.engine import Request, Sampling
from curate.models.generation import GenerationOperator, provenance_fields
from curate.operator import Annotate
from schemas.errors import InputError

# Some captioners write unasked; ALIP's answers a question; BLIP continues the beginning of a caption; chat models do as they are told.
_PROMPTS = {
    "plain": {"short": "", "long": ""},
    "question": {"short": "What does the image describe?", "long": "What does the image describe in detail?"},
    "blip": {"short": "a photo of", "long": "a detailed photo of"},
    "chat": {
        "short": "Write a caption of {subject} in one sentence. Say what can be seen: {look_for}. Guess no names and no places. Answer with the "
        "caption only.",
        "long": "Describe {subject} in four to eight sentences. Say only what can be seen: {look_for}. Guess no names and no places, and do not "
        "say what is not there. Answer with the description only, in one paragraph.",
    },
}
_ANY_DOMAIN = {"subject": "the picture", "look_for": "objects, their number, colours and places, and what happens"}
_NEW_TOKENS = {"short": 40, "long": 256}
_MAX_WORDS = {"short": 60, "long": 220}
_AUTO = "auto"
_DIGEST_LENGTH = 16


@dataclass(frozen=True, kw_only=True)
class Recaption(GenerationOperator):
    """A synthetic caption of the picture (ALIP, arXiv 2308.08428; BLIP; UrbanCLIP; DreamLIP, arXiv 2403.17007).

    recaption             the caption; null where the answer was not taken, or the picture could not be read
    recaption_refusal     why the last answer was not taken, empty where it was: empty, refusal, too_short, too_long, repetition, prompt
    recaption_num_tries   how often it was asked for; answers that are not drawn (temperature=0) are not asked for again
    recaption_model, _revision, _prompt_digest, _sampling, _finish_reason, _log_probability    where it comes from

    `form` is `plain` (nothing is said, for captioners that write unasked), `question` (ALIP's, for models that answer questions), `blip` (the
    beginning of a caption, for captioners that continue it), `chat` (an instruction, for chat models that see) or `auto`: plain for BLIP, GIT
    and encoders with a decoder, chat for all others. `length` is short (one sentence) or long (a paragraph: cut it with sub_captions).
    `domain` tells a chat model what it sees and what counts there: satellite, street, medical, product, art or chart. `prompt` replaces our
    words. Nothing from the web is in the request but the picture, whose painted text can only speak to its own caption.
    """

    name = "recaption"
    version = 1
    reads = ("uid", "image")
    writes = pa.schema([("recaption", pa.string()), *judged_fields("recaption"), *provenance_fields("recaption")])

    max_new_tokens: int = 0  # 0: 40 where short, 256 where long
    form: str = "auto"  # plain, question, blip, chat, or auto
    length: str = "short"  # short or long
    domain: str = ""  # of the pictures, for chat; empty: any
    prompt: str = ""  # instead of our words
    num_tries: int = 2  # attempts in all
    min_words: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form not in (*_PROMPTS, _AUTO):
            raise InputError(f"recaption form is {self.form!r}; it is one of {', '.join((*_PROMPTS, _AUTO))}")
        if self.length not in _NEW_TOKENS:
            raise InputError(f"recaption length is {self.length!r}; it is one of {', '.join(_NEW_TOKENS)}")
        if self.num_tries < 1:
            raise InputError(f"recaption num_tries is {self.num_tries}; it must be 1 or more")
        if self.domain and (self.form != "chat" or self.prompt):
            raise InputError(f"recaption domain={self.domain!r} is for form=chat without a prompt of one's own")
        _find_domain(self.domain)

    def identity(self) -> Mapping[str, Any]:
        """Return the parameters with our words by their content."""
        content = canonical_json([_PROMPTS, _find_domain(self.domain)]).encode()
        return {**super().identity(), "words": hashlib.sha256(content).hexdigest()[:_DIGEST_LENGTH]}

    @property
    def sampling(self) -> Sampling:
        """How answers are drawn."""
        return replace(super().sampling, max_new_tokens=self.max_new_tokens or _NEW_TOKENS[self.length])

    def question(self) -> str:
        """Return what the model is told about every picture; with form=auto the model's configuration is read."""
        if self.prompt:
            return self.prompt
        form = self._find_form() if self.form == _AUTO else self.form
        return _PROMPTS[form][self.length].format_map(_find_domain(self.domain))

    def _find_form(self) -> str:
        if self.engine == "openai":
            return "chat"
        from curate.models.captioner import CAPTIONER_TYPES
        from curate.models.preprocess import read_config

        kind = (read_config(self.model, self.revision, "config.json") or {}).get("model_type", "")
        return "plain" if kind in CAPTIONER_TYPES else "chat"

    def load(self) -> Annotate:
        engine, question_text = self.open_engine(), self.question()
        messages = frame(Prompt(instruction=question_text))
        rules = Rules(
            min_words=self.min_words,
            max_words=_MAX_WORDS[self.length],
            needs_source=False,
            keep_names=False,
            keep_numbers=False,
        )
        # The same question without chance has the same answer.
        tries = self.num_tries if self.sampling.is_drawn else 1
        # What BLIP continues is the beginning of its caption.
        shown = [] if self.form == "blip" else [question_text]

        def take(answer: str) -> Verdict:
            text = " ".join(answer.split()) if self.length == "long" else answer
            return judge(text, "", rules, prompt=shown)

        def annotate(batch: pa.Table) -> Mapping[str, Sequence[Any]]:
            def question(uid: str, image: bytes) -> Question:
                def build(attempt: int) -> Request:
                    return Request(messages=messages, sample=uid, image=image, seed=self.request_seed(uid, attempt))

                return Question(build=build, judge=take)

            pairs = zip(batch["uid"].to_pylist(), batch["image"].to_pylist(), strict=True)
            made = ask(engine, self.sampling, [question(uid, image) for uid, image in pairs], tries)
            return {
                "recaption": [one.text for one in made],
                **judged_provenance(self, "recaption", made),
                "error": [one.error or None for one in made],
            }

        return annotate


def _find_domain(domain: str) -> Mapping[str, str]:
    if not domain:
        return _ANY_DOMAIN
    domains: Mapping[str, Mapping[str, str]] = json.loads(
        (files("curate.captions") / "domains.json").read_text("utf-8")
    )
    if domain not in domains:
        raise InputError(f"recaption domain is {domain!r}; it is one of {', '.join(domains)}")
    return domains[domain]
