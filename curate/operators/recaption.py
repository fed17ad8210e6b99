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

# ALIP's captioner answers a question; BLIP continues the beginning of a caption; chat models do as they are told.
_PROMPTS = {
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
_DIGEST_LENGTH = 16


@dataclass(frozen=True, kw_only=True)
class Recaption(GenerationOperator):
    """A synthetic caption of the picture (ALIP, arXiv 2308.08428; BLIP; UrbanCLIP; DreamLIP, arXiv 2403.17007).

    recaption             the caption; null where the answer was not taken, or the picture could not be read
    recaption_refusal     why the last answer was not taken, empty where it was: empty, refusal, too_short, too_long, repetition, prompt
    recaption_num_tries   how often it was asked for; answers that are not drawn (temperature=0) are not asked for again
    recaption_model, _revision, _prompt_digest, _sampling, _finish_reason, _log_probability    where it comes from

    `form` is `question` (ALIP's, for models that answer questions), `blip` (the beginning of a caption, for models that continue it) or
    `chat` (an instruction, for chat models that see). `length` is short (one sentence) or long (a paragraph: cut it with sub_captions).
    `domain` tells a chat model what it sees and what counts there: satellite, street, medical, product, art or chart. `prompt` replaces our
    words. Nothing from the web is in the request but the picture, whose painted text can only speak to its own caption.
    """

    name = "recaption"
    version = 1
    reads = ("uid", "image")
    writes = pa.schema([("recaption", pa.string()), *judged_fields("recaption"), *provenance_fields("recaption")])

    max_new_tokens: int = 0  # 0: 40 where short, 256 where long
    form: str = "question"  # question, blip or chat
    length: str = "short"  # short or long
    domain: str = ""  # of the pictures, for chat; empty: any
    prompt: str = ""  # instead of our words
    num_tries: int = 2  # attempts in all
    min_words: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form not in _PROMPTS:
            raise InputError(f"recaption form is {self.form!r}; it is one of {', '.join(_PROMPTS)}")
        if self.length not in _NEW_TOKENS:
            raise InputError(f"recaption length is {self.length!r}; it is one of {', '.join(_NEW_TOKENS)}")
        if self.num_tries < 1:
            raise InputError(f"recaption num_tries is {self.num_tries}; it must be 1 or more")
        if self.domain and (self.form != "chat" or self.prompt):
            raise InputError(f"recaption domain={self.domain!r} is for form=chat without a prompt of one's own")
        self.question()

    def identity(self) -> Mapping[str, Any]:
        """Return the parameters, and what is asked in place of how it is named."""
        own = {key: value for key, value in super().identity().items() if key not in ("form", "domain", "prompt")}
        content = hashlib.sha256(canonical_json(self.question()).encode()).hexdigest()
        return {**own, "prompt": content[:_DIGEST_LENGTH]}

    @property
    def sampling(self) -> Sampling:
        """How answers are drawn."""
        return replace(super().sampling, max_new_tokens=self.max_new_tokens or _NEW_TOKENS[self.length])

    def question(self) -> str:
        """Return what the model is asked about every picture."""
        if self.prompt:
            return self.prompt
        domains = json.loads((files("curate.captions") / "domains.json").read_text("utf-8"))
        if self.domain and self.domain not in domains:
            raise InputError(f"recaption domain is {self.domain!r}; it is one of {', '.join(domains)}")
        return _PROMPTS[self.form][self.length].format_map(domains.get(self.domain, _ANY_DOMAIN))

    def load(self) -> Annotate:
        engine, messages, ours = self.open_engine(), frame(Prompt(instruction=self.question())), [self.question()]
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
        shown = [] if self.form == "blip" else ours

        def take(answer: str) -> Verdict:
            text = " ".join(answer.split()) if self.length == "long" else answer
            return judge(text, "", rules, prompt=shown)

        def annotate(batch: pa.Table) -> Mapping[str, Sequence[Any]]:
            def question(uid: str, image: bytes) -> Question:
                def build(attempt: int) -> Request:
                    return Request(messages=messages, image=image, seed=self.request_seed(uid, attempt))

                return Question(build=build, judge=take)

            pairs = zip(batch["uid"].to_pylist(), batch["image"].to_pylist(), strict=True)
            made = ask(engine, self.sampling, [question(uid, image) for uid, image in pairs], tries)
            return {
                "recaption": [one.text for one in made],
                **judged_provenance(self, "recaption", made),
                "error": [one.error or None for one in made],
            }

        return annotate
