"""English alt-texts for scenes, in many styles."""

import random
from collections.abc import Mapping

from pipelines.demo.scenes import Group, Scene

_NUMBERS = ("", "one", "two", "three", "four")
_PLURALS = {"fish": "fish"}
_BACKGROUNDS = {
    "plain": ("on a plain background", "on plain grey paper", ""),
    "gradient": ("on a soft gradient", "in front of a pale gradient", ""),
    "striped": ("on a striped background", "over pale stripes", "on striped wallpaper"),
    "dotted": ("on a dotted background", "on polka dot paper", "over pale dots"),
    "grass": ("on green grass", "in a meadow", "lying on the lawn"),
    "sand": ("on the sand", "on a sandy beach", "lying in the sand"),
    "sea": ("in front of the sea", "above the waves", "at the seaside"),
    "night": ("at night", "under a starry night sky", "in the dark of the night"),
}
_SINGLE = (
    "{a}",
    "{a} {bg}",
    "a picture of {a} {bg}",
    "a drawing that shows {a} {bg}",
    "this picture shows {a} {bg}",
    "here we see {a} {bg}",
    "illustration of {a} {bg}",
    "{A} {BG}, wall art print",
    "poster with {a}",
    "a lovely little image of {a} {bg} for the children's room",
)
_PAIRED: Mapping[str, tuple[str, ...]] = {
    "left of": (
        "{a} to the left of {b}",
        "{a} left of {b} {bg}",
        "{b} to the right of {a} {bg}",
        "a picture of {a} on the left and {b} on the right",
        "{bg}, {b} can be seen on the right of {a}",
        "{A} Left Of {B} {BG}, art print",
    ),
    "above": (
        "{a} above {b}",
        "{b} below {a} {bg}",
        "{a} on top and {b} underneath {bg}",
        "an image of {a} above {b} {bg}",
        "{bg}, {b} can be seen under {a}",
        "{A} Above {B} {BG}, poster",
    ),
    "inside": (
        "{a} inside {b}",
        "{b} with {a} inside {bg}",
        "{b} that holds {a}, {bg}",
        "a drawing of {a} in the middle of {b} {bg}",
        "{a} drawn inside {b} {bg}",
        "{B} With {A} Inside {BG}, sticker",
    ),
}
# Prompt templates of the zero-shot evaluation; `{c}` is the class name, as in CLIP_benchmark.
PROMPTS = (
    "a picture of a {c}",
    "a {c}",
    "{c}s",
    "a drawing that shows {c}s",
    "illustration of a {c} on a plain background",
    "poster with a {c}",
)


def caption(scene: Scene, seed: int) -> str:
    """Return a true English caption; the seed chooses among styles that differ in length, order and detail."""
    random_source = random.Random(f"{scene.seed} {seed}")
    phrases = [_describe(group, random_source) for group in scene.groups]
    background = random_source.choice(_BACKGROUNDS[scene.background])
    template = random_source.choice(_PAIRED[scene.relation] if scene.relation else _SINGLE)
    return _fill(template, phrases, background)


def captions(scene: Scene, num_captions: int) -> list[str]:
    """Return several different true captions of one scene."""
    found: dict[str, None] = {}
    for seed in range(40 * num_captions):
        found.setdefault(caption(scene, 1_000_000 + seed))
        if len(found) == num_captions:
            break
    return list(found)


def _fill(template: str, phrases: list[str], background: str) -> str:
    second = phrases[1] if len(phrases) > 1 else ""
    text = template.format(
        a=phrases[0], b=second, bg=background, A=phrases[0].title(), B=second.title(), BG=background.title()
    )
    return " ".join(text.split()).replace(" ,", ",").strip(" ,")


def _describe(group: Group, random_source: random.Random) -> str:
    noun = f"{group.colour} {group.object}" if group.count == 1 else f"{group.colour} {_pluralise(group.object)}"
    if group.size and random_source.random() < 0.7:
        noun = f"{group.size} {noun}"
    if group.count == 1:
        article = "an" if noun[0] in "aeiou" else "a"
        return random_source.choice((f"{article} {noun}", f"one {noun}", f"a single {noun}", f"{article} {noun}"))
    choices = [f"{_NUMBERS[group.count]} {noun}", f"{_NUMBERS[group.count]} {noun}", f"{group.count} {noun}"]
    if group.count == 2:
        choices.append(f"a pair of {noun}")
    return random_source.choice(choices)


def _pluralise(noun: str) -> str:
    return _PLURALS.get(noun, f"{noun}s")
