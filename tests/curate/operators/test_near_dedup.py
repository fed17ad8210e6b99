"""Near copies of pictures, by hash."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from curate.annotate import annotate
from curate.catalog import Catalog
from curate.columns import Input
from curate.executor import Executor
from curate.luma import to_luma
from curate.operators.near_dedup import NearDedup
from curate.operators.perceptual_hash import PerceptualHash
from curate.store import Pool
from schemas.errors import InputError
from tests.contract import check_pool_operator, run
from tests.pool import Row, draw, jpeg, write_shard

FINGERPRINT = "f9525ba3b34088b38040bc8ad6a9c462292d1cc49a2168442c1c7e68f52714ae"
# Half the bits set, as the hash of any picture with detail has.
BASE = 0x0F0F_0F0F_F0F0_F0F0


def flip(value: int, bits: int) -> int:
    """Return the hash with its lowest `bits` bits changed."""
    return value ^ ((1 << bits) - 1)


# Each row has a uid, a hash, a size in pixels, a caption and a status.
ROWS: list[tuple[str, int | None, tuple[int, int] | None, str | None, str]] = [
    ("a", BASE, (100, 100), "small", "success"),
    ("b", flip(BASE, 6), (300, 300), "largest", "success"),  # 6 bits from a
    ("c", flip(BASE, 13), (100, 90), "7 from b, 13 from a", "success"),
    ("d", BASE, (100, 100), None, "success"),
    ("e", flip(BASE, 5), (50, 50), "small", "success"),
    ("f", 0x8000_0000_0000_0000, (10, 10), "plain", "success"),
    ("g", 0x8000_0000_0000_0000, (10, 10), "plain too", "success"),
    ("h", None, None, "gone", "failed_to_download"),
    ("i", None, (10, 10), "corrupt", "success"),
    ("j", BASE ^ 0x5555_5555_5555_5555, (80, 80), "mirrored", "success"),
    ("k", BASE, (90, 90), "the same in red", "success"),
    ("l", flip(BASE, 2), (95, 95), "in red too", "success"),
]


def colours(uid: str) -> bytes:
    """Return grey for all but k and l, which are red on the left."""
    cell = np.full((8, 8, 2), 128, np.uint8)
    if uid in "kl":
        cell[:, :4, 0] = 240
    return cell.tobytes()


def table(rows: list[tuple[Any, ...]] = ROWS) -> pa.Table:
    return pa.table({
        "shard": pa.array([index // 6 for index in range(len(rows))], pa.int32()),
        "row": pa.array([index % 6 for index in range(len(rows))], pa.int32()),
        "uid": [row[0] for row in rows],
        "image_perceptual_hash": pa.array([row[1] for row in rows], pa.uint64()),
        "image_colour_layout": pa.array([None if row[1] is None else colours(row[0]) for row in rows], pa.binary(128)),
        "original_width": pa.array([row[2] and row[2][0] for row in rows], pa.int32()),
        "original_height": pa.array([row[2] and row[2][1] for row in rows], pa.int32()),
        "alt_text": pa.array([row[3] for row in rows], pa.string()),
        "status": [row[4] for row in rows],
        "error_message": pa.array([None if row[4] == "success" else "HTTP Error 404" for row in rows], pa.string()),
    })


def check(operator: NearDedup) -> dict[str, dict[str, Any]]:
    found = check_pool_operator(operator, fingerprint=fingerprint_of(operator), rows=table())
    return {row["uid"]: row for row in found.to_pylist()}


def fingerprint_of(operator: NearDedup) -> str:
    from curate.fingerprint import fingerprint

    return FINGERPRINT if operator == NearDedup() else fingerprint(operator, {})


def groups(found: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {uid: row["near_dedup_group"] for uid, row in found.items()}


def test_members_are_within_the_radius_of_the_one_that_stands_for_them() -> None:
    found = check(NearDedup())
    # b is the largest; c is near e and others only through b's neighbours, and stays alone.
    assert groups(found) == {
        "a": "b",
        "b": "b",
        "c": "c",
        "d": "b",
        "e": "b",
        "f": "f",
        "g": "g",
        "h": None,
        "i": None,
        "j": "j",
        "k": "l",
        "l": "l",
    }
    assert [found[uid]["near_dedup_distance"] for uid in "abcde"] == [6, 0, 0, 6, 1]
    assert [found[uid]["near_dedup_num_copies"] for uid in "abcdf"] == [4, 4, 1, 4, 1]
    assert [uid for uid, row in found.items() if row["is_near_duplicate"]] == ["a", "d", "e", "k"]
    assert found["b"]["near_dedup_captions"] == ["largest", "small"]
    assert all(row["near_dedup_captions"] is None for uid, row in found.items() if uid not in "bl")
    assert found["h"]["error"] == "no image: HTTP Error 404"
    assert found["i"]["error"] == "no image_perceptual_hash"
    assert found["f"]["error"] is None


def test_the_radius_counts() -> None:
    found = groups(check(NearDedup(max_distance=5)))
    assert (found["a"], found["b"], found["d"], found["e"]) == ("a", "b", "a", "b")
    found = groups(check(NearDedup(max_distance=0)))
    assert (found["a"], found["b"], found["d"], found["e"]) == ("a", "b", "a", "e")


def test_colours_may_be_left_out() -> None:
    found = groups(check(NearDedup(max_colour_distance=255)))
    assert {found[uid] for uid in "abdekl"} == {"b"}


def test_another_row_may_stand_for_the_group() -> None:
    found = check(NearDedup(keep="smallest_uid"))
    assert groups(found)["b"] == "a"
    assert found["a"]["near_dedup_captions"] == ["small", "largest"]


def test_mirrored_pictures_are_copies_where_asked_for() -> None:
    found = check(NearDedup(flips=True))
    assert found["j"]["near_dedup_group"] == "b"
    assert found["j"]["near_dedup_distance"] == 6
    assert found["k"]["near_dedup_group"] == "l"  # red on the left is not red on the right, nor grey


def test_the_hash_of_a_mirrored_picture_is_near_its_derived_hash() -> None:
    pictures = [np.asarray(draw((200, 30, 40), "circle", seed=seed, width=160, height=120)) for seed in range(20)]
    both = [to_luma(p) for p in pictures] + [to_luma(np.ascontiguousarray(p[:, ::-1])) for p in pictures]
    output = run(PerceptualHash(), {"image_luma": _luma(both)}, len(both))
    hashes = np.array(output.columns["image_perceptual_hash"].to_pylist(), np.uint64)
    gaps = np.bitwise_count(hashes[:20] ^ hashes[20:] ^ np.uint64(0x5555_5555_5555_5555))
    assert np.median(gaps) <= 4, gaps
    assert np.median(np.bitwise_count(hashes[:20] ^ hashes[20:])) > 16


def _luma(pictures: list[np.ndarray]) -> Input:
    from curate.luma import to_luma_column

    return Input.from_errors(to_luma_column(pictures), [None] * len(pictures))


@pytest.mark.parametrize(
    ("parameters", "message"), [({"max_distance": 17}, "must be 0 to 16"), ({"keep": "best"}, "one of largest")]
)
def test_wrong_parameters_are_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        NearDedup(**parameters)


def test_any_number_of_workers_gives_the_same_columns(tmp_path: Path) -> None:
    tables = []
    for workers in (1, 2):
        pool = Pool(str(tmp_path / f"pool{workers}"))
        for shard in range(2):
            rows = [
                Row(
                    url=f"https://example.org/{shard}/{index}.jpg",
                    caption=f"picture {index}",
                    image=jpeg(draw((200, 30, 40), "circle", seed=index, width=120), quality=60 + 10 * shard),
                )
                for index in range(6)
            ]
            write_shard(pool, shard, rows)
        with Executor(num_workers=workers) as executor:
            annotate(pool, [NearDedup()], executor=executor)
        with Catalog(pool) as catalog:
            tables.append(catalog.sql("SELECT * EXCLUDE (uid) FROM near_dedup ORDER BY ALL").to_arrow_table())
    assert tables[0].equals(tables[1])
    assert sum(tables[0].column("is_near_duplicate").to_pylist()) == 6  # the other quality of each picture
