"""A selection as a value: named rules, cuts, a sampling weight and a caption mixture, all over the columns of a pool."""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from schemas.errors import InputError
from schemas.selection import DOWNLOADED_RULE, LIMIT_RULE, MIX_RULE, PER_GROUP_RULE, TOP_RULE

# A rule is a bit of a 64-bit mask; the download and four cuts take five.
MAX_RULES = 59
ELEMENTS = "[*]"  # `rewrite[*]`: every text of a list column
_RESERVED = (DOWNLOADED_RULE, TOP_RULE, PER_GROUP_RULE, MIX_RULE, LIMIT_RULE)
_TOP_OF = ("rules", "pool")
_MIX_HOW = ("weights", "cut")
MAX_NAME = 80
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_.-]{{0,{MAX_NAME - 1}}}")


@dataclass(frozen=True, kw_only=True)
class Top:
    """The best share of the rows that passed every rule, or of all that were downloaded (DataComp, arXiv 2304.14108).

    With the N scores in descending order the threshold is the one at index int(N * fraction), counted from 0; rows at or above it stay,
    so ties at the threshold stay together. A null score fails.

    Top(by="b32.clip_score", fraction=0.3)
    Top(by="b32.clip_score", fraction=0.3, of="pool")     # the threshold does not depend on the rules
    """

    by: str  # SQL of the score, higher is better
    fraction: float  # share of the rows to keep, above 0 and at most 1
    of: str = "rules"  # N counts what passed the rules; or "pool": every row that was downloaded

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise InputError(f"top fraction is {self.fraction}; it must be above 0 and at most 1")
        if self.of not in _TOP_OF:
            raise InputError(f"top of is {self.of!r}; it must be one of {', '.join(_TOP_OF)}")


@dataclass(frozen=True, kw_only=True)
class PerGroup:
    """At most so many rows of each group; rows whose group is null count as one group.

    PerGroup(by="near_dedup.near_dedup_group", num_samples=1, order="b32.clip_score")
    PerGroup(by="regexp_extract(url, '//([^/]+)', 1)", num_samples=1000)
    """

    by: str  # SQL of the group
    num_samples: int  # rows kept of each group
    order: str | None = None  # SQL of the score whose highest rows stay; null: drawn at random by seed
    descending: bool = True  # false: the lowest stay

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise InputError(f"per_group num_samples is {self.num_samples}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Mix:
    """How much of the draws, or of the rows, each source gives (Nguyen et al. 2022, arXiv 2208.05516); the others are dropped.

    Mix(by="source", shares={"cc12m": 0.7, "laion": 0.3})                       # by weight: every row stays, draws have these shares
    Mix(by="source", shares={"cc12m": 1, "laion": 1}, how="cut", num_samples=1_000_000)
    Mix(by="language.language_code", temperature=2.0)                           # shares in proportion to n ** (1 / 2)
    """

    by: str  # SQL of the source
    shares: Mapping[str, float] = field(
        default_factory=dict
    )  # source: share, relative to the others; sources not named have none
    temperature: float | None = (
        None  # in place of shares: a source of n rows has n ** (1 / temperature); 1 as they are, larger more alike
    )
    how: str = "weights"  # weights: rows are drawn more or less often; cut: so many rows of each stay that the shares are right
    num_samples: int | None = None  # of a cut, rows kept in all; null: as many as the shares allow
    order: str | None = None  # of a cut, SQL of the score whose highest rows stay; null: drawn at random by seed

    def __post_init__(self) -> None:
        if bool(self.shares) == (self.temperature is not None):
            raise InputError("mix needs either shares, such as {cc12m: 0.7, laion: 0.3}, or a temperature")
        if not all(0 < share < math.inf for share in self.shares.values()):
            raise InputError(
                f"mix shares must be above 0, got {dict(self.shares)}; leave out a source that is to have none"
            )
        if self.temperature is not None and not 0 < self.temperature < math.inf:
            raise InputError(
                f"mix temperature is {self.temperature}; it must be above 0, and finite: 1000 makes sources all alike"
            )
        if self.how not in _MIX_HOW:
            raise InputError(f"mix how is {self.how!r}; it must be one of {', '.join(_MIX_HOW)}")
        if self.how != "cut" and (self.num_samples is not None or self.order is not None):
            raise InputError("mix num_samples and order are of a cut; give how: cut, or leave them out")
        if self.num_samples is not None and self.num_samples < 1:
            raise InputError(f"mix num_samples is {self.num_samples}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Limit:
    """At most so many rows in all; equal scores are told apart by uid.

    Limit(num_samples=1_000_000)                          # drawn at random by seed
    Limit(num_samples=1_000_000, by="b32.clip_score")     # the highest
    """

    num_samples: int  # rows kept in all
    by: str | None = None  # SQL of the score whose highest rows stay; null: drawn at random by seed
    descending: bool = True  # false: the lowest stay

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise InputError(f"limit num_samples is {self.num_samples}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which rows of a pool to train on, how often, and with which texts.

    Selection(
        name="clip30",
        rules={"small": "least(original_width, original_height) >= 200", "words": "caption_num_words > 2"},
        top=Top(by="b32.clip_score", fraction=0.3),
        weight="exp(4 * b32.clip_score)",
        captions={"alt_text": 0.5, "recap.recaption": 0.5},
    )
    """

    name: str = "selection"  # names the folder
    rules: Mapping[str, str] = field(default_factory=dict)  # reason: SQL that is true for rows to keep, in order
    top: Top | None = None  # the best share of what passed the rules
    per_group: PerGroup | None = None  # then a cap per group
    mix: Mix | None = None  # then the shares of sources
    limit: Limit | None = None  # then a cap in all
    weight: str = "1.0"  # SQL of the relative number of draws per epoch, 0 or more
    captions: Mapping[str, float] = field(default_factory=lambda: {"alt_text": 1.0})  # text column: probability
    seed: int = 0  # of the random choice in per_group, mix and limit

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise InputError(
                f"selection name {self.name!r} must be letters, digits, '_', '-' or '.', at most {MAX_NAME} of them: it names a folder"
            )
        if len(self.rules) > MAX_RULES:
            raise InputError(f"{len(self.rules)} rules are too many; join some with AND to have at most {MAX_RULES}")
        for reason, predicate in self.rules.items():
            if reason in _RESERVED or not reason.strip():
                raise InputError(f"rule {reason!r} needs another name; {', '.join(_RESERVED)} are taken")
            if not predicate.strip():
                raise InputError(f"rule {reason!r} is empty; give a SQL condition that is true for rows to keep")
        if self.limit and self.mix and self.mix.how == "cut":
            raise InputError("a limit after a mix by cut would undo the shares; give mix.num_samples in place of limit")
        if not self.captions or not all(0 <= share < math.inf for share in self.captions.values()):
            raise InputError(f"caption probabilities must be 0 or more, got {dict(self.captions)}")
        if sum(self.captions.values()) <= 0:
            raise InputError(f"caption probabilities add up to 0, got {dict(self.captions)}; give one a share")

    def mixture(self) -> dict[str, float]:
        """Return the caption columns with probabilities that add up to 1."""
        total = sum(self.captions.values())
        return {name: share / total for name, share in self.captions.items()}

    def expressions(self) -> dict[str, str]:
        """Return every SQL expression by what an error should call it."""
        found = {f"rule {reason!r}": predicate for reason, predicate in self.rules.items()}
        if self.top:
            found["top by"] = self.top.by
        if self.per_group:
            found["per_group by"] = self.per_group.by
            if self.per_group.order:
                found["per_group order"] = self.per_group.order
        if self.mix:
            found["mix by"] = self.mix.by
            if self.mix.order:
                found["mix order"] = self.mix.order
        if self.limit and self.limit.by:
            found["limit by"] = self.limit.by
        return {**found, "weight": self.weight}

    def settings(self) -> dict[str, object]:
        """Return the settings as JSON values; rules as a list, for their order counts."""
        # A selection without a mix is the one it was before there were mixes.
        mix = {"mix": asdict(self.mix)} if self.mix else {}
        return {
            "name": self.name,
            "rules": [[reason, predicate] for reason, predicate in self.rules.items()],
            "top": asdict(self.top) if self.top else None,
            "per_group": asdict(self.per_group) if self.per_group else None,
            **mix,
            "limit": asdict(self.limit) if self.limit else None,
            "weight": self.weight,
            "captions": [[name, share] for name, share in self.mixture().items()],
            "seed": self.seed,
        }


def read_selection(content: Mapping[str, Any]) -> Selection:
    """Return the selection whose `settings` a selection.json holds."""
    kinds = {"top": Top, "per_group": PerGroup, "mix": Mix, "limit": Limit}
    cuts: dict[str, Any] = {name: kind(**content[name]) for name, kind in kinds.items() if content.get(name)}
    return Selection(
        name=content["name"],
        rules=dict(content["rules"]),
        weight=content["weight"],
        captions=dict(content["captions"]),
        seed=content["seed"],
        **cuts,
    )
