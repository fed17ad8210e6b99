"""Headers read fast say what headers read slowly say, and no caption can pretend to be one."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.alignment import Aligner, annotate_command, read_headers
from curate.store import LabelTarget, Pool
from schemas.annotation import AnnotationHeader, annotation_schema
from schemas.errors import InputError
from tests.curate.pool_builder import SCORE, annotate_shard, annotated_pool, fingerprint_of
from tests.pool import make_pool


def header(**values: str) -> AnnotationHeader:
    fields = dict.fromkeys(("operator", "version", "fingerprint", "parameters", "shard_digest", "uid_digest"), "x")
    return AnnotationHeader(**{**fields, **values})


def write(pool: Pool, name: str, found: AnnotationHeader | None, texts: list[str], columns: int = 1) -> str:
    schema = annotation_schema(pa.schema([(f"text{index}", pa.string()) for index in range(columns)]))
    table = pa.table([pa.array(["u"] * len(texts)), *[pa.array(texts)] * columns, pa.nulls(len(texts))], schema=schema)
    pool.commit_table(name, table.replace_schema_metadata(found.to_metadata() if found else None))
    return name


def test_fast_headers_are_those_of_the_footer(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    longest = header(parameters='{"prompt": "' + "\u00e9" * 40_000 + '"}', pool_digest="d" * 64)
    wanted = [header(), longest, header(pool_digest="p")]
    # Many columns make a footer larger than the first read.
    paths = [
        write(pool, f"{index}.parquet", found, ["a"], columns=1 + 200 * index) for index, found in enumerate(wanted)
    ]
    assert read_headers(pool, paths) == wanted
    assert [AnnotationHeader.from_metadata(pool.read_footer(path).metadata) for path in paths] == wanted


def test_statistics_cannot_forge_a_header(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    forged = "".join(f"\x18{chr(len(f'winnow.{n}'))}winnow.{n}\x18\x04evil" for n in header().__dataclass_fields__)
    path = write(pool, "a.parquet", header(), [forged])
    assert b"evil" in Path(tmp_path, path).read_bytes()
    assert read_headers(pool, [path]) == [header()]


def test_a_file_without_a_header_has_none(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    assert read_headers(pool, [write(pool, "a.parquet", None, ["a"])]) == [None]


def test_a_table_with_a_uid_twice_cannot_be_aligned(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", num_shards=1)
    annotate_shard(pool, 0, "b32", {"clip_score": [0.0] * 12}, SCORE, order=[0, 0, *range(2, 12)])
    aligner = Aligner(pool, [pool.shard_header(0)], str(tmp_path))
    with pytest.raises(InputError, match="the same uid twice"):
        aligner.align("b32", pool.labels()["b32"])


def test_aligned_files_have_the_shards_uids_in_order(tmp_path: Path) -> None:
    pool = annotated_pool(tmp_path / "pool", num_shards=1)
    annotate_shard(pool, 0, "b32", {"clip_score": list(range(12))}, SCORE, order=[*range(11, 3, -1)])
    (path,) = Aligner(pool, [pool.shard_header(0)], str(tmp_path)).align("b32", pool.labels()["b32"]).paths
    table = pq.read_table(path)
    assert table["uid"].equals(pool.read_table(pool.shard_parquet(0), ["uid"])["uid"])
    assert table["clip_score"].to_pylist() == [None] * 4 + list(range(4, 12))


def test_the_command_names_what_it_knows(tmp_path: Path) -> None:
    pool, target = Pool(tmp_path / "a pool"), LabelTarget(operator="clip_score", fingerprint=fingerprint_of("x"))
    assert annotate_command(pool, "b32", target, {}) == (
        f"winnow annotate --pool '{pool.root}' clip_score:model=...,label=b32"
    )
    own = LabelTarget(operator="my_operator", fingerprint=target.fingerprint)
    parameters = {"model": {"model": "org/name", "revision": "ab"}, "size": 3, "note": ""}
    assert annotate_command(pool, "my_operator", own, parameters).endswith(
        " my_operator:model=org/name,revision=ab,size=3"
    )
