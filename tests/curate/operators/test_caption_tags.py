"""Tags of captions against a vocabulary with a frequency floor."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from curate.operators.caption_complexity import CaptionComplexity
from curate.operators.caption_tags import CaptionTags
from schemas.errors import InputError
from tests.contract import check_pool_operator

FINGERPRINT = "05134366789d5a553eaee7a9c3dcd3f1fc77e9e566554de41369e32100415371"
CAPTIONS: list[tuple[str | None, str]] = [
    ("black cat on a sofa", "success"),
    ("a black dog chases a black cat", "success"),
    ("a white sofa", "success"),
    ("black cat, black cat, black cat", "success"),
    ("a zebra", "success"),
    ("a zebra", "failed_to_download"),
    (None, "success"),
    ("", "success"),
]


def table(captions: list[tuple[str | None, str]]) -> pa.Table:
    texts = pa.array([caption for caption, _ in captions], pa.string())
    parses = CaptionComplexity().load()(pa.table({"alt_text": texts}))["caption_parse"]
    statuses = [status for _, status in captions]
    return pa.table({
        "shard": pa.array([row // 3 for row in range(len(captions))], pa.int32()),
        "row": pa.array([row % 3 for row in range(len(captions))], pa.int32()),
        "uid": [f"{row:02d}" for row in range(len(captions))],
        "caption_parse": pa.array(parses, pa.list_(pa.string())),
        "status": statuses,
        "error_message": [None if status == "success" else "HTTP Error 404" for status in statuses],
    })


def check(operator: CaptionTags, captions: list[tuple[str | None, str]] | None = None) -> list[dict[str, Any]]:
    from curate.fingerprint import fingerprint

    pinned = FINGERPRINT if operator == CaptionTags() else fingerprint(operator, {})
    return check_pool_operator(operator, fingerprint=pinned, rows=table(captions or CAPTIONS)).to_pylist()


def test_contract_and_values() -> None:
    rows = check(CaptionTags(min_count=2))
    assert rows[0]["caption_tag_nouns"] == ["cat", "sofa"]
    assert rows[0]["caption_tag_adjectives"] == ["black"]
    assert rows[0]["caption_tag_phrases"] == ["black cat"]
    # Three rows name black, cat and black cat, two sofa; dog, white and zebra (whose second picture is gone) are below the floor.
    assert [row["caption_tag_ids"] for row in rows] == [[0, 1, 2, 3], [0, 1, 2], [3], [0, 1, 2], [], None, [], []]
    assert rows[4]["caption_tag_nouns"] == []
    assert rows[5]["error"] == "no image: HTTP Error 404"


def test_whose_it_is_names_nothing() -> None:
    (row,) = check(CaptionTags(min_count=1), [("a boy throws a red ball to his dog", "success")])
    assert row["caption_tag_nouns"] == ["ball", "boy", "dog"]
    assert row["caption_tag_adjectives"] == ["red"]
    assert row["caption_tag_phrases"] == ["red ball"]


def test_the_default_floor() -> None:
    assert all(not row["caption_tag_ids"] for row in check(CaptionTags()))


def test_a_tag_counts_once_per_caption() -> None:
    rows = check(CaptionTags(min_count=4))
    assert all(not row["caption_tag_ids"] for row in rows)


def test_the_most_frequent_are_kept() -> None:
    rows = check(CaptionTags(min_count=1, max_tags=1))
    assert {tag for row in rows for tag in row["caption_tag_nouns"] or ()} == set()
    assert {tag for row in rows for tag in row["caption_tag_adjectives"] or ()} == {"black"}


def test_a_vocabulary_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "tags.txt"
    path.write_text("zebra\nblack cat\nunicorn\n")
    rows = check(CaptionTags(vocabulary=str(path)))
    assert [row["caption_tag_ids"] for row in rows] == [[1], [1], [], [1], [0], None, [], []]


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "holds no tags"), ("a\n\nb\n", "line 2 is blank"), ("a\nb\na\n", "line 3, 'a', is line 1 again")],
)
def test_wrong_vocabularies(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "tags.txt"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        check(CaptionTags(vocabulary=str(path)))


def test_wrong_parameters() -> None:
    with pytest.raises(InputError, match="must be 1 or more"):
        CaptionTags(min_count=0)
