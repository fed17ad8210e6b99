"""Names, keys and digests of a shard."""

import pyarrow as pa
import pytest

from schemas.sample import RESERVED_COLUMNS, sample_key, sample_schema, shard_digest, shard_name


@pytest.mark.parametrize(
    ("shard", "index", "shard_size", "key"),
    [
        (1, 5, 10_000, "000010005"),  # img2dataset's own example: nine digits for ten thousand
        (0, 0, 10, "000000"),
        (3, 7, 11, "0000307"),
        (12, 0, 1, "00012"),
        (123_456, 1, 1000, "123456001"),
    ],
)
def test_keys_are_img2datasets(shard: int, index: int, shard_size: int, key: str) -> None:
    assert sample_key(shard, index, shard_size) == key


def test_keys_sort_as_rows_do() -> None:
    keys = [sample_key(shard, index, 100) for shard in (0, 1, 99) for index in range(100)]
    assert keys == sorted(keys)
    assert len(set(keys)) == 300


def test_names() -> None:
    assert (shard_name(7), shard_name(123_456)) == ("00007", "123456")


def test_columns_stand_in_img2datasets_order_after_ours() -> None:
    schema = sample_schema([pa.field("similarity", pa.float64())])
    assert schema.names == [
        "uid",
        "num_occurrences",
        "similarity",
        "caption",
        "url",
        "key",
        "status",
        "error_message",
        "width",
        "height",
        "original_width",
        "original_height",
        "exif",
        "sha256",
    ]
    assert set(schema.names[3:]) <= RESERVED_COLUMNS


def table(**changes: list[str | None]) -> pa.Table:
    columns: dict[str, list[str | None]] = {
        "uid": ["1", "2"],
        "url": ["a", "b"],
        "caption": ["x", None],
        "status": ["success", "failed_to_download"],
        "sha256": ["s", None],
        "error_message": [None, "HTTP Error 503"],
    }
    return pa.table({name: pa.array(values, pa.string()) for name, values in (columns | changes).items()})


def test_a_digest_changes_with_the_content_and_with_nothing_else() -> None:
    base = shard_digest(table())
    changed = [
        table(uid=["1", "3"]),
        table(url=["a", "c"]),
        table(caption=["x", ""]),
        table(status=["success", "success"]),
        table(sha256=["s", "t"]),
        table(url=["ab", ""]),
    ]
    assert len({base, *map(shard_digest, changed)}) == 7
    assert shard_digest(table(error_message=[None, "timed out"])) == base
