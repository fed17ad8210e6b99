"""The index of a dataset."""

import json

import pytest

from schemas.dataset import DatasetIndex, ShardEntry
from schemas.errors import StaleDatasetError

ENTRY = ShardEntry(
    tar="00000000.tar", parquet="00000000.parquet", num_samples=3, tar_bytes=10240, tar_sha256="t", parquet_sha256="p"
)
INDEX = DatasetIndex(
    name="demo",
    fingerprint="f" * 64,
    kind="build",
    num_samples=3,
    captions={"alt_text": 0.5, "recap.recaption": 0.5},
    shards=(ENTRY,),
    selection={"rules": {"small": "image_width > 200"}},
)


def test_an_index_survives_json() -> None:
    text = INDEX.to_json()
    assert DatasetIndex.from_json(text, path="index.json") == INDEX
    assert INDEX.to_json() == text
    assert text.isascii()
    assert text.endswith("}\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "x/index.json is not JSON"),
        ("[]", "is not a Winnow dataset index"),
        ('{"format": "other"}', "is not a Winnow dataset index; expected format 'winnow-dataset'"),
        (
            '{"format": "winnow-dataset", "version": 99}',
            "has version 99, this release reads 1; build the dataset again",
        ),
        ('{"format": "winnow-dataset", "version": 1}', "is incomplete"),
    ],
)
def test_other_files_are_named(text: str, message: str) -> None:
    with pytest.raises(StaleDatasetError, match=message):
        DatasetIndex.from_json(text, path="x/index.json")


def test_a_shard_with_a_field_too_few_is_incomplete() -> None:
    content = json.loads(INDEX.to_json())
    del content["shards"][0]["tar_sha256"]
    with pytest.raises(StaleDatasetError, match="is incomplete"):
        DatasetIndex.from_json(json.dumps(content), path="index.json")
