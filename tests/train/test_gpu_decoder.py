"""The GPU decoder with a decoder of the CPU in nvJPEG's place; with nvJPEG itself where a GPU is."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from schemas.errors import InputError, StaleDatasetError
from tests.train.dataset_builder import draw_picture, encode_picture, make_samples, write_dataset
from train.decoder import Decoder
from train.gpu_decoder import GpuDecoder, load_nvjpeg, open_decoder, resize_boxes
from train.index import Dataset
from train.loader import Batch, Loader, LoaderConfig

SIZE = 40
CPU = torch.device("cpu")


def decode_here(files: list[torch.Tensor]) -> list[torch.Tensor]:
    """Decode as torchvision does: all, or RuntimeError."""
    try:
        return [torch.tensor(Decoder().whole(file.numpy().tobytes())).permute(2, 0, 1) for file in files]
    except ValueError as error:
        raise RuntimeError("nvjpegDecode failed") from error


def to_picture(rgb: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(rgb).permute(2, 0, 1)


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [(60, 80, (3, 10, 44, 51)), (300, 200, (0, 0, 300, 200)), (20, 31, (1, 2, 17, 23)), (90, 700, (0, 100, 90, 500))],
)
def test_boxes_come_out_as_pillow_resizes_them(height: int, width: int, box: tuple[int, int, int, int]) -> None:
    rgb = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    top, left, box_height, box_width = box
    part = Image.fromarray(rgb[top : top + box_height, left : left + box_width])
    expected = np.asarray(part.resize((SIZE, SIZE), Image.Resampling.BICUBIC)).astype(int)
    # A larger picture beside it, so that there is a margin which must not count.
    pictures = [to_picture(rgb), torch.full((3, height + 50, width + 30), 255, dtype=torch.uint8)]
    found = resize_boxes(pictures, torch.tensor([box, (0, 0, height, width)], dtype=torch.int32), SIZE)
    assert np.abs(found[0].numpy().astype(int) - expected).max() <= 1
    assert (found[1] == 255).all()


def make_batch(tmp_path, *, decode: str, count: int = 24) -> Batch:
    samples = make_samples(count, size=(90, 70))
    png = encode_picture(draw_picture(5, width=90, height=70), "png")
    samples[5] = type(samples[5])(uid=samples[5].uid, image=png, captions=samples[5].captions, suffix="png")
    folder = tmp_path / "dataset"
    if not folder.exists():
        write_dataset(folder, samples)
    dataset = Dataset.open(str(folder), cache=str(tmp_path / "cache"))
    config = LoaderConfig(batch_size=count, image_size=SIZE, num_workers=2, decode=decode, crop_scale=(0.5, 1.0))
    with Loader(dataset, config) as loader:
        return next(loader.batches())


def places_of(batch: Batch) -> torch.Tensor:
    return batch.pictures.permute(0, 1, 3, 4, 2).reshape(len(batch.uids), -1)


def likeness(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the peak signal to noise ratio in dB."""
    return float(10 * torch.log10(255**2 / (one.cpu().float() - other.cpu().float()).square().mean()))


def test_a_batch_of_files_becomes_the_pictures_that_workers_make(tmp_path) -> None:
    files, pixels = (make_batch(tmp_path, decode=decode) for decode in ("gpu", "cpu"))
    assert files.uids == pixels.uids
    assert files.texts == pixels.texts
    assert files.files is not None
    assert int((files.files[:, 0, 0] > 0).sum()) >= 20
    assert int((files.files[:, 0, 0] == 0).sum()) >= 1  # the PNG, which a worker has decoded
    found = GpuDecoder(decode_here, SIZE, CPU).decode(places_of(files), files.files[:, 0], files.uids)
    assert found.shape == pixels.images.shape
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert likeness(found, pixels.images) > 33


def test_a_file_too_large_for_its_place_is_decoded_by_its_worker() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    data = encode_picture(noise, quality=98)
    out, facts = np.zeros((SIZE, SIZE, 3), dtype=np.uint8), np.ones(5, dtype=np.int32)
    assert len(data) > out.size
    Decoder().pack(data, lambda height, width: (0, 0, height, width), out, facts)
    assert facts.tolist() == [0] * 5
    assert out.std() > 1


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_colour_spaces_are_left_to_the_cpu(mode: str) -> None:
    file = io.BytesIO()
    Image.fromarray(draw_picture(1)).convert(mode).save(file, "jpeg")
    out, facts = np.zeros((200, 200, 3), dtype=np.uint8), np.ones(5, dtype=np.int32)
    Decoder().pack(file.getvalue(), lambda height, width: (0, 0, height, width), out, facts)
    assert facts[0] == 0


def test_one_broken_file_spoils_no_other_and_is_named() -> None:
    good = encode_picture(draw_picture(2, width=90, height=70))
    places = torch.zeros(3, 3 * SIZE * SIZE, dtype=torch.uint8)
    files = torch.zeros(3, 5, dtype=torch.int32)
    for row in range(3):
        places[row, : len(good)] = torch.tensor(list(good), dtype=torch.uint8)
        files[row] = torch.tensor([len(good), 0, 0, 70, 90])

    def refuse_second(given: list[torch.Tensor]) -> list[torch.Tensor]:
        if any(file.data_ptr() == places[1].data_ptr() for file in given):
            raise RuntimeError("a kind of JPEG that the GPU does not know")
        return decode_here(given)

    decoder = GpuDecoder(refuse_second, SIZE, CPU)
    found = decoder.decode(places, files, ["a", "b", "c"])
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    places[1, 200:] = 7
    with pytest.raises(StaleDatasetError, match="sample b is not readable"):
        decoder.decode(places, files, ["a", "b", "c"])


def test_without_a_gpu_it_is_refused() -> None:
    assert open_decoder("cpu", SIZE, CPU) is None
    with pytest.raises(InputError, match="decode gpu needs a GPU; leave it out"):
        open_decoder("gpu", SIZE, CPU)


@pytest.mark.gpu
def test_nvjpeg_makes_the_pictures_that_workers_make(tmp_path) -> None:
    device = torch.device("cuda", 0)
    files, pixels = (make_batch(tmp_path, decode=decode) for decode in ("gpu", "cpu"))
    decoder = GpuDecoder(load_nvjpeg(device), SIZE, device)
    found = decoder.decode(places_of(files), files.files[:, 0], files.uids)
    assert found.device == device
    assert likeness(found, pixels.images) > 33
    assert torch.equal(found, decoder.decode(places_of(files), files.files[:, 0], files.uids))
