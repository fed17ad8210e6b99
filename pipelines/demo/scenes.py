"""The grammar of the miniature web's pictures: one or two groups of coloured objects, how they relate, and what lies behind them.

A scene is a value drawn from a seed. `pipelines.demo.drawing` paints it and `pipelines.demo.captions` describes it, so a caption is
true because both read the same value.
"""

import random
from dataclasses import asdict, dataclass

OBJECTS = ("circle", "square", "triangle", "star", "heart", "moon", "house", "tree", "car", "fish", "flower", "cup")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
SIZES = ("", "small", "large")  # empty: neither, and no caption mentions it
RELATIONS = ("left of", "above", "inside")  # of the first group to the second; captions also say it the other way round
BACKGROUNDS = ("plain", "gradient", "striped", "dotted", "grass", "sand", "sea", "night")
# Shapes with enough empty middle to hold a smaller object.
CONTAINERS = ("circle", "square", "heart", "house")
MAX_COUNT = 4


@dataclass(frozen=True, kw_only=True)
class Group:
    """Equal objects: `count` is 1 to 4, `size` one of SIZES."""

    object: str
    colour: str
    count: int = 1
    size: str = ""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a picture shows; `seed` fixes everything the words leave open: positions, jitter, noise, the canvas's size."""

    groups: tuple[Group, ...]
    relation: str  # one of RELATIONS, empty where there is a single group
    background: str
    seed: int

    def pairs(self) -> frozenset[tuple[str, str]]:
        """Return the (colour, object) pairs shown."""
        return frozenset((group.colour, group.object) for group in self.groups)

    def to_dict(self) -> dict[str, object]:
        """Return the scene as plain JSON values."""
        return asdict(self)


def make_scene(seed: int) -> Scene:
    """Return the scene of a seed: about half hold one group, half two."""
    random_source = random.Random(seed)
    background = random_source.choice(BACKGROUNDS)
    first = _draw_group(random_source)
    if random_source.random() < 0.45:
        return Scene(groups=(first,), relation="", background=background, seed=seed)
    relation = random_source.choice(RELATIONS)
    second = _draw_group(random_source, colours=[c for c in COLOURS if c != first.colour])
    if relation == "inside":
        first = Group(object=first.object, colour=first.colour)
        second = Group(object=random_source.choice(CONTAINERS), colour=second.colour, size="large")
    if second.object == first.object:
        others = CONTAINERS if relation == "inside" else OBJECTS
        changed = random_source.choice([name for name in others if name != first.object])
        second = Group(object=changed, colour=second.colour, count=second.count, size=second.size)
    return Scene(groups=(first, second), relation=relation, background=background, seed=seed)


def make_object_scene(colour: str, name: str, seed: int) -> Scene:
    """Return a scene that shows only objects of one class, for zero-shot classification."""
    random_source = random.Random(f"{colour} {name} {seed}")
    group = Group(object=name, colour=colour, count=_draw_count(random_source), size=random_source.choice(SIZES))
    background = random_source.choice(BACKGROUNDS)
    return Scene(groups=(group,), relation="", background=background, seed=random_source.randrange(2**31))


def _draw_group(random_source: random.Random, colours: list[str] | None = None) -> Group:
    return Group(
        object=random_source.choice(OBJECTS),
        colour=random_source.choice(colours or list(COLOURS)),
        count=_draw_count(random_source),
        size=random_source.choice(SIZES),
    )


def _draw_count(random_source: random.Random) -> int:
    return random_source.choices((1, 2, 3, 4), weights=(5, 2, 2, 1))[0]
