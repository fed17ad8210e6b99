"""Datasets of small selections: read back by stock tools, sliced by their own offsets, stopped half-way and built again."""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from curate.build import BuildConfig, BuildReport, build, find_dataset, find_selection
from curate.executor import Executor
from curate.images import decode
from curate.select import Limit, Selection, select
from curate.store import Pool
from curate.tar import TarWriter
from schemas.dataset import SIDECAR_COLUMNS, DatasetIndex
from schemas.errors import InputError, ShardError
from schemas.progress import SilentProgress
from schemas.sample import SHARD_DIGEST_KEY, TAR_LOCATION_KEY
from tests.curate.pool_builder import SCORE, annotate_shard, annotated_pool
from tests.pool import FAILED_ROWS, Row, draw, jpeg, make_pool, make_rows, write_shard

CAPTIONS = {"recap.recaption": 0.5, "alt_text": 0.3, "recap.rewrite[*]": 0.2}
HOSTILE = [
    "line\nbreak\r\n\ttab",
    "emoji \U0001f468\u200d\U0001f469\u200d\U0001f467 \u0645\u0631\u062d\u0628\u0627",
    "x" * 100_000,
    "nul \0 inside",
    "",
    "\u2028 \ufeff",
    '"quoted" \\',
]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    pool = annotated_pool(tmp_path_factory.mktemp("build") / "pool")
    select(
        pool, Selection(name="mixed", rules={"lang": "caption_language = 'en'"}, weight="1 + row", captions=CAPTIONS)
    )
    select(pool, Selection(name="plain"))
    return pool


@pytest.fixture(scope="module")
def built(pool: Pool, ray_session: Executor, tmp_path_factory: pytest.TempPathFactory) -> BuildReport:
    return run(pool, "mixed", tmp_path_factory.mktemp("out"), ray_session, shard_size=6)


def run(pool: Pool, selection: str, out: Path, executor: Executor, **config: Any) -> BuildReport:
    return build(pool, selection, str(out), BuildConfig(**config), executor=executor, progress=SilentProgress())


def read_index(report: BuildReport) -> DatasetIndex:
    path = Path(report.folder) / "index.json"
    return DatasetIndex.from_json(path.read_text(), path=str(path))


def read_members(folder: str) -> Iterator[tuple[str, bytes]]:
    for path in sorted(Path(folder).glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                yield member.name, file.read()


def digests(folder: str | Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(Path(folder).iterdir())}


def test_shards_differ_by_at_most_one_sample(built: BuildReport) -> None:
    index = read_index(built)
    sizes = [entry.num_samples for entry in index.shards]
    assert sum(sizes) == index.num_samples == built.num_samples == 21
    assert sizes == [6, 5, 5, 5]
    assert json.loads(Path(built.folder, "sizes.json").read_text()) == {e.tar: e.num_samples for e in index.shards}


def test_the_index_describes_the_files(built: BuildReport) -> None:
    for entry in read_index(built).shards:
        tar, sidecar = Path(built.folder, entry.tar), Path(built.folder, entry.parquet)
        assert (tar.stat().st_size, hashlib.sha256(tar.read_bytes()).hexdigest()) == (entry.tar_bytes, entry.tar_sha256)
        assert hashlib.sha256(sidecar.read_bytes()).hexdigest() == entry.parquet_sha256


def test_offsets_slice_every_member_out_of_its_tar(built: BuildReport) -> None:
    for entry in read_index(built).shards:
        data = Path(built.folder, entry.tar).read_bytes()
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        rows = pq.read_table(Path(built.folder, entry.parquet)).to_pylist()
        assert len(members) == 3 * len(rows)
        for row in rows:
            for kind, suffix in (("image", row["image_suffix"]), ("json", "json"), ("txt", "txt")):
                start = row[f"{kind}_offset"]
                assert data[start : start + row[f"{kind}_bytes"]] == members[f"{row['key']}.{suffix}"]


def test_samples_are_the_selected_ones_with_their_stored_bytes(pool: Pool, built: BuildReport) -> None:
    selected = pool.read_table(f"{find_selection(pool, 'mixed')}/selected.parquet").to_pylist()
    stored = dict(read_members(f"{pool.root}/shards"))
    members = dict(read_members(built.folder))
    sidecars = pa.concat_tables(
        pq.read_table(Path(built.folder, entry.parquet)).replace_schema_metadata(None)
        for entry in read_index(built).shards
    ).to_pylist()
    assert [row["uid"] for row in sidecars] == [row["uid"] for row in selected]
    assert [row["weight"] for row in sidecars] == [row["weight"] for row in selected]
    for row, chosen in zip(sidecars, selected, strict=True):
        shard = pool.read_table(pool.shard_parquet(chosen["shard"])).to_pylist()[chosen["row"]]
        assert members[f"{row['key']}.jpg"] == stored[f"{shard['key']}.jpg"]
        record = json.loads(members[f"{row['key']}.json"])
        assert (record["uid"], record["url"], record["sha256"]) == (row["uid"], shard["url"], shard["sha256"])
        assert (record["caption"], row["alt_text"]) == (shard["caption"] or "",) * 2
        assert record["recap_recaption"] == row["recap.recaption"] == f"recaption {chosen['shard']}-{chosen['row']}"
        assert [record[f"recap_rewrite_{i}"] for i in range(3)] == (row["recap.rewrite"] + [""] * 3)[:3]
        assert members[f"{row['key']}.txt"].decode() == row["recap.recaption"]


def test_every_record_has_the_same_keys_and_types(built: BuildReport) -> None:
    shapes = {
        tuple((key, type(value)) for key, value in json.loads(data).items())
        for name, data in read_members(built.folder)
        if name.endswith(".json")
    }
    assert len(shapes) == 1


def test_members_are_plain_and_keys_have_no_dot(built: BuildReport) -> None:
    for path in sorted(Path(built.folder).glob("*.tar")):
        with tarfile.open(path) as tar:
            members = tar.getmembers()
        assert [member.name.split(".")[1] for member in members] == ["jpg", "json", "txt"] * (len(members) // 3)
        assert all(member.name.count(".") == 1 and member.mtime == 0 and not member.pax_headers for member in members)
    keys = [name.split(".")[0] for name, _ in read_members(built.folder)]
    assert len(set(keys)) == len(keys) // 3


def test_the_sidecar_has_the_contracts_columns(built: BuildReport) -> None:
    schema = pq.read_schema(Path(built.folder, "00000.parquet"))
    assert [(f.name, f.type) for f in schema][: len(SIDECAR_COLUMNS)] == list(SIDECAR_COLUMNS)
    assert schema.field("recap.rewrite").type == pa.list_(pa.string())


def test_stock_webdataset_reads_it(built: BuildReport) -> None:
    import webdataset

    urls = sorted(map(str, Path(built.folder).glob("*.tar")))
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).to_tuple("jpg", "json", "txt"))
    assert len(samples) == built.num_samples
    for image, record, text in samples:
        assert Image.open(io.BytesIO(image)).format == "JPEG"
        assert json.loads(record)["recap_recaption"] == text.decode()


def test_hugging_face_datasets_reads_it(built: BuildReport, tmp_path: Path) -> None:
    import datasets

    files = sorted(map(str, Path(built.folder).glob("*.tar")))
    loaded = datasets.load_dataset("webdataset", data_files={"train": files}, split="train", cache_dir=str(tmp_path))
    assert loaded.num_rows == built.num_samples
    assert {"jpg", "json", "txt", "__key__"} <= set(loaded.column_names)
    assert loaded[20]["json"]["recap_recaption"] == loaded[20]["txt"]


def test_a_view_has_the_builds_samples_and_copies_nothing(
    pool: Pool, built: BuildReport, ray_session: Executor, tmp_path: Path
) -> None:
    report = run(pool, "mixed", tmp_path, ray_session, view=True)
    index = read_index(report)
    assert (
        index.kind == "view"
        and not list(Path(report.folder).glob("*.tar"))
        and not Path(report.folder, "sizes.json").exists()
    )
    shared = ("uid", "url", "weight", "alt_text", "recap.recaption", "recap.rewrite")

    def samples(folder: str) -> list[tuple[object, ...]]:
        found: list[tuple[object, ...]] = []
        for entry in DatasetIndex.from_json(Path(folder, "index.json").read_text(), path=folder).shards:
            tar = Path(folder, entry.tar).read_bytes()
            for row in pq.read_table(Path(folder, entry.parquet)).to_pylist():
                image = tar[row["image_offset"] : row["image_offset"] + row["image_bytes"]]
                found.append((*(str(row[name]) for name in shared), hashlib.sha256(image).hexdigest()))
        return found

    assert samples(report.folder) == samples(built.folder)
    for entry in index.shards:
        assert hashlib.sha256(Path(entry.tar).read_bytes()).hexdigest() == entry.tar_sha256
    assert run(pool, "mixed", tmp_path, ray_session, view=True).num_written == 0


def test_a_complete_dataset_is_left_alone(pool: Pool, ray_session: Executor, tmp_path: Path) -> None:
    assert find_dataset(pool, "plain", str(tmp_path), BuildConfig(shard_size=8)) == ""
    first = run(pool, "plain", tmp_path, ray_session, shard_size=8)
    assert find_dataset(pool, "plain", str(tmp_path), BuildConfig(shard_size=8)) == first.folder
    stamps = [file.stat().st_mtime_ns for file in sorted(Path(first.folder).iterdir())]
    second = run(pool, "plain", tmp_path, ray_session, shard_size=8)
    assert (first.num_written, second.num_written) == (4, 0)
    assert stamps == [file.stat().st_mtime_ns for file in sorted(Path(first.folder).iterdir())]
    assert run(pool, "plain", tmp_path, ray_session, shard_size=7).folder != first.folder


def test_an_interrupted_build_ends_with_the_same_bytes(pool: Pool, ray_session: Executor, tmp_path: Path) -> None:
    whole = run(pool, "mixed", tmp_path / "whole", ray_session, shard_size=6)
    torn = run(pool, "mixed", tmp_path / "torn", ray_session, shard_size=6)
    folder = Path(torn.folder)
    # As a kill leaves it: no index, one shard without its sidecar, one tar cut off, one sidecar of another build.
    (folder / "index.json").unlink()
    (folder / "00001.parquet").unlink()
    (folder / "00002.tar").write_bytes((folder / "00002.tar").read_bytes()[:1000])
    stranger = pq.read_table(folder / "00003.parquet")
    pq.write_table(stranger.replace_schema_metadata({b"winnow.fingerprint": b"other"}), folder / "00003.parquet")
    stamp = (folder / "00000.tar").stat().st_mtime_ns
    again = run(pool, "mixed", tmp_path / "torn", ray_session, shard_size=6)
    assert again.num_written == 3 and (folder / "00000.tar").stat().st_mtime_ns == stamp
    assert digests(folder) == digests(whole.folder)


def test_hostile_captions_survive(tmp_path: Path, ray_session: Executor) -> None:
    import webdataset

    pool = Pool(tmp_path / "pool")
    image = jpeg(draw((10, 200, 30), "circle", seed=1))
    rows = [Row(url=f"https://example.org/{i}", caption=caption, image=image) for i, caption in enumerate(HOSTILE)]
    write_shard(pool, 0, [*rows, Row(url="https://example.org/null", caption=None, image=image)])
    select(pool, Selection())
    report = run(pool, "selection", tmp_path / "out", ray_session)
    table = pq.read_table(Path(report.folder, "00000.parquet"))
    assert table["alt_text"].to_pylist() == [*HOSTILE, ""]
    samples = list(webdataset.WebDataset(f"{report.folder}/00000.tar", shardshuffle=False))
    assert [sample["txt"].decode() for sample in samples] == [*HOSTILE, ""]
    assert [json.loads(sample["json"])["caption"] for sample in samples] == [*HOSTILE, ""]


def test_an_empty_primary_caption_falls_through(tmp_path: Path, ray_session: Executor) -> None:
    pool = make_pool(tmp_path / "pool", num_shards=1)
    schema = pa.schema([("recaption", pa.string())])
    annotate_shard(pool, 0, "recap", {"recaption": ["", None, " ", *["text"] * 9]}, schema, operator="recap")
    select(pool, Selection(captions={"recaption": 1.0}))
    report = run(pool, "selection", tmp_path / "out", ray_session)
    texts = [data.decode() for name, data in read_members(report.folder) if name.endswith(".txt")]
    alt_texts = pool.read_table(pool.shard_parquet(0))["caption"].to_pylist()
    assert texts == [alt_texts[0], alt_texts[2], *["text"] * 8]
    assert read_index(report).captions == {"recaption": 1.0}


def foreign_pool(folder: Path, suffixes: tuple[str, ...] = ("JPEG", "png")) -> Pool:
    """A pool whose only shard lies in a tar outside it, as an import leaves it: folders in names, no JSON, two formats."""
    pool = make_pool(folder / "pool", num_shards=1)
    table = pool.read_table(pool.shard_parquet(0))
    keys, buffer = [], io.BytesIO()
    writer = TarWriter(buffer)
    for row, status in enumerate(table["status"].to_pylist()):
        keys.append(f"photos/p{row}")
        if status == "success":
            suffix, data = suffixes[row % len(suffixes)], io.BytesIO()
            draw((200, 30, 40), "square", seed=row).save(data, "PNG" if suffix == "png" else "JPEG")
            writer.add(f"photos/p{row}.{suffix}", data.getvalue())
            writer.add(f"photos/p{row}.txt", b"text")
    writer.close()
    (folder / "theirs.tar").write_bytes(buffer.getvalue())
    metadata = {**table.schema.metadata, TAR_LOCATION_KEY: str(folder / "theirs.tar").encode()}
    assert SHARD_DIGEST_KEY in metadata
    table = table.set_column(table.schema.get_field_index("key"), "key", pa.array(keys))
    pool.commit_table(pool.shard_parquet(0), table.replace_schema_metadata(metadata))
    pool.remove("shards/00000.tar")
    return pool


def test_mixed_formats_are_refused_converted_or_viewed(tmp_path: Path, ray_session: Executor) -> None:
    pool = foreign_pool(tmp_path)
    select(pool, Selection())
    with pytest.raises(InputError, match=r"5 jpg, 5 png|6 jpg, 4 png|4 png, 6 jpg|6 jpg|6 png"):
        run(pool, "selection", tmp_path / "out", ray_session)
    report = run(pool, "selection", tmp_path / "out", ray_session, image_format="jpg")
    pictures = [data for name, data in read_members(report.folder) if name.endswith(".jpg")]
    assert len(pictures) == 10 and all(Image.open(io.BytesIO(data)).format == "JPEG" for data in pictures)
    view = run(pool, "selection", tmp_path / "out", ray_session, view=True)
    (entry,) = read_index(view).shards
    rows = pq.read_table(Path(view.folder, entry.parquet)).to_pylist()
    assert entry.tar == str(tmp_path / "theirs.tar")
    assert {row["image_suffix"] for row in rows} == {"jpeg", "png"} and rows[0]["key"] == "photos/p0"
    assert [row["json_offset"] for row in rows] == [None] * 10
    data = Path(entry.tar).read_bytes()
    assert all(data[row["txt_offset"] : row["txt_offset"] + row["txt_bytes"]] == b"text" for row in rows)


BOXES = pa.schema([("face_bboxes", pa.list_(pa.list_(pa.float32())))])


def test_faces_are_blurred_and_the_rest_keeps_its_bytes(tmp_path: Path, ray_session: Executor) -> None:
    pool = make_pool(tmp_path / "pool", num_shards=1, shard_size=12)
    boxes: list[list[list[float]] | None] = [[] for _ in range(12)]
    boxes[2], boxes[10] = [[0.25, 0.25, 0.75, 0.75]], [[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]]
    annotate_shard(pool, 0, "faces", {"face_bboxes": boxes}, BOXES, operator="face_boxes")
    select(pool, Selection())
    plain = run(pool, "selection", tmp_path / "out", ray_session)
    report = run(pool, "selection", tmp_path / "out", ray_session, blur="faces.face_bboxes")
    assert report.fingerprint != plain.fingerprint
    before, after = (
        [data for name, data in read_members(folder) if name.endswith(".jpg")]
        for folder in (plain.folder, report.folder)
    )
    changed = [row for row, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
    kept = [row for row in range(12) if row not in FAILED_ROWS]
    assert [kept[row] for row in changed] == [2, 10]
    old, new = (decode(found[changed[0]]).astype(int) for found in (before, after))
    height, width = old.shape[:2]
    inside = np.s_[height // 4 : 3 * height // 4, width // 4 : 3 * width // 4]
    assert np.abs(np.diff(new[inside], axis=1)).mean() < 0.5 * np.abs(np.diff(old[inside], axis=1)).mean()
    assert np.abs(new - old)[: height // 10].mean() < 3  # encoded once more, no more than that
    records = [json.loads(data) for name, data in read_members(report.folder) if name.endswith(".json")]
    assert records[changed[0]]["sha256"] == hashlib.sha256(after[changed[0]]).hexdigest()


def test_a_picture_that_was_not_looked_at_is_not_let_through(tmp_path: Path, ray_session: Executor) -> None:
    pool = make_pool(tmp_path / "pool", num_shards=1, shard_size=12)
    boxes: list[list[list[float]] | None] = [[] for _ in range(12)]
    boxes[8] = None
    annotate_shard(pool, 0, "faces", {"face_bboxes": boxes}, BOXES, operator="face_boxes")
    select(pool, Selection())
    with pytest.raises(ShardError, match=r"row 8 has no faces.face_bboxes: .* faces.face_bboxes IS NOT NULL"):
        run(pool, "selection", tmp_path / "out", ray_session, blur="faces.face_bboxes")


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("zzz.face_bboxes", r"no annotation 'zzz' \(it has faces\)"),
        ("face_bboxes", "write LABEL.COLUMN"),
        ("faces.zzz", "which is no column, not a list of boxes"),
    ],
)
def test_boxes_that_are_not_there_are_named(tmp_path: Path, ray_session: Executor, column: str, message: str) -> None:
    pool = make_pool(tmp_path / "pool", num_shards=1, shard_size=12)
    annotate_shard(pool, 0, "faces", {"face_bboxes": [[]] * 12}, BOXES, operator="face_boxes")
    select(pool, Selection())
    with pytest.raises(InputError, match=message):
        run(pool, "selection", tmp_path / "out", ray_session, blur=column)


def test_one_format_under_its_other_name_is_built_as_it_is(tmp_path: Path, ray_session: Executor) -> None:
    pool = foreign_pool(tmp_path, ("JPEG", "jpg"))
    select(pool, Selection())
    report = run(pool, "selection", tmp_path / "out", ray_session)
    stored = {
        hashlib.sha256(data).digest() for name, data in read_tar(tmp_path / "theirs.tar") if not name.endswith("txt")
    }
    assert {hashlib.sha256(d).digest() for name, d in read_members(report.folder) if name.endswith(".jpg")} == stored


def read_tar(path: Path) -> list[tuple[str, bytes]]:
    with tarfile.open(path) as tar:
        return [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]


def test_selections_are_found_by_name_and_by_folder(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", num_shards=1)
    first = select(pool, Selection(name="a")).folder
    assert (
        find_selection(pool, "a")
        == find_selection(pool, first)
        == find_selection(pool, f"{pool.root}/{first}/")
        == first
    )
    second = select(pool, Selection(name="a", limit=Limit(num_samples=2))).folder
    with pytest.raises(InputError, match="stands for 2 folders") as error:
        find_selection(pool, "a")
    assert first.split("/")[1] in str(error.value) and second.split("/")[1] in str(error.value)
    assert find_selection(pool, second.split("/")[1]) == second
    with pytest.raises(InputError, match=r"no selection 'b' .*winnow select"):
        find_selection(pool, "b")


def test_an_empty_selection_is_refused(tmp_path: Path, ray_session: Executor) -> None:
    pool = make_pool(tmp_path / "pool", num_shards=1)
    select(pool, Selection(rules={"never": "false"}))
    with pytest.raises(InputError, match="keeps no rows"):
        run(pool, "selection", tmp_path / "out", ray_session)


def test_rows_that_changed_since_are_named(tmp_path: Path, ray_session: Executor) -> None:
    pool = make_pool(tmp_path / "pool", num_shards=1)
    select(pool, Selection())
    write_shard(pool, 0, make_rows(12, seed=5))
    with pytest.raises(ShardError, match="no longer sample"):
        run(pool, "selection", tmp_path / "out", ray_session)


def test_a_label_pointed_elsewhere_does_not_change_a_built_selection(
    pool: Pool, built: BuildReport, ray_session: Executor, tmp_path: Path
) -> None:
    for shard in pool.shards():
        annotate_shard(pool, shard, "recap", {"clip_score": [0.0] * 12}, SCORE, operator="other")
    again = run(pool, "mixed", tmp_path, ray_session, shard_size=6)
    assert digests(again.folder) == digests(built.folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"shard_size": 0}, "shard_size"),
        ({"image_format": "gif"}, "image_format"),
        ({"view": True, "image_format": "jpg"}, "view"),
        ({"view": True, "blur": "face_boxes.face_bboxes"}, "view"),
    ],
)
def test_impossible_configs_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BuildConfig(**config)
