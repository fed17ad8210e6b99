"""How much of a scene a caption gets right, read off its words; and of a caption, how much its rewrite keeps."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.demo.scenes import COLOURS, OBJECTS, Group, Scene

_COUNTS = {"a": 1, "an": 1, "one": 1, "single": 1, "pair": 2, "two": 2, "three": 3, "four": 4, "2": 2, "3": 3, "4": 4}
_GROUP = re.compile(
    rf"\b({'|'.join(_COUNTS)})(?: of)?(?: (?:small|large))? ({'|'.join(COLOURS)}) ({'|'.join(OBJECTS)})s?\b",
    re.IGNORECASE,
)
# What a caption says of the first group and the second; the same relation may be said from either end.
_RELATIONS = {
    "left of": re.compile(r"\bleft\b|\bright\b", re.IGNORECASE),
    "above": re.compile(r"\babove\b|\bbelow\b|\bunder|\bon top\b", re.IGNORECASE),
    "inside": re.compile(r"\binside\b|\bholds\b|\bin the middle of\b", re.IGNORECASE),
}

Words = frozenset[tuple[int, str, str]]  # count, colour, object


@dataclass(frozen=True, kw_only=True)
class CaptionAccuracy:
    """Shares of captions, 0 to 1, that get everything of a kind right."""

    num_captions: int
    objects: float  # these objects and no others
    colours: float
    pairs: float  # every object in its colour
    counts: float  # all that and how many of each
    relations: float  # of scenes with two groups: the kind of relation


def measure_captions(scenes: Sequence[Scene], captions: Sequence[str | None]) -> CaptionAccuracy:
    """Compare a caption of each scene with what the scene shows; a missing caption is wrong in everything."""
    said = [read_groups(text or "") for text in captions]
    shown = [_groups(scene.groups) for scene in scenes]
    paired = list(zip(said, shown, strict=True))
    related = [
        bool(_RELATIONS[scene.relation].search(text or ""))
        for scene, text in zip(scenes, captions, strict=True)
        if scene.relation
    ]
    return CaptionAccuracy(
        num_captions=len(captions),
        objects=_share([{o for _, _, o in a} == {o for _, _, o in b} for a, b in paired]),
        colours=_share([{c for _, c, _ in a} == {c for _, c, _ in b} for a, b in paired]),
        pairs=_share([{(c, o) for _, c, o in a} == {(c, o) for _, c, o in b} for a, b in paired]),
        counts=_share([a == b for a, b in paired]),
        relations=_share(related),
    )


def measure_rewrites(captions: Sequence[str], rewrites: Sequence[str | None]) -> float:
    """Return the share of rewrites that name the same numbers of the same coloured objects as their captions, in other words."""
    return _share([
        text is not None and text != caption and read_groups(text) == read_groups(caption)
        for caption, text in zip(captions, rewrites, strict=True)
    ])


def read_groups(text: str) -> Words:
    """Return what a caption in the demo's English says there is."""
    return frozenset(
        (_COUNTS[count.lower()], colour.lower(), name.lower()) for count, colour, name in _GROUP.findall(text)
    )


def _groups(groups: Sequence[Group]) -> Words:
    return frozenset((group.count, group.colour, group.object) for group in groups)


def _share(outcomes: Sequence[bool]) -> float:
    return sum(outcomes) / len(outcomes) if outcomes else 0.0
