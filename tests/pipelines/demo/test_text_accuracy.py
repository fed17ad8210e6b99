"""What a caption says, against what a scene shows."""

import pytest

from pipelines.demo.captions import caption
from pipelines.demo.scenes import Group, Scene, make_scene
from pipelines.demo.text_accuracy import measure_captions, measure_rewrites, read_groups

SCENE = Scene(
    groups=(Group(object="car", colour="red", count=2), Group(object="fish", colour="blue")),
    relation="left of",
    background="plain",
    seed=1,
)


@pytest.mark.parametrize("number", range(0, 400, 4))
def test_every_true_caption_is_read_as_its_scene(number: int) -> None:
    scene = make_scene(number)
    for style in range(8):
        found = measure_captions([scene], [caption(scene, style)])
        assert (found.objects, found.colours, found.pairs, found.counts) == (1, 1, 1, 1), caption(scene, style)
        assert found.relations == (1 if scene.relation else 0)


def test_every_kind_of_mistake_counts_for_its_kind() -> None:
    captions = [
        "a pair of red cars left of a blue fish",  # right
        "three red cars left of a blue fish",  # the count
        "two blue cars left of a red fish",  # the pairs
        "two red cars above a green fish",  # a colour, and the relation
        "two red cups left of a blue fish",  # an object
        None,
    ]
    found = measure_captions([SCENE] * 6, captions)
    assert found.num_captions == 6
    assert [round(6 * share) for share in (found.objects, found.colours, found.pairs, found.counts)] == [4, 4, 2, 1]
    assert round(6 * found.relations) == 4


def test_rewrites_must_keep_what_they_say_in_other_words() -> None:
    given = ["a red car", "a red car", "a red car", "a red car"]
    assert measure_rewrites(given, ["one red car at night", "a red car", "a blue car", None]) == 0.25


def test_an_unknown_text_says_nothing() -> None:
    assert read_groups("Eine rote Katze") == frozenset()
