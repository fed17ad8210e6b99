"""Hard negative captions by exchanging words of one part of speech."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from curate.operator import Annotate, ShardOperator
from schemas.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Negatives(ShardOperator):
    """Captions that say something else in the caption's own words (NegCLIP, arXiv 2210.01936); English, about 0.7 ms per caption.

    negatives         captions in which two units of one kind change places: "a dog chases a cat" for "a cat chases a dog"
    negative_kinds    the kind of each
    negative_swaps    what changed places: "cat <-> dog"
    num_negatives     how many, 0 and up; short captions often have none

    `kinds` are noun, adjective, verb, adverb, noun_phrase and verb_phrase, separated by spaces; `per_kind` of each at most. Which pair is
    exchanged is drawn by `seed` and uid. Partners of one form come first; pairs whose order says nothing ("a cat and a dog") are left
    out, articles follow their new word, and no negative is the caption or another negative. `negatives_llm` has a model write them.
    """

    name = "negatives"
    version = 2
    reads = ("uid", "alt_text")
    writes = pa.schema([
        ("negatives", pa.list_(pa.string())),
        ("negative_kinds", pa.list_(pa.string())),
        ("negative_swaps", pa.list_(pa.string())),
        ("num_negatives", pa.int32()),
    ])

    kinds: str = "noun adjective verb adverb noun_phrase verb_phrase"  # which units change places
    per_kind: int = 1  # negatives of each kind, at most
    seed: int = 0  # of the draw

    def __post_init__(self) -> None:
        from curate.captions.swaps import KINDS

        unknown = [kind for kind in self.kinds.split() if kind not in KINDS]
        if unknown or not self.kinds.split():
            raise InputError(f"negatives kinds is {self.kinds!r}; it takes some of {' '.join(KINDS)}")
        if self.per_kind < 1:
            raise InputError(f"negatives per_kind is {self.per_kind}; it must be 1 or more")

    def load(self) -> Annotate:
        from curate.captions.swaps import Swapper

        swapper, kinds = Swapper(), self.kinds.split()

        def annotate(batch: pa.Table) -> Mapping[str, Sequence[Any]]:
            rows = [
                swapper.swap(caption, kinds, self.per_kind, f"{self.seed} {uid}")
                for uid, caption in zip(batch["uid"].to_pylist(), batch["alt_text"].to_pylist(), strict=True)
            ]
            return {
                "negatives": [[swap.text for swap in swaps] for swaps in rows],
                "negative_kinds": [[swap.kind for swap in swaps] for swaps in rows],
                "negative_swaps": [[f"{swap.first} <-> {swap.second}" for swap in swaps] for swaps in rows],
                "num_negatives": [len(swaps) for swaps in rows],
            }

        return annotate
