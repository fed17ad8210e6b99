"""The caption in other words, by a language model that is shown examples."""

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from curate.captions.asking import Question, ask, list_provenance, list_provenance_fields
from curate.captions.examples import Source, read_sources
from curate.captions.framing import FORMS, MAX_CHARACTERS, Prompt, clean, first_line, frame
from curate.captions.guards import Rules, Verdict, judge
from curate.fingerprint import canonical_json
from curate.models.engine import Request, Sampling
from curate.models.generation import GenerationOperator
from curate.operator import Annotate
from schemas.errors import InputError

_COMPLETION = "Say each of these image captions in other words, and keep what it says:"
_CHAT = (
    "You rewrite captions of pictures. Say the caption in other words and in its own language. Keep what it says: objects, numbers and names; "
    "add nothing. Answer with the new caption only, on one line."
)
_CLOSING = "Answer with this caption in other words, on one line."
_DIGEST_LENGTH = 16


@dataclass(frozen=True, kw_only=True)
class Rewrite(GenerationOperator):
    """Each caption in other words, once in the manner of every source of examples (LaCLIP, arXiv 2305.20088).

    rewrite                    a text for every source, in their order; null where none was taken
    rewrite_sources            the names of the sources: polished, vivid, human and coco, or those of `examples`
    rewrite_refusals           why the last answer was not taken, empty where it was: empty, refusal, too_short, too_long, repetition, prompt
                               (our words), copy, language, numbers, names, unrelated
    rewrite_num_tries          how often it was asked for; the second time with another seed and other examples
    rewrite_model, _revision, _sampling, _prompt_digests, _finish_reasons, _log_probabilities    where the texts come from

    The protocol is the paper's: an instruction, `num_examples` pairs drawn anew for every caption, source and attempt by `seed` and uid,
    then the caption; `completion` writes `input => output` blocks for models that continue a text, `chat` turns for those that follow
    instructions. Defaults of the sampling are the paper's. Captions are cut to `max_characters` and cannot leave their frame. In a
    mixture write `rewrite.rewrite[*]`.
    """

    name = "rewrite"
    version = 1
    reads = ("uid", "alt_text")
    writes = pa.schema([
        ("rewrite", pa.list_(pa.string())),
        ("rewrite_sources", pa.list_(pa.string())),
        *list_provenance_fields("rewrite"),
    ])

    temperature: float = 0.9
    top_p: float = 0.95
    form: str = "completion"  # completion, or chat
    examples: str = ""  # JSON file of sources; empty: the four that come along
    num_examples: int = 3  # shown for each caption
    num_tries: int = 2  # attempts at each text in all
    min_words: int = 2
    max_words: int = 77
    keep_names: bool = True  # refuse texts without the caption's names
    keep_numbers: bool = True  # refuse texts with other numbers than the caption's
    max_characters: int = MAX_CHARACTERS  # of the caption that is shown

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form not in FORMS:
            raise InputError(f"rewrite form is {self.form!r}; it is one of {', '.join(FORMS)}")
        if self.num_tries < 1 or self.num_examples < 0 or self.max_characters < 1:
            raise InputError("rewrite: num_tries and max_characters must be 1 or more, num_examples 0 or more")
        if self.examples:
            object.__setattr__(self, "examples", str(Path(self.examples).absolute()))
        # A recipe can be looked at before the file that it names is made; running it reads the file first of all.
        sources = read_sources(self.examples) if not self.examples or Path(self.examples).exists() else []
        small = [source for source in sources if source.size < self.num_examples]
        if small:
            raise InputError(
                f"rewrite num_examples is {self.num_examples}; source {small[0].name!r} has {small[0].size} examples"
            )

    def identity(self) -> Mapping[str, Any]:
        """Return the parameters, the examples and our words by their content."""
        sources = [(source.name, source.pairs, source.groups) for source in read_sources(self.examples)]
        content = canonical_json([sources, _COMPLETION, _CHAT, _CLOSING]).encode()
        return {**super().identity(), "examples": hashlib.sha256(content).hexdigest()[:_DIGEST_LENGTH]}

    @property
    def sampling(self) -> Sampling:
        """How answers are drawn; a completion ends with its line."""
        return replace(super().sampling, stop=("\n",)) if self.form == "completion" else super().sampling

    def load(self) -> Annotate:
        engine, sources = self.open_engine(), read_sources(self.examples)

        def annotate(batch: pa.Table) -> Mapping[str, Sequence[Any]]:
            captions = [clean(text, self.max_characters) for text in batch["alt_text"].to_pylist()]
            asked = [row for row, caption in enumerate(captions) if caption]
            uids = batch["uid"].to_pylist()
            questions = [
                self._question(uids[row], captions[row], number, source)
                for row in asked
                for number, source in enumerate(sources)
            ]
            made = ask(engine, self.sampling, questions, self.num_tries)
            found = {row: made[place * len(sources) :][: len(sources)] for place, row in enumerate(asked)}
            rows = [found.get(row, []) for row in range(batch.num_rows)]
            errors = [next((one.error for one in row if one.error), None) for row in rows]
            return {
                "rewrite": [[one.text for one in row] for row in rows],
                "rewrite_sources": [[source.name for source in sources] if row else [] for row in rows],
                **list_provenance(self, "rewrite", rows, self.sampling),
                "error": [error if row else "blank caption" for row, error in zip(rows, errors, strict=True)],
            }

        return annotate

    def _question(self, uid: str, caption: str, number: int, source: Source) -> Question:
        def build(attempt: int) -> Request:
            key = f"{self.seed} {uid} {source.name} {attempt}"
            draws = random.Random(hashlib.sha256(key.encode()).digest())
            messages = frame(self.prompt(caption, source.draw(self.num_examples, draws)))
            return Request(
                messages=messages, sample=uid, seed=self.request_seed(uid, number * self.num_tries + attempt)
            )

        rules = Rules(
            min_words=self.min_words,
            max_words=self.max_words,
            keep_names=self.keep_names,
            keep_numbers=self.keep_numbers,
        )
        shown = [_COMPLETION, _CHAT, _CLOSING, *(text for pair in source.pairs for text in pair)]

        def take(answer: str) -> Verdict:
            return judge(first_line(answer) if self.form == "completion" else answer, caption, rules, prompt=shown)

        return Question(build=build, judge=take)

    def prompt(self, caption: str, examples: Sequence[tuple[str, str]]) -> Prompt:
        """Return what is asked about a caption with these examples."""
        is_chat = self.form == "chat"
        return Prompt(
            instruction=_CHAT if is_chat else _COMPLETION,
            parts={"Caption" if is_chat else "": caption},
            examples=examples,
            closing=_CLOSING if is_chat else "",
            form=self.form,
            max_characters=self.max_characters,
        )
