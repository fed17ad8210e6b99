import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from schemas.errors import InputError, StaleDatasetError
from tests.train.dataset_builder import draw_picture, encode_picture
from train.picture_files import FileCropJob, FileReader
from train.reader import TarFile
from train.workers import NUM_FACTS


@pytest.fixture
def files(tmp_path: Path) -> list[TarFile]:
    """Write three pictures, each of its own colours."""
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(encode_picture(draw_picture(number), "png"))
    return [TarFile(str(tmp_path / f"{number}.png")) for number in range(3)]


def test_files_come_whole_in_the_order_asked_for(files: list[TarFile]) -> None:
    reader = FileReader(files)
    whole = np.zeros(3, dtype=np.int64)
    found = reader.read(np.array([2, 0, 2]), whole, whole)
    assert found == [Path(files[number].location).read_bytes() for number in (2, 0, 2)]
    assert reader.describe(1, 0) == files[1].location
    assert reader.read(np.array([1, 0]), np.array([7, 0]), np.array([5, 3])) == [
        Path(files[1].location).read_bytes()[7:12],
        Path(files[0].location).read_bytes()[:3],
    ]
    with pytest.raises(StaleDatasetError, match=r"1\.png ends within the image of 9000000 bytes at 7"):
        reader.read(np.array([1]), np.array([7]), np.array([9_000_000]))
    assert reader.describe(1, 7) == f"{files[1].location} at byte 7"
    Path(files[1].location).unlink()
    with pytest.raises(InputError, match=r"image .*1\.png is missing; put it there, or take its line out"):
        reader.read(np.array([1]), whole[:1], whole[:1])


def test_a_job_crops_them_and_travels_to_a_worker(files: list[TarFile], tmp_path: Path) -> None:
    places = np.arange(3), np.zeros(3, dtype=np.int64), np.zeros(3, dtype=np.int64)
    job = pickle.loads(pickle.dumps(FileCropJob(files, *places)))
    images, facts = np.zeros((2, 16, 16, 3), dtype=np.uint8), np.zeros((2, NUM_FACTS), dtype=np.int32)
    job.fill((), 0, np.array([2, 0]), images, facts)
    for row, number in enumerate((2, 0)):  # of 80 by 60 pixels: 21 by 16, of which the middle 16
        scaled = Image.fromarray(draw_picture(number)).resize((21, 16), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(images[row], np.asarray(scaled)[:, 2:18])
    (tmp_path / "0.png").write_bytes(b"no picture")
    with pytest.raises(StaleDatasetError, match=r"0\.png is not a readable image"):
        job.fill((), 0, np.array([0]), images[:1], facts[:1])
