"""Imports of every kind, compared with the files they came from; hostile names, repeated rows, and runs that stop half-way."""

import csv
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from curate.catalog import Catalog
from curate.executor import Executor
from curate.fetch.importing import ImportConfig, ImportReport, import_dir
from curate.select import Selection, select
from curate.store import Pool
from schemas.errors import InputError
from schemas.progress import SilentProgress
from schemas.uid import sample_uid
from tests.pool import FAILED_ROWS, draw, jpeg, make_pool

DATA = Path(os.environ.get("WINNOW_DATA", Path(__file__).parents[4] / "shared" / "data"))

Import = Callable[..., ImportReport]


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return Pool(tmp_path / "pool")


@pytest.fixture
def run(pool: Pool, ray_session: Executor) -> Import:
    def run_import(source: Path | str, **config: Any) -> ImportReport:
        return import_dir(str(source), pool, ImportConfig(**config), progress=SilentProgress(), executor=ray_session)

    return run_import


def picture(seed: int = 0, **size: int) -> bytes:
    return jpeg(draw((200, 30, 40), "circle", seed=seed, **size))


def rows(pool: Pool) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for shard in pool.shards():
        found += pool.read_table(pool.shard_parquet(shard)).to_pylist()
    return found


def write_tar(path: Path, members: dict[str, bytes], *, pax: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT if pax else tarfile.USTAR_FORMAT) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if pax:
                info.mtime = (
                    12.5  # a fraction makes tarfile, like webdataset's writer, put a header before every member
                )
            tar.addfile(info, io.BytesIO(data))


def image_folder(root: Path, count: int = 4) -> None:
    (root / "images").mkdir(parents=True)
    for index in range(count):
        (root / "images" / f"{index}.jpg").write_bytes(picture(index))


# img2dataset and WebDataset tars


def test_img2dataset_output_is_taken_as_it_is(tmp_path: Path, pool: Pool, run: Import) -> None:
    theirs = make_pool(tmp_path / "theirs", num_shards=2)
    report = run(f"{theirs.root}/shards")
    assert (report.kind, report.num_shards, report.num_rows, report.num_samples) == ("tars", 2, 24, 24)
    assert report.num_successes == 24 - 2 * len(FAILED_ROWS)
    assert report.messages == {"HTTP Error 404: Not Found": 2, "Image decoding error": 2}
    assert rows(pool) == rows(theirs)
    assert pool.list_names("shards") == ["00000.parquet", "00001.parquet"]
    header = pool.shard_header(1)
    assert pool.shard_tar(header) == f"{theirs.root}/shards/00001.tar"
    assert header.shard_digest == theirs.shard_header(1).shard_digest


def test_img2dataset_rows_without_their_picture_become_failures(tmp_path: Path, pool: Pool, run: Import) -> None:
    folder = tmp_path / "theirs"
    write_tar(folder / "00000.tar", {"000000000.jpg": picture(), "000000000.txt": b"here"})
    columns = {
        "caption": ["here", "gone", None],
        "url": ["https://a/1", "https://a/2", "https://a/3"],
        "key": ["000000000", "000000001", "000000002"],
        "status": ["success", "success", "failed_to_download"],
        "error_message": [None, None, "timed out"],
        "licence": ["by", "by", "cc0"],
    }
    pq.write_table(pa.table(columns), folder / "00000.parquet")
    report = run(folder)
    assert report.messages == {"no image in the tar": 1, "timed out": 1}
    first, second, third = rows(pool)
    assert (first["width"], first["sha256"]) == (96, hashlib.sha256(picture()).hexdigest())
    assert (second["status"], third["licence"]) == ("failed_to_download", "cc0")
    assert first["uid"] == sample_uid("https://a/1", "here")


@pytest.mark.parametrize("pax", [False, True])
def test_any_webdataset_tar_is_read(tmp_path: Path, pool: Pool, run: Import, pax: bool) -> None:
    folder = tmp_path / "theirs"
    turned = Image.open(io.BytesIO(picture(3, width=90, height=60)))
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    turned.save(buffer, "JPEG", exif=exif)
    members = {
        "a/one.png": _png(),
        "a/one.json": json.dumps({
            "caption": "json caption",
            "score": 0.5,
            "tags": {"x": 1},
            "url": "https://a/1",
        }).encode(),
        "a/two.jpg": picture(1),
        "a/two.txt": "text \U0001f600".encode(),
        "three.jpg": picture(2),
        "four.txt": b"no picture",
        "five.jpg": b"not a picture",
        "five.cls": b"7",
        "six.jpg": buffer.getvalue(),
        "six.json": json.dumps({"text": "lone \ud800 surrogate"}).encode(),
        "a/two.jpeg": picture(9),
    }
    write_tar(folder / "sub" / "x.tar", members, pax=pax)
    report = run(folder)
    found = {row["key"]: row for row in rows(pool)}
    assert report.num_rows == 7 and report.num_successes == 4
    assert (found["a/one"]["caption"], found["a/one"]["score"], found["a/one"]["url"]) == (
        "json caption",
        0.5,
        "https://a/1",
    )
    assert json.loads(found["a/one"]["tags"]) == {"x": 1}
    assert (found["three"]["caption"], found["three"]["url"]) == (None, "sub/x.tar/three.jpg")
    assert (found["four"]["status"], found["four"]["error_message"]) == ("failed_to_download", "no image in the tar")
    assert found["five"]["status"] == "failed_to_resize" and found["five"]["cls"] == "7"
    assert (found["six"]["width"], found["six"]["height"]) == (60, 90)
    assert found["six"]["caption"] == "lone \ufffd surrogate"
    two = [row for row in rows(pool) if row["key"] == "a/two"]
    assert [row["status"] for row in two] == ["success", "failed_to_download"]
    assert two[0]["caption"] == "text \U0001f600" and two[0]["sha256"] == hashlib.sha256(picture(1)).hexdigest()


def _png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (5, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def test_tars_written_by_webdataset_are_read(tmp_path: Path, pool: Pool, run: Import) -> None:
    import webdataset

    (tmp_path / "in").mkdir()
    with webdataset.TarWriter(str(tmp_path / "in" / "0.tar")) as writer:
        for index in range(3):
            writer.write({
                "__key__": f"s{index}",
                "jpg": picture(index),
                "txt": f"caption {index}",
                "json": {"n": index},
            })
    run(tmp_path / "in" / "0.tar")
    assert [(row["key"], row["caption"], row["n"]) for row in rows(pool)] == [
        (f"s{i}", f"caption {i}", i) for i in range(3)
    ]


def test_carried_values_of_two_types_become_text(tmp_path: Path, pool: Pool, run: Import) -> None:
    for name, value in (("a", 1), ("b", "one"), ("c", 2.5)):
        write_tar(
            tmp_path / "in" / f"{name}.tar",
            {f"{name}.jpg": picture(), f"{name}.json": json.dumps({"v": value}).encode()},
        )
    run(tmp_path / "in")
    assert [row["v"] for row in rows(pool)] == ["1", "one", "2.5"]
    with Catalog(pool) as catalog:
        assert catalog.sql("SELECT count(*) FROM pool WHERE v = 'one'").fetchall() == [(1,)]


def test_a_tar_that_is_cut_off_is_named(tmp_path: Path, run: Import) -> None:
    write_tar(tmp_path / "in" / "0.tar", {"a.jpg": picture()})
    data = (tmp_path / "in" / "0.tar").read_bytes()
    (tmp_path / "in" / "0.tar").write_bytes(data[:1024])
    with pytest.raises(InputError, match=r"in/0\.tar: tar is cut off.*download that shard again"):
        run(tmp_path / "in")


def test_broken_json_is_named(tmp_path: Path, run: Import) -> None:
    write_tar(tmp_path / "in" / "0.tar", {"a.jpg": picture(), "a.json": b"{"})
    with pytest.raises(InputError, match=r"0\.tar, a\.json is not JSON"):
        run(tmp_path / "in")


def test_uids_are_kept_where_all_are_uids(tmp_path: Path, pool: Pool, run: Import) -> None:
    uids = [f"{index:032x}" for index in range(2)]
    write_tar(
        tmp_path / "in" / "0.tar",
        {
            k: v
            for i, uid in enumerate(uids)
            for k, v in ((f"{i}.jpg", picture(i)), (f"{i}.json", json.dumps({"uid": uid}).encode()))
        },
    )
    run(tmp_path / "in")
    assert [row["uid"] for row in rows(pool)] == uids
    other = Pool(tmp_path / "other")
    write_tar(tmp_path / "in2" / "0.tar", {"a.jpg": picture(), "a.json": b'{"uid": "17"}'})
    with Executor(num_workers=1) as executor:
        import_dir(str(tmp_path / "in2"), other, ImportConfig(), progress=SilentProgress(), executor=executor)
    assert (rows(other)[0]["uid"], rows(other)[0]["source_uid"]) == (sample_uid("0.tar/a.jpg", None), "17")


def test_equal_rows_are_merged_within_and_across_imports(tmp_path: Path, pool: Pool, run: Import) -> None:
    def sample(key: str, url: str) -> dict[str, bytes]:
        return {f"{key}.jpg": picture(), f"{key}.json": json.dumps({"url": url, "caption": "same"}).encode()}

    write_tar(
        tmp_path / "one" / "0.tar", {**sample("a", "https://x"), **sample("b", "https://y"), **sample("c", "https://x")}
    )
    write_tar(tmp_path / "one" / "1.tar", sample("d", "https://y"))
    report = run(tmp_path / "one")
    assert (report.num_rows, report.num_samples, report.num_known, report.num_shards) == (4, 2, 0, 1)
    assert [(row["key"], row["num_occurrences"]) for row in rows(pool)] == [("a", 2), ("b", 2)]
    write_tar(tmp_path / "two" / "0.tar", {**sample("e", "https://x"), **sample("f", "https://z")})
    report = run(tmp_path / "two")
    assert (report.num_samples, report.num_known) == (1, 1)
    assert [row["key"] for row in rows(pool)] == ["a", "b", "f"] and pool.shards() == [0, 1]


def test_a_second_run_does_nothing(tmp_path: Path, pool: Pool, run: Import) -> None:
    image_folder(tmp_path / "in")
    first = run(tmp_path / "in")
    stamps = {file: file.stat().st_mtime_ns for file in Path(pool.root).rglob("*") if file.is_file()}
    second = run(tmp_path / "in")
    assert (first.num_shards_written, second.num_shards_written) == (1, 0) and second.num_successes == 4
    assert {file: file.stat().st_mtime_ns for file in Path(pool.root).rglob("*") if file.is_file()} == stamps


def test_an_interrupted_import_goes_on(tmp_path: Path, pool: Pool, run: Import) -> None:
    image_folder(tmp_path / "in", 7)
    run(tmp_path / "in", shard_size=3)
    before = {
        name: pool.read_bytes(f"shards/{name}") for name in pool.list_names("shards") if not name.endswith("json")
    }
    pool.remove("shards/00001.parquet")
    pool.remove("shards/00002.tar")
    pool.remove("shards/00002.parquet")
    assert run(tmp_path / "in", shard_size=3).num_shards_written == 2
    assert {name: pool.read_bytes(f"shards/{name}") for name in before} == before


# Folders of pictures


def test_a_table_of_captions(tmp_path: Path, pool: Pool, run: Import) -> None:
    root = tmp_path / "in"
    image_folder(root)
    (root / "images" / "3.jpg").write_bytes(picture(3)[:200])
    (root / "logo.png").write_bytes(_png())
    with (root / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "text", "width", "stars"])
        for index in range(4):
            writer.writerow([f"images/{index}.jpg", f"caption, {index}\nline", 17, index])
        writer.writerow(["logo.png", "", "", ""])
        writer.writerow(["images/none.jpg", "gone", "", ""])
    report = run(root)
    found = rows(pool)
    assert (report.kind, report.num_rows, report.num_successes) == ("folder", 6, 4)
    assert [row["caption"] for row in found] == [*(f"caption, {i}\nline" for i in range(4)), None, "gone"]
    assert [row["url"] for row in found[:2]] == ["images/0.jpg", "images/1.jpg"]
    assert (found[0]["stars"], found[0]["source_width"], found[0]["width"]) == (0, 17, 96)
    assert found[3]["error_message"].startswith("Image decoding error")
    assert (found[5]["status"], found[5]["error_message"]) == ("failed_to_download", "file not found")
    with tarfile.open(f"{pool.root}/shards/00000.tar") as tar:
        names = tar.getnames()
        assert names == [
            f"{row['key']}.{s}"
            for row in found
            if row["status"] == "success"
            for s in (("png" if row is found[4] else "jpg"), "json", "txt")
        ]
        stored = tar.extractfile(names[0])
        assert stored is not None and stored.read() == picture(0)
    stats = json.loads(pool.read_bytes("shards/00000_stats.json"))
    assert (stats["count"], stats["successes"], stats["failed_to_download"], stats["failed_to_resize"]) == (6, 4, 1, 1)


def test_several_captions_of_a_picture_stay_together(tmp_path: Path, pool: Pool, run: Import) -> None:
    root = tmp_path / "in"
    image_folder(root, 2)
    lines = [
        {"image": "images/0.jpg", "captions": ["", "first", "second"], "box": {"x": 1}},
        {"image": "./images/1.jpg", "captions": []},
    ]
    (root / "c.jsonl").write_text("\n".join(map(json.dumps, lines)))
    run(root / "c.jsonl")
    first, second = rows(pool)
    assert (first["caption"], first["captions"], json.loads(first["box"])) == (
        "first",
        ["", "first", "second"],
        {"x": 1},
    )
    assert (second["caption"], second["captions"], second["url"]) == (None, [], "images/1.jpg")
    report = select(pool, Selection(captions={"alt_text": 0.5, "captions[*]": 0.5}))
    assert report.num_kept == 2


def test_text_files_beside_pictures(tmp_path: Path, pool: Pool, run: Import) -> None:
    root = tmp_path / "in"
    image_folder(root, 2)
    (root / "images" / "1.txt").write_text("one")
    report = run(root)
    assert [(row["url"], row["caption"]) for row in rows(pool)] == [("images/0.jpg", None), ("images/1.jpg", "one")]
    assert report.num_successes == 2


@pytest.mark.parametrize(
    "name", ["../secret.jpg", "/etc/passwd", "images/../../secret.jpg", "C:\\x.jpg", "..\\secret.jpg", "~/x.jpg"]
)
def test_paths_out_of_the_folder_are_refused(tmp_path: Path, pool: Pool, run: Import, name: str) -> None:
    root = tmp_path / "in"
    image_folder(root, 1)
    (tmp_path / "secret.jpg").write_bytes(picture())
    lines = [{"image": "images/0.jpg", "text": "fine"}, {"image": name, "text": "not"}]
    (root / "c.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(InputError, match=r"c\.jsonl, row 2: file name .* leads out of"):
        run(root)
    assert pool.shards() == []


def test_links_out_of_the_folder_are_refused(tmp_path: Path, pool: Pool, run: Import) -> None:
    root = tmp_path / "in"
    image_folder(root, 1)
    (tmp_path / "secret.jpg").write_bytes(picture())
    (root / "images" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(InputError, match="is a link that leads out of"):
        run(root)
    (root / "images" / "link.jpg").unlink()
    write_tar(tmp_path / "far.tar", {"a.jpg": picture()})
    (root / "0.tar").symlink_to(tmp_path / "far.tar")
    with pytest.raises(InputError, match="is a link that leads out of"):
        run(root)


def test_tables_that_cannot_be_used_are_named(tmp_path: Path, run: Import) -> None:
    root = tmp_path / "in"
    image_folder(root, 1)
    (root / "a.csv").write_text("name,caption\nx,y\n")
    with pytest.raises(InputError, match=r"a\.csv has no column of file names .*--file-column"):
        run(root)
    (root / "b.csv").write_text("image,caption\nimages/0.jpg,y\n,z\n")
    with pytest.raises(InputError, match=r"several tables: a\.csv, b\.csv"):
        run(root)
    with pytest.raises(InputError, match=r"b\.csv, row 2: no file name"):
        run(root, table="b.csv")
    with pytest.raises(InputError, match=r"has no column 'words' \(--caption-column\)"):
        run(root, table="b.csv", caption_column="words", file_column="caption")
    with pytest.raises(InputError, match="holds no tars, no pictures"):
        (tmp_path / "empty").mkdir()
        run(tmp_path / "empty")
    with pytest.raises(InputError, match="does not exist"):
        run(tmp_path / "nowhere")


# Hugging Face


def hub_dataset(count: int = 5) -> Any:
    import datasets

    features = datasets.Features({
        "image": datasets.Image(),
        "text": datasets.Value("string"),
        "label": datasets.Value("int64"),
    })
    images = [{"bytes": picture(index), "path": None} for index in range(count - 1)] + [None]
    return datasets.Dataset.from_dict(
        {"image": images, "text": [f"caption {i}" for i in range(count)], "label": list(range(count))},
        features=features,
    )


@pytest.mark.parametrize("layout", ["arrow", "splits", "parquet"])
def test_a_saved_hugging_face_dataset(tmp_path: Path, pool: Pool, run: Import, layout: str) -> None:
    import datasets

    root = tmp_path / "in"
    if layout == "arrow":
        hub_dataset().save_to_disk(str(root), num_shards=2)
    elif layout == "splits":
        datasets.DatasetDict({"train": hub_dataset()}).save_to_disk(str(root))
    else:
        root.mkdir()
        hub_dataset().to_parquet(str(root / "train.parquet"))
    report = run(root, shard_size=3)
    found = rows(pool)
    assert (report.kind, report.num_rows, report.num_successes, report.num_shards) == ("huggingface", 5, 4, 2)
    assert [(row["caption"], row["label"]) for row in found] == [(f"caption {i}", i) for i in range(5)]
    assert [row["sha256"] for row in found[:4]] == [hashlib.sha256(picture(i)).hexdigest() for i in range(4)]
    assert found[4]["error_message"] == "file not found" and len({row["uid"] for row in found}) == 5


def test_pictures_by_path_in_a_dataset_stay_in_its_folder(tmp_path: Path, pool: Pool, run: Import) -> None:
    root = tmp_path / "in"
    image_folder(root, 1)
    (tmp_path / "secret.jpg").write_bytes(picture())
    stored = [{"bytes": None, "path": "images/0.jpg"}, {"bytes": None, "path": "../secret.jpg"}]
    pq.write_table(pa.table({"image": stored, "text": ["in", "out"]}), root / "d.parquet")
    run(root, kind="huggingface")
    inside, outside = rows(pool)
    assert inside["status"] == "success" and "leads out of" in outside["error_message"]


# Real photos


@pytest.mark.skipif(not DATA.exists(), reason=f"no real photos in {DATA}; point WINNOW_DATA at them")
def test_real_photos_with_five_captions_each(pool: Pool, run: Import) -> None:
    report = run(DATA / "coco.jsonl")
    lines = [json.loads(line) for line in (DATA / "coco.jsonl").read_text().splitlines()]
    found = rows(pool)
    assert (report.num_rows, report.num_samples, report.num_successes) == (84, 84, 84)
    assert [row["captions"] for row in found] == [line["captions"] for line in lines]
    assert [row["sha256"] for row in found] == [
        hashlib.sha256((DATA / line["image"]).read_bytes()).hexdigest() for line in lines
    ]


@pytest.mark.skipif(not DATA.exists(), reason=f"no real photos in {DATA}; point WINNOW_DATA at them")
def test_hostile_files_are_rows(pool: Pool, run: Import) -> None:
    report = run(DATA / "hostile.jsonl", caption_column="format")
    lines = [json.loads(line) for line in (DATA / "hostile.jsonl").read_text().splitlines()]
    assert report.num_rows == len(lines) == len(rows(pool)) + report.num_rows - report.num_samples
    assert report.num_successes + sum(report.messages.values()) == report.num_samples
    assert 100 < report.num_successes < report.num_samples
    wrong = [row for row in rows(pool) if row["status"] != "success"]
    assert all(row["error_message"] and row["sha256"] is None for row in wrong)


def test_a_pool_inside_the_source_is_refused(tmp_path: Path, pool: Pool, run: Import) -> None:
    image_folder(tmp_path / "in", 1)
    with pytest.raises(InputError, match="lies inside"):
        run(tmp_path)
