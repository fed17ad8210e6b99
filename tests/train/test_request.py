from train.request import (
    Column,
    Ids,
    Patches,
    Pooled,
    Present,
    Teacher,
    Text,
    Tokens,
    View,
    teacher_requests,
    tower_requests,
    wanted_columns,
    wanted_texts,
    wanted_views,
)

OTHER, CAPTION = View(column="negative_uid"), Text(columns=("recaption",))
REQUESTS = (
    Pooled(View(number=1)), Patches(), View(), OTHER, Teacher(View(number=2)), Tokens(), Ids(), Present(CAPTION), Text(),
    Teacher(CAPTION), Column(name="label", kind="label"),
)  # fmt: skip


def test_sources_are_wanted_once_in_the_order_of_asking() -> None:
    assert wanted_views(REQUESTS) == (View(number=1), View(), OTHER, View(number=2))
    assert wanted_texts(REQUESTS) == (Text(), CAPTION)
    assert wanted_columns(REQUESTS) == (Column(name="label", kind="label"), Column(name="negative_uid", kind="uid"))
    assert wanted_views((Text(),)) == ()


def test_towers_and_teacher_answer_their_own() -> None:
    assert tower_requests(REQUESTS) == (Pooled(View(number=1)), Patches(), View(), OTHER, Tokens(), Text())
    assert teacher_requests(REQUESTS) == (View(number=2), CAPTION)
    assert teacher_requests((Teacher(Pooled(OTHER)),)) == (Pooled(OTHER),)
    assert wanted_views((Teacher(Pooled(OTHER)),)) == (OTHER,)


def test_every_request_has_a_key_of_its_own() -> None:
    more = (
        View(number=1, scale=(0.05, 0.4)),
        View(number=1, scale=(0.05, 0.4), size=96),
        View(number=1, size=96),
        Teacher(Pooled(View(number=2))),
        Text(count=2),
        Text(variant="masked"),
        Text(columns=("recaption",), count=2),
        Column(name="label", kind="labels", min_count=3),
    )
    assert len({request.key for request in (*REQUESTS, *more)}) == len(REQUESTS) + len(more)
