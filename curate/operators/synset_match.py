"""Which words of a caption mean a concept of a list, by WordNet: DataComp's text-based rule."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from curate.fingerprint import file_identity
from curate.operator import Annotate, ShardOperator
from curate.wordnet import FILES, WordNet, read_synset_offsets

_WORDS_KEPT = 1 << 18


@dataclass(frozen=True, kw_only=True)
class SynsetMatch(ShardOperator):
    """The caption's words whose first meaning in WordNet is in a list of synsets (DataComp's text-based filter, arXiv 2304.14108).

    synset_matches       those words as written, in order, repetitions included; empty where there is none
    synset_num_matches   how many, 0 and up; DataComp keeps 1 and more, with the synsets of ImageNet-21k

    The rule is that of its code: the caption is split at white space, punctuation stays with the word; a word means the first meaning of
    the first part of speech that has it or its base form (nouns, verbs, adjectives, adverbs), and only the number of that synset is
    compared, whatever its part of speech. `wordnet` is the folder of WordNet 3.0's database files, whose numbers ImageNet's are;
    `synsets` has a synset a line (n02084071). Words of more than 100 letters match nothing. About 5 us per caption.
    """

    name = "synset_match"
    version = 1
    reads = ("alt_text",)
    nullable = ("alt_text",)
    writes = pa.schema([("synset_matches", pa.list_(pa.string())), ("synset_num_matches", pa.int32())])

    wordnet: str  # folder with index.noun, noun.exc and their like
    synsets: str  # file with a synset a line

    def __post_init__(self) -> None:
        for name in ("wordnet", "synsets"):
            object.__setattr__(self, name, str(Path(getattr(self, name)).absolute()))

    def identity(self) -> dict[str, Any]:
        """Return the digests of what is read: where the files lie does not matter."""
        wordnet = {name: file_identity(str(Path(self.wordnet) / name))["sha256"] for name in FILES}
        return {"wordnet": wordnet, "synsets": file_identity(self.synsets)}

    def load(self) -> Annotate:
        wordnet, wanted = WordNet(self.wordnet), read_synset_offsets(self.synsets)

        @functools.lru_cache(_WORDS_KEPT)
        def is_wanted(word: str) -> bool:
            return wordnet.first_synset(word) in wanted

        def annotate(batch: pa.Table) -> Mapping[str, Sequence[Any]]:
            texts = batch.column("alt_text").to_pylist()
            found = [[word for word in (text or "").split() if is_wanted(word)] for text in texts]
            return {"synset_matches": found, "synset_num_matches": [len(words) for words in found]}

        return annotate
