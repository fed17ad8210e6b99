"""Copies by picture, caption and pair."""

import pyarrow as pa

from curate.operators.exact_dedup import ExactDedup
from tests.contract import check_pool_operator

FINGERPRINT = "9468c43a57e5f6b8a41fa53e8f9a502dcc1bcf0c34b2b306b268efb866075c7f"

# Rows in pool order: uid, digest, caption, status.
ROWS = [
    ("d", "s1", "a dog", "success"),
    ("b", "s1", "a dog", "success"),
    ("c", "s1", "a cat", "success"),
    ("a", "s2", "a dog", "success"),
    ("e", "s3", None, "success"),
    ("f", "s4", None, "success"),
    ("g", "s5", "", "success"),
    ("h", None, "a dog", "failed_to_download"),
    ("i", "s1", "a dog", "failed_to_resize"),
]


def table() -> pa.Table:
    return pa.table({
        "shard": pa.array([0, 0, 0, 0, 0, 1, 1, 1, 1], pa.int32()),
        "row": pa.array([0, 1, 2, 3, 4, 0, 1, 2, 3], pa.int32()),
        "uid": [uid for uid, *_ in ROWS],
        "sha256": [digest for _, digest, _, _ in ROWS],
        "alt_text": [caption for _, _, caption, _ in ROWS],
        "status": [status for *_, status in ROWS],
        "error_message": [None if status == "success" else "HTTP Error 404: Not Found" for *_, status in ROWS],
    })


def test_copies() -> None:
    found = {
        row["uid"]: row for row in check_pool_operator(ExactDedup(), fingerprint=FINGERPRINT, rows=table()).to_pylist()
    }

    def groups(subject: str) -> dict[str, tuple[str, int, bool]]:
        return {
            uid: (row[f"{subject}_duplicate_group"], row[f"{subject}_num_copies"], row[f"is_{subject}_duplicate"])
            for uid, row in found.items()
            if uid not in "hi"
        }

    alone = {uid: (uid, 1, False) for uid in "efg"}
    # The smallest uid stands for the group, whatever the order of the rows.
    assert groups("image") == {
        "d": ("b", 3, True),
        "b": ("b", 3, False),
        "c": ("b", 3, True),
        "a": ("a", 1, False),
        **alone,
    }
    # Rows without a caption are nobody's copies.
    assert groups("caption") == {
        "d": ("a", 3, True),
        "b": ("a", 3, True),
        "c": ("c", 1, False),
        "a": ("a", 3, False),
        **alone,
    }
    assert groups("pair") == {
        "d": ("b", 2, True),
        "b": ("b", 2, False),
        "c": ("c", 1, False),
        "a": ("a", 1, False),
        **alone,
    }


def test_rows_without_a_picture_are_null_and_take_no_part() -> None:
    found = {
        row["uid"]: row for row in check_pool_operator(ExactDedup(), fingerprint=FINGERPRINT, rows=table()).to_pylist()
    }
    for uid in "hi":
        assert found[uid].pop("error") == "no image: HTTP Error 404: Not Found"
        assert set(found[uid].values()) == {uid, None}
    assert found["d"]["error"] is None
