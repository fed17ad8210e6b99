"""How much a caption says: its objects, their attributes and the actions between them (the C and A of CAT)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from curate.operator import Annotate, ShardOperator
from curate.parsing.parse import Parser
from schemas.errors import InputError

_PARSERS = ("rules", "spacy")


@dataclass(frozen=True, kw_only=True)
class CaptionComplexity(ShardOperator):
    """Objects, attributes and actions of the caption, and CAT's complexity (DiHT, arXiv 2301.02280); English.

    caption_complexity      the most relations that one object has, attributes and actions together, 0 and up; CAT keeps >= 1. In "a
                            black cat is chasing a small brown bird" the bird has three
    caption_num_objects     nouns that head a phrase
    caption_num_attributes  adjectives, nouns, possessives, numbers and participles that say something of an object
    caption_num_actions     verbs that link at least one object, auxiliaries not counted; CAT keeps >= 1
    caption_parse           the parse to look at: "bird: small, brown", "chase(cat, bird)"

    `parser` is `rules` (HanTa's part-of-speech model and chunking rules, about 2,000 captions per second and core) or `spacy` with the
    installed pipeline that `pipeline` names (needs the extra `spacy`). DiHT's own parser was never published, so counts differ from its.
    """

    name = "caption_complexity"
    version = 2
    reads = ("alt_text",)
    nullable = ("alt_text",)
    writes = pa.schema([
        ("caption_complexity", pa.int32()),
        ("caption_num_objects", pa.int32()),
        ("caption_num_attributes", pa.int32()),
        ("caption_num_actions", pa.int32()),
        ("caption_parse", pa.list_(pa.string())),
    ])

    parser: str = "rules"  # rules or spacy
    pipeline: str = "en_core_web_sm"  # of spaCy, installed

    def __post_init__(self) -> None:
        if self.parser not in _PARSERS:
            raise InputError(f"caption_complexity parser is {self.parser!r}; it must be one of {', '.join(_PARSERS)}")

    def identity(self) -> dict[str, Any]:
        """Return the parser, and of spaCy the pipeline with its version: another one may say something else."""
        if self.parser == "rules":
            return {"parser": self.parser}
        from curate.parsing.spacy_parser import pipeline_version

        return {"parser": self.parser, "pipeline": self.pipeline, "version": pipeline_version(self.pipeline)}

    def load(self) -> Annotate:
        parse = _load_parser(self.parser, self.pipeline)

        def annotate(batch: pa.Table) -> Mapping[str, Sequence[Any]]:
            parses = [parse(text or "") for text in batch.column("alt_text").to_pylist()]
            return {
                "caption_complexity": [found.complexity() for found in parses],
                "caption_num_objects": [len(found.objects) for found in parses],
                "caption_num_attributes": [len(found.attributes) for found in parses],
                "caption_num_actions": [len(found.actions) for found in parses],
                "caption_parse": [found.describe() for found in parses],
            }

        return annotate


def _load_parser(parser: str, pipeline: str) -> Parser:
    if parser == "rules":
        from curate.parsing.rules import RuleParser

        return RuleParser()
    from curate.parsing.spacy_parser import SpacyParser

    return SpacyParser(pipeline)
