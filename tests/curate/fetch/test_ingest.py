"""What a list becomes before anything is fetched: identities, merging, shards, plans."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.fetch.config import DownloadConfig
from curate.fetch.ingest import Plan, ingest, load_plans
from curate.store import Pool
from schemas.errors import InputError
from schemas.uid import sample_uid


def plan_list(
    tmp_path: Path, rows: list[dict[str, object]], name: str = "a.jsonl", **options: object
) -> tuple[Pool, Plan]:
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pool = Pool(tmp_path / "pool")
    return pool, ingest(str(path), pool, DownloadConfig(**options))


def planned(pool: Pool, plan: Plan) -> list[dict[str, object]]:
    return [row for shard in plan.shards for row in pool.read_table(plan.rows_path(shard)).to_pylist()]


def test_equal_pairs_are_merged_where_the_first_stood(tmp_path: Path) -> None:
    pairs = [("a", "x"), ("b", "x"), ("a", "x"), ("a", "y"), ("b", "x"), ("a", "x")]
    pool, plan = plan_list(tmp_path, [{"url": u, "caption": c, "n": i} for i, (u, c) in enumerate(pairs)], shard_size=2)
    rows = planned(pool, plan)
    assert [(r["url"], r["caption"], r["num_occurrences"], r["n"]) for r in rows] == [
        ("a", "x", 3, 0),
        ("b", "x", 2, 1),
        ("a", "y", 1, 3),
    ]
    assert rows[0]["uid"] == sample_uid("a", "x")
    assert (plan.num_rows, plan.num_samples, plan.num_shards) == (6, 3, 2)
    assert [pool.read_table(plan.rows_path(s)).num_rows for s in plan.shards] == [2, 1]


def test_laion_datacomp_and_cc3m_headers(tmp_path: Path) -> None:
    laion = pa.table({"SAMPLE_ID": [1], "URL": ["http://a"], "TEXT": ["x"], "WIDTH": [640], "similarity": [0.3]})
    pq.write_table(laion, tmp_path / "laion.parquet")
    uid = "0123456789abcdef" * 2
    digest = "AB" * 32
    datacomp = pa.table({
        "uid": [uid],
        "url": ["http://b"],
        "text": ["y"],
        "original_width": [9],
        "sha256": [digest],
        "face_bboxes": [[[0.1]]],
    })
    pq.write_table(datacomp, tmp_path / "datacomp.parquet")
    (tmp_path / "cc3m.tsv").write_text("a dog\thttp://c\n")
    pool = Pool(tmp_path / "pool")
    (first,) = planned(pool, ingest(str(tmp_path / "laion.parquet"), pool, DownloadConfig()))
    assert first == {
        "uid": sample_uid("http://a", "x"),
        "num_occurrences": 1,
        "SAMPLE_ID": 1,
        "source_width": 640,
        "similarity": 0.3,
        "caption": "x",
        "url": "http://a",
        "sha256": None,
    }
    plan = ingest(str(tmp_path / "datacomp.parquet"), pool, DownloadConfig())
    (second,) = planned(pool, plan)
    assert second["uid"] == uid
    assert (second["sha256"], second["source_original_width"], second["face_bboxes"]) == (digest.lower(), 9, [[0.1]])
    assert plan.columns == {"source_original_width": "original_width"}
    (third,) = planned(pool, ingest(str(tmp_path / "cc3m.tsv"), pool, DownloadConfig()))
    assert (third["caption"], third["url"]) == ("a dog", "http://c")
    assert [p.first_shard for p in load_plans(pool).values()] == [0, 1, 2]


def test_the_same_list_is_planned_once_and_another_appends_what_is_new(tmp_path: Path) -> None:
    pool, first = plan_list(tmp_path, [{"url": "a"}, {"url": "b"}, {"url": "c"}], shard_size=2)
    _, again = plan_list(tmp_path, [{"url": "a"}, {"url": "b"}, {"url": "c"}], name="copy.jsonl", shard_size=2)
    assert again == first
    _, second = plan_list(
        tmp_path, [{"url": "c"}, {"url": "d"}, {"url": "d"}, {"url": "e"}], name="b.jsonl", shard_size=2
    )
    assert (second.first_shard, second.num_samples, second.num_known) == (2, 2, 1)
    assert [(r["url"], r["num_occurrences"]) for r in planned(pool, second)] == [("d", 2), ("e", 1)]
    _, third = plan_list(tmp_path, [{"url": "a"}], name="c.jsonl", shard_size=2)
    assert (third.num_shards, third.num_known) == (0, 1)


def test_rows_without_a_url_stay(tmp_path: Path) -> None:
    pool, plan = plan_list(tmp_path, [{"url": None, "caption": "x"}, {"url": "a", "caption": "y"}])
    assert [row["url"] for row in planned(pool, plan)] == ["", "a"]


def test_an_interrupted_ingest_starts_again(tmp_path: Path) -> None:
    pool, plan = plan_list(tmp_path, [{"url": "a"}, {"url": "b"}])
    bytes_before = pool.read_bytes(plan.rows_path(0))
    pool.remove(f"{plan.folder}/plan.json")
    (tmp_path / "pool" / plan.rows_path(0)).write_bytes(b"half a file")
    _, again = plan_list(tmp_path, [{"url": "a"}, {"url": "b"}])
    assert again == plan
    assert pool.read_bytes(plan.rows_path(0)) == bytes_before


def test_types_come_from_the_whole_list(tmp_path: Path) -> None:
    lines = ["url,score,code,empty"] + [f"http://a/{i},{i},{i}," for i in range(1000)] + ["http://a/x,0.5,007,"]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    pool = Pool(tmp_path / "pool")
    table = pool.read_table(ingest(str(tmp_path / "a.csv"), pool, DownloadConfig()).rows_path(0))
    assert table.schema.field("score").type == pa.float64()
    assert table.schema.field("code").type == pa.string()
    assert table.schema.field("empty").type == pa.string()
    assert table["code"].to_pylist()[-1] == "007"


def test_column_flags(tmp_path: Path) -> None:
    rows = [{"u": "a", "description": "x", "n": 1, "m": 2}]
    pool, plan = plan_list(tmp_path, rows, url_column="u", caption_column="description", extra_columns=("m",))
    assert planned(pool, plan)[0] | {"uid": ""} == {
        "uid": "",
        "num_occurrences": 1,
        "m": 2,
        "caption": "x",
        "url": "a",
        "sha256": None,
    }
    with pytest.raises(InputError, match=r"has no url column; it has \['u'.*--url-column"):
        plan_list(tmp_path, rows, name="b.jsonl")
    with pytest.raises(InputError, match="has no caption column 'none'"):
        plan_list(tmp_path, rows, name="c.jsonl", url_column="u", caption_column="none")
    with pytest.raises(InputError, match=r"extra_columns names \['k'\], which the list does not have"):
        plan_list(tmp_path, rows, name="d.jsonl", url_column="u", extra_columns=("k",))
    with pytest.raises(InputError, match=r"extra_columns names \['width'\], which the pool keeps for itself"):
        plan_list(tmp_path, [{"url": "a", "width": 3}], name="e.jsonl", extra_columns=("width",))


def test_identities_of_the_list_must_be_identities(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"column 'uid' holds '17', which is not 32 lower-case hex characters.*--uid-column ''"
    ):
        plan_list(tmp_path, [{"uid": "17", "url": "a"}])
    _, plan = plan_list(tmp_path, [{"uid": "17", "url": "a"}], uid_column="")
    assert plan.num_samples == 1
    uid = "f" * 32
    with pytest.raises(InputError, match=f"uid {uid} stands for different urls or captions"):
        plan_list(tmp_path, [{"uid": uid, "url": "a"}, {"uid": uid, "url": "b"}], name="b.jsonl")


def test_a_pool_keeps_to_its_settings(tmp_path: Path) -> None:
    plan_list(tmp_path, [{"url": "a"}], image_size=128)
    with pytest.raises(
        InputError, match=r"was downloaded with image_size 128 \(now 256\); use the same settings, or another --pool"
    ):
        plan_list(tmp_path, [{"url": "a"}])
    plan_list(tmp_path, [{"url": "a"}], image_size=128, retries=7)  # how it is fetched may change


def test_nothing_to_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        ingest(str(tmp_path / "none.csv"), Pool(tmp_path / "pool"), DownloadConfig())
