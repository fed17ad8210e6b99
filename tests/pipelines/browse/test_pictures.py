"""Pictures from tars: the right bytes, found as everywhere else in Winnow, and sent as what they are or not at all."""

import io
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from curate.images import ImageError
from curate.store import Pool
from curate.tar import TarWriter, index_tar
from pipelines.browse.pictures import Pictures, as_raster, sniff, walk_headers
from tests.hostile import png
from tests.pool import draw, jpeg, make_pool, make_rows

PHOTO = draw((200, 30, 40), "circle", seed=1)


def encoded(format: str) -> bytes:
    buffer = io.BytesIO()
    PHOTO.save(buffer, format)
    return buffer.getvalue()


def test_every_picture_is_its_own(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool")
    pictures = Pictures(pool)
    for shard in pool.shards():
        header = pool.shard_header(shard)
        keys = pool.read_table(pool.shard_parquet(shard), ["key"])["key"].to_pylist()
        for key, row in zip(keys, make_rows(12, seed=shard), strict=True):
            if row.image is None:
                with pytest.raises(ImageError, match="the tar has no picture"):
                    pictures.read(header, key)
            else:
                found = pictures.read(header, key)
                assert (found.data, found.media_type) == (row.image, "image/jpeg")


def test_the_walk_finds_what_the_index_finds(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with path.open("wb") as file:
        writer = TarWriter(file)
        for number, size in enumerate((0, 1, 511, 512, 513, 5000, 4096, 70_000)):
            writer.add(f"folder/{number}.jpg", b"x" * size)
            writer.add(f"folder/{number}.txt", b"a caption")
            writer.add(f"{number}.PNG", b"y" * size)
        writer.close()
    with path.open("rb") as file:
        members = {member.name: (member.offset, member.size) for member in index_tar(file)}
    found = walk_headers(path)
    assert found is not None
    assert found["3"] == found["folder/3"] == members["folder/3.jpg"]
    assert set(found.values()) == {place for name, place in members.items() if name.endswith("jpg")}


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_are_read_the_slow_way(format: int, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=format) as tar:
        info = tarfile.TarInfo("d" * 150 + "/k.jpg")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    assert walk_headers(path) is None


@pytest.mark.parametrize("cut", [1, 100, 513, 1030])
def test_a_cut_tar_is_not_walked(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with path.open("wb") as file:
        TarWriter(file).add("k.jpg", b"x" * 2000)
    path.write_bytes(path.read_bytes()[:cut])
    assert walk_headers(path) in (None, {})


def test_a_tar_that_changed_since_is_not_shown(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", num_shards=1)
    pictures, header = Pictures(pool), pool.shard_header(0)
    key = pool.read_table(pool.shard_parquet(0), ["key"])["key"][0].as_py()
    pictures.read(header, key)
    path = Path(pool.locate(pool.shard_tar(header)))
    path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(ImageError, match="has changed since"):
        pictures.read(header, key)
    path.unlink()
    with pytest.raises(ImageError, match=r"has changed since|cannot be read"):
        pictures.read(header, key)


@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        (jpeg(PHOTO), "image/jpeg"),
        (png(PHOTO), "image/png"),
        (encoded("GIF"), "image/gif"),
        (encoded("WEBP"), "image/webp"),
        (encoded("AVIF"), "image/avif"),
    ],
)
def test_common_formats_are_sent_as_they_are(data: bytes, media_type: str) -> None:
    assert sniff(data) == media_type
    assert as_raster(data).data is data


@pytest.mark.parametrize("format", ["TIFF", "BMP", "PPM", "JPEG2000"])
def test_others_are_sent_as_jpeg(format: str) -> None:
    found = as_raster(encoded(format))
    assert found.media_type == "image/jpeg"
    with Image.open(io.BytesIO(found.data)) as picture:
        assert (picture.format, picture.size) == ("JPEG", PHOTO.size)


@pytest.mark.parametrize(
    "data",
    [
        b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
        b"<?xml version='1.0'?><svg/>",
        b"<!doctype html><script>alert(1)</script>",
        b"\xef\xbb\xbf<html>",
        b"%PDF-1.7",
        b"",
        b"BM",
        b"RIFF\0\0\0\0WAVE",
        b"\0\0\0\x18ftypmp42",
        b"\x1f\x8b\x08\0",
    ],
)
def test_nothing_else_is_sent(data: bytes) -> None:
    assert sniff(data) == ""
    with pytest.raises(ImageError):
        as_raster(data)


def test_a_key_is_no_path(tmp_path: Path) -> None:
    pool = Pool(make_pool(tmp_path / "pool", num_shards=1).root)
    with pytest.raises(ImageError, match="no picture"):
        Pictures(pool).read(pool.shard_header(0), "../../etc/passwd")
