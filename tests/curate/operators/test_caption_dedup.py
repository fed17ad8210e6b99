"""Near copies of captions."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from curate.operators.caption_dedup import CaptionDedup
from schemas.errors import InputError
from tests.contract import check_pool_operator

FINGERPRINT = "80386c595cb72e5d28905462731ca256167d4cf3b941178d0bfc99a1fab11f59"
LONG = "A very old fishing boat lies on the grey beach below the cliffs of Dover in the evening light"
ROWS: list[tuple[str, str | None, str]] = [
    ("a", LONG, "success"),
    ("b", LONG.upper() + "!!", "success"),  # equal but for case and punctuation, and longest as written
    ("c", LONG.replace("grey", "gray"), "success"),
    ("d", "Something else entirely: a bowl of red apples on a table", "success"),
    ("e", LONG, "failed_to_download"),
    ("f", None, "success"),
    ("g", " \n", "success"),
    ("h", "\U0001f600", "success"),
    ("i", "\U0001f600 ", "success"),
    ("j", "ok", "success"),
    ("k", "ok?", "success"),
    ("l", LONG + " by an unknown photographer, from the collection of the county museum", "success"),
]


def table(rows: list[tuple[str, str | None, str]]) -> pa.Table:
    return pa.table({
        "shard": pa.array([index // 5 for index in range(len(rows))], pa.int32()),
        "row": pa.array([index % 5 for index in range(len(rows))], pa.int32()),
        "uid": [row[0] for row in rows],
        "alt_text": pa.array([row[1] for row in rows], pa.string()),
        "status": [row[2] for row in rows],
        "error_message": pa.array([None if row[2] == "success" else "HTTP Error 404" for row in rows], pa.string()),
    })


def check(operator: CaptionDedup, rows: list[tuple[str, str | None, str]] | None = None) -> dict[str, dict[str, Any]]:
    from curate.fingerprint import fingerprint

    pinned = FINGERPRINT if operator == CaptionDedup() else fingerprint(operator, {})
    found = check_pool_operator(operator, fingerprint=pinned, rows=table(rows or ROWS))
    return {row["uid"]: row for row in found.to_pylist()}


def groups(found: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {uid: row["caption_dedup_group"] for uid, row in found.items()}


def test_contract_and_groups() -> None:
    found = check(CaptionDedup())
    alone = {uid: uid for uid in "dl"}
    assert groups(found) == {"a": "b", "b": "b", "c": "b", "e": None, "f": None, "g": None} | alone | {
        "h": "i", "i": "i", "j": "k", "k": "k",
    }  # fmt: skip
    assert [found[uid]["caption_dedup_num_copies"] for uid in "abcdi"] == [3, 3, 3, 1, 2]
    assert [found[uid]["is_caption_near_duplicate"] for uid in "abcdi"] == [True, False, True, False, False]
    assert found["a"]["caption_dedup_similarity"] == 1
    assert 0.8 <= found["c"]["caption_dedup_similarity"] < 1
    assert found["e"]["error"] == "no image: HTTP Error 404"
    assert found["f"]["error"] == found["g"]["error"] == "no alt_text"


def test_smallest_uid_stands_for_its_group() -> None:
    found = check(CaptionDedup(keep="smallest_uid"))
    assert groups(found)["b"] == groups(found)["c"] == "a"


def test_threshold_of_one_leaves_equal_ones() -> None:
    found = check(CaptionDedup(threshold=1.0))
    assert groups(found)["c"] == "c"
    assert groups(found)["a"] == "b"


def test_no_pair_below_the_threshold_and_few_above_it_are_missed() -> None:
    """Against all pairs of 400 captions with words exchanged: what is grouped is similar, and most of what is similar is grouped."""
    random = np.random.default_rng(3)
    words = [f"word{number}" for number in range(200)]
    rows: list[tuple[str, str | None, str]] = []
    for group in range(100):
        base = [words[int(w)] for w in random.integers(0, len(words), 14)]
        for copy in range(4):
            changed = list(base)
            for _ in range(copy):
                changed[int(random.integers(0, 14))] = words[int(random.integers(0, len(words)))]
            rows.append((f"{group:03d}-{copy}", " ".join(changed), "success"))
    found = check(CaptionDedup(), rows)
    texts = {uid: text for uid, text, _ in rows}
    sets = {uid: {text[i : i + 5] for i in range(len(text) - 4)} for uid, text in texts.items() if text}
    uids = sorted(sets)

    def similarity(first: str, second: str) -> float:
        return len(sets[first] & sets[second]) / len(sets[first] | sets[second])

    for uid in uids:
        group = groups(found)[uid]
        assert found[uid]["caption_dedup_similarity"] == pytest.approx(similarity(uid, group))
        assert similarity(uid, group) >= 0.8
    represented = {group for group in groups(found).values()}
    alone = [uid for uid in uids if groups(found)[uid] == uid]
    missed = sum(any(other < uid and similarity(uid, other) >= 0.8 for other in represented - {uid}) for uid in alone)
    assert len(represented) < 330
    assert missed <= 8  # of 400; at the threshold itself one in thirteen candidates is missed


def test_a_template_of_many_captions() -> None:
    rows: list[tuple[str, str | None, str]] = [
        (f"{number:04d}", f"Royalty free stock photograph of a sunset over the sea number {number}", "success")
        for number in range(300)
    ]
    found = check(CaptionDedup(), rows)
    assert len(set(groups(found).values())) < 30


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"threshold": 0}, "threshold is 0"),
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"num_bands": 0}, "must be 1 or more"),
        ({"keep": "best"}, "keep is 'best'; it must be one of longest, smallest_uid"),
    ],
)
def test_wrong_parameters(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CaptionDedup(**parameters)
