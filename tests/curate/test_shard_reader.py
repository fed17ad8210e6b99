"""Reading shards in chunks: where they end, what they hold, tars of other people."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from curate import shard_reader
from curate.images import pixels
from curate.luma import planes, to_luma
from curate.shard_reader import CHUNK_BYTES, CHUNK_ROWS, plan_chunks, read_chunks
from curate.store import Pool
from schemas.sample import STATUS_FAILED_DOWNLOAD, STATUS_SUCCESS
from tests.pool import CORRUPT_ROW, Row, draw, jpeg, make_pool, make_rows, write_shard


def sizes(*pictures: tuple[int | None, int | None], status: str = STATUS_SUCCESS) -> pa.Table:
    widths, heights = zip(*pictures, strict=True)
    return pa.table({
        "width": pa.array(widths, pa.int32()),
        "height": pa.array(heights, pa.int32()),
        "status": [status] * len(pictures),
    })


def test_chunks_end_at_a_number_of_rows() -> None:
    assert list(plan_chunks(sizes(*[(10, 10)] * 600))) == [(0, 256), (256, 512), (512, 600)]
    assert CHUNK_ROWS == 256


def test_chunks_end_at_a_number_of_pixels() -> None:
    side = 4000  # 48 MB each
    assert list(plan_chunks(sizes(*[(side, side)] * 5))) == [(0, 2), (2, 4), (4, 5)]
    assert list(plan_chunks(sizes((20_000, 20_000), (1, 1)))) == [(0, 1), (1, 2)]


def test_pictures_of_unknown_size_are_taken_for_large_ones_and_failures_for_nothing() -> None:
    unknown = list(plan_chunks(sizes(*[(None, None)] * 40)))
    assert unknown[0][1] == CHUNK_BYTES // (12 << 20)
    assert list(plan_chunks(sizes(*[(None, None)] * 256, status=STATUS_FAILED_DOWNLOAD))) == [(0, 256)]


def decoded(pool: Pool) -> list[np.ndarray]:
    found = []
    for chunk in read_chunks(pool, pool.shard_header(0), [], needs_tar=True):
        for start, stop, pictures in chunk.decode(needs_colour=True, needs_luma=True):
            assert len(pictures["image"].valid) == stop - start
            found += pixels(pictures["image"].values)
            for rgb, plane in zip(pixels(pictures["image"].values), planes(pictures["image_luma"].values), strict=True):
                assert rgb is not None
                assert np.array_equal(to_luma(rgb), plane)
    return [picture for picture in found if picture is not None]


def test_chunks_and_blocks_hold_every_row_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make_pool(tmp_path / "pool", num_shards=1, shard_size=300)
    whole = decoded(pool)
    assert len(whole) == 300 - 3
    chunks = list(read_chunks(pool, pool.shard_header(0), ["url"], needs_tar=False))
    assert [(chunk.first_row, chunk.num_rows) for chunk in chunks] == [(0, 256), (256, 44)]
    assert [url for chunk in chunks for url in chunk.samples.column("url").to_pylist()] == [
        row.url for row in make_rows(300)
    ]
    # Blocks of one picture, of several, and with a picture too large for what is left of the buffer.
    for limit, buffer in ((1, 100_000), (50_000, 60_000), (50_000, 10)):
        monkeypatch.setattr(shard_reader, "BLOCK_BYTES", limit)
        monkeypatch.setattr(shard_reader, "_BUFFER_BYTES", buffer)
        again = decoded(pool)
        assert all(np.array_equal(one, other) for one, other in zip(whole, again, strict=True))


def test_files_sizes_and_errors(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", num_shards=1)
    (chunk,) = read_chunks(pool, pool.shard_header(0), [], needs_tar=True, needs_files=True)
    rows = make_rows(12)
    files = [row.image for row in rows if row.image is not None]
    assert chunk.read_files().values.to_pylist() == files
    assert chunk.read_file_sizes().values.to_pylist() == [len(data) for data in files]
    assert chunk.read_files().reasons[1] == "no image: HTTP Error 404: Not Found"
    ((_, _, pictures),) = chunk.decode(needs_colour=False, needs_luma=True)
    assert list(pictures) == ["image_luma"]
    assert pictures["image_luma"].reasons[CORRUPT_ROW] == "Image decoding error: truncated JPEG"


def test_tars_of_other_people(tmp_path: Path) -> None:
    """Any order, folders, headers with extensions, other files in between, capital suffixes, several images of one key."""
    pool = Pool(tmp_path / "pool")
    rows = [
        Row(url=f"https://example.org/{n}", caption="x", image=jpeg(draw((9, 9, 9), "circle", seed=n)))
        for n in range(3)
    ]
    write_shard(pool, 0, rows)
    keys = pool.read_table(pool.shard_parquet(0), columns=["key"]).column("key").to_pylist()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for index, suffix in ((2, "JPG"), (0, "jpg")):
            for name, data in ((f"{keys[index]}.txt", b"x"), (f"{keys[index]}.{suffix}", rows[index].image or b"")):
                member = tarfile.TarInfo(f"train/part-0/{name}")
                member.size, member.mtime = len(data), 1234.5
                tar.addfile(member, io.BytesIO(data))
        member = tarfile.TarInfo(f"train/part-0/{keys[0]}.png")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"no!"))
    pool.commit_bytes("shards/00000.tar", buffer.getvalue())
    (chunk,) = read_chunks(pool, pool.shard_header(0), [], needs_tar=True, needs_files=True)
    found = chunk.read_files()
    assert found.values.to_pylist() == [rows[0].image, rows[2].image]
    assert found.reasons[1] == f"no image: the tar has no picture {keys[1]!r}"


def test_a_tar_that_is_cut_off_is_an_error_not_a_shorter_shard(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", num_shards=1)
    whole = pool.read_bytes("shards/00000.tar")
    pool.commit_bytes("shards/00000.tar", whole[: len(whole) // 2])
    with pytest.raises(tarfile.ReadError, match="cut off"):
        list(read_chunks(pool, pool.shard_header(0), [], needs_tar=True))


def test_a_pool_in_an_object_store_is_fetched_whole(tmp_path: Path) -> None:
    local = make_pool(tmp_path / "pool", num_shards=1)
    remote = Pool("memory://annotate-reader")
    for name in ("shards/00000.tar", "shards/00000.parquet"):
        remote.commit_bytes(name, local.read_bytes(name))
    (here,) = read_chunks(local, local.shard_header(0), [], needs_tar=True, needs_files=True)
    (there,) = read_chunks(remote, remote.shard_header(0), [], needs_tar=True, needs_files=True)
    assert there.read_files().values.equals(here.read_files().values)
