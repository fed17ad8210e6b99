"""The header of an annotation file."""

import pyarrow as pa

from schemas.annotation import AnnotationHeader, annotation_schema

HEADER = AnnotationHeader(
    operator="clip_score",
    version="1",
    fingerprint="f" * 64,
    parameters='{"model":"é"}',
    shard_digest="s",
    uid_digest="u",
)


def test_a_header_survives_metadata() -> None:
    assert AnnotationHeader.from_metadata(HEADER.to_metadata()) == HEADER
    assert set(HEADER.to_metadata()) == {
        b"winnow.operator",
        b"winnow.version",
        b"winnow.fingerprint",
        b"winnow.parameters",
        b"winnow.shard_digest",
        b"winnow.uid_digest",
        b"winnow.pool_digest",
    }


def test_other_files_have_none() -> None:
    assert AnnotationHeader.from_metadata(None) is None
    partial = HEADER.to_metadata()
    del partial[b"winnow.uid_digest"]
    assert AnnotationHeader.from_metadata(partial | {b"pandas": b"{}"}) is None


def test_columns_lie_between_uid_and_error() -> None:
    schema = annotation_schema(pa.schema([("clip_score", pa.float32())]))
    assert schema.names == ["uid", "clip_score", "error"]
