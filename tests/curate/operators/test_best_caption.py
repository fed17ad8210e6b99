"""Which text a sample gets."""

from typing import Any

import pyarrow as pa
import pytest

from curate.fingerprint import fingerprint
from curate.operators.best_caption import BestCaption
from schemas.errors import InputError
from tests.contract import check_pool_operator

FINGERPRINT = "849ea74d24a07935555f816228e26e9db9bfe7af60188680ef615e7ca5ac3aa8"

# alt-text, its score, recaption, its score
ROWS: list[tuple[str | None, float | None, str | None, float | None]] = [
    ("web 0", 0.9, "made 0", 0.1),
    ("web 1", 0.5, "made 1", 0.95),
    ("web 2", 0.4, "made 2", 0.5),
    ("web 3", 0.3, "made 3", 0.3),
    ("web 4", 0.2, None, None),
    (None, None, "made 5", 0.6),
    (" \n", None, "made 6", None),
    (None, None, None, None),
    ("web 8", 0.1, "  ", None),
    ("web 9", 0.99, "made 9", 0.99),
]
LOST = 9


def check(operator: BestCaption) -> dict[str, list[Any]]:
    alt_text, score, recaption, caption_score = zip(*ROWS, strict=True)
    num_rows = len(ROWS)
    rows = pa.table({
        "shard": pa.array([row // 4 for row in range(num_rows)], pa.int32()),
        "row": pa.array([row % 4 for row in range(num_rows)], pa.int32()),
        "uid": [f"{row:032x}" for row in range(num_rows)],
        "alt_text": pa.array(alt_text, pa.string()),
        "recaption": pa.array(recaption, pa.string()),
        "alt_text_score": pa.array(score, pa.float32()),
        "caption_score": pa.array(caption_score, pa.float32()),
        "status": ["failed_to_download" if row == LOST else "success" for row in range(num_rows)],
        "error_message": pa.array(["gone" if row == LOST else None for row in range(num_rows)], pa.string()),
    })
    pinned = FINGERPRINT if operator == BestCaption() else fingerprint(operator, {})
    return check_pool_operator(operator, fingerprint=pinned, rows=rows).to_pydict()


def test_a_fraction_of_the_pool_keeps_its_alt_text() -> None:
    # Six rows have an alt-text and its score; int(6 * 0.3) is place 1: the cut is 0.5, and ties with it stay.
    found = check(BestCaption())
    assert found["best_caption"] == [
        *("web 0", "web 1", "made 2", "made 3", "web 4", "made 5", "made 6", None, "web 8", None)
    ]
    assert found["best_caption_source"][:4] == ["alt_text", "alt_text", "recaption", "recaption"]
    # The same cut for what was made.
    assert found["is_best_caption_above_cut"] == [True, True, True, False, False, True, False, None, False, None]
    assert found["best_caption_score"][:3] == pytest.approx([0.9, 0.5, 0.5])
    assert found["best_caption_score"][6] is None
    assert found["error"][7] == "no caption"
    assert found["error"][LOST] == "no image: gone"


def test_a_threshold() -> None:
    found = check(BestCaption(threshold=0.35))
    assert found["best_caption"][:4] == ["web 0", "web 1", "web 2", "made 3"]
    assert found["is_best_caption_above_cut"][:6] == [True, True, True, False, False, True]


def test_everything_above_the_lowest() -> None:
    assert check(BestCaption(fraction=1))["best_caption"][:5] == ["web 0", "web 1", "web 2", "web 3", "web 4"]


@pytest.mark.parametrize("settings", [{"fraction": 0.0}, {"fraction": 1.5}, {"threshold": 2.0}])
def test_impossible_cuts_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(InputError, match="best_caption"):
        BestCaption(**settings)
