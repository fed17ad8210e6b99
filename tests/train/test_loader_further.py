"""The loader with more than one picture and one text of each sample."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from schemas.errors import InputError, StaleDatasetError
from tests.train.dataset_builder import encode_picture, make_samples, write_dataset
from train.crop import choose_crop
from train.decoder import Decoder
from train.index import Dataset
from train.loader import Batch, Loader, LoaderConfig
from train.reader import ImageReader
from train.request import Text, View
from train.view_layout import ViewLayout

PARTNER, REWRITES = View(column="negative_uid"), Text(columns=("rewrite", "recaption"), count=3)
CONFIG = LoaderConfig(
    batch_size=12,
    image_size=24,
    num_workers=0,
    seed=5,
    views=(View(), View(number=1), PARTNER),
    texts=(Text(), REWRITES, Text(variant="augmented")),
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("further")
    folder = write_dataset(root / "dataset", make_samples(40), captions={"alt_text": 1.0, "recaption": 0.0})
    return Dataset.open(str(folder), cache=str(root / "cache"), further=("rewrite", "recaption"))


def take(
    dataset: Dataset, config: LoaderConfig, *, start: int = 0, count: int = 1, rank: int = 0, world_size: int = 1
) -> list[Batch]:
    partners = {"negative_uid": (np.arange(40) + 1) % 40}
    with Loader(dataset, config, rank=rank, world_size=world_size, partners=partners) as loader:
        batches = loader.batches(start)
        return [next(batches) for _ in range(count)]


def test_the_first_view_and_text_are_those_of_a_plain_loader(dataset: Dataset) -> None:
    plain = take(dataset, replace(CONFIG, views=(View(),), texts=(Text(),)))[0]
    found = take(dataset, CONFIG)[0]
    np.testing.assert_array_equal(found.images.numpy(), plain.images.numpy())
    assert found.texts == plain.texts
    assert found.pictures.shape == (12, 3, 3, 24, 24)


@pytest.mark.parametrize(("num_workers", "world_size"), [(2, 1), (0, 3), (1, 2)])
def test_whoever_makes_them_they_are_the_same(dataset: Dataset, num_workers: int, world_size: int) -> None:
    expected = take(dataset, CONFIG, count=4)[3]
    config = replace(CONFIG, num_workers=num_workers)
    shares = [take(dataset, config, start=3, rank=rank, world_size=world_size)[0] for rank in range(world_size)]
    np.testing.assert_array_equal(
        np.concatenate([share.pictures.numpy() for share in shares]), expected.pictures.numpy()
    )
    assert [texts for share in shares for texts in share.captions] == expected.captions
    assert [seed for share in shares for seed in share.seeds] == expected.seeds


def test_a_partners_picture_is_that_of_the_other_sample(dataset: Dataset) -> None:
    # Without a random crop, a sample's own picture and another's view of it are the same pixels.
    still = replace(CONFIG, views=(View(), PARTNER), crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), batch_size=40)
    batch = take(dataset, still)[0]
    own = {int(index): picture for index, picture in zip(batch.indices, batch.pictures[:, 0].numpy(), strict=True)}
    distances = [
        np.abs(own[(int(index) + 1) % 40].astype(int) - picture).mean()
        for index, picture in zip(batch.indices, batch.pictures[:, 1].numpy(), strict=True)
    ]
    others = np.abs(batch.pictures[:, 0].numpy().astype(int) - batch.pictures[:, 1].numpy()).mean()
    assert np.mean(distances) < 0.25 * others


def test_augmented_views_differ_from_the_crop_and_from_each_other(dataset: Dataset) -> None:
    batch = take(dataset, replace(CONFIG, views=(View(), View(number=1), View(number=2))))[0]
    first, one, two = (batch.pictures[:, number].numpy().astype(int) for number in range(3))
    assert all(np.abs(a - b).mean() > 5 for a, b in ((first, one), (first, two), (one, two)))


def test_texts_of_every_sample(dataset: Dataset) -> None:
    for batch in take(dataset, CONFIG, count=3):
        for index, (drawn, *further, augmented) in zip(batch.indices.tolist(), batch.captions, strict=True):
            assert drawn == f"alt {index}"
            expected = {f"rewrite {index}.{part}" for part in range(index % 3)}
            expected |= {f"recaption {index}"} if index % 3 == 0 else set()
            assert {text for text in further if text} == expected
            assert set(augmented.split()) <= set(drawn.split())


def test_without_views_no_picture_is_read(dataset: Dataset) -> None:
    (batch,) = take(dataset, replace(CONFIG, views=()))
    assert batch.pictures.shape[:2] == (12, 0)
    assert len(batch.captions) == 12


def test_captions_read_besides_are_not_fallen_back_to(dataset: Dataset) -> None:
    assert dataset.mixture.columns == ("alt_text",)
    assert dataset.table.columns == ("alt_text", "rewrite", "recaption")


def test_captions_that_the_dataset_lacks_are_named(dataset: Dataset) -> None:
    with pytest.raises(
        InputError,
        match=r"a loss reads the caption column 'negative_caption', the dataset has alt_text, .*`negative_caption: 0`",
    ):
        Dataset.open(dataset.root, further=("negative_caption",))


def test_the_fingerprint_tells_what_is_shown(dataset: Dataset) -> None:
    def fingerprint(config: LoaderConfig) -> str:
        return Loader(dataset, config, partners={"negative_uid": np.arange(40)}).fingerprint

    plain = replace(CONFIG, views=(View(),), texts=(Text(),))
    assert len({fingerprint(config) for config in (plain, CONFIG, replace(CONFIG, view_scale=(0.5, 1.0)))}) == 3


LOCAL = tuple(View(number=number, scale=(0.05, 0.4), size=9) for number in range(1, 5))


def test_small_views_are_the_same_whoever_makes_them(dataset: Dataset) -> None:
    config = replace(CONFIG, views=(View(), *LOCAL, PARTNER))
    alone = take(dataset, config, count=3)[2]
    assert alone.pictures.shape == (12, 3, 3, 24, 24)  # 4 x 81 of 576 pixels share the third
    shared = take(dataset, replace(config, num_workers=2), count=3)[2]
    assert torch.equal(shared.pictures, alone.pictures)
    halves = [take(dataset, config, start=2, rank=rank, world_size=2)[0] for rank in range(2)]
    assert torch.equal(torch.cat([half.pictures for half in halves]), alone.pictures)
    plain = take(dataset, replace(CONFIG, views=(View(), PARTNER)), count=3)[2]
    assert torch.equal(alone.pictures[:, :2], plain.pictures)


def test_small_views_show_the_shares_they_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a picture whose colours are its coordinates, a crop's colours tell its size."""
    monkeypatch.setattr("train.loader.augment_picture", lambda *_: None)
    down, across = np.mgrid[0:256, 0:256].astype(np.uint8)
    picture = np.stack([down, across, np.zeros_like(down)], axis=-1)
    samples = [replace(sample, image=encode_picture(picture, quality=100)) for sample in make_samples(24)]
    opened = Dataset.open(str(write_dataset(tmp_path / "dataset", samples)), cache=str(tmp_path / "cache"))
    views = (View(), *LOCAL, View(number=9, scale=(0.5, 0.6), size=12))
    with Loader(opened, replace(CONFIG, views=views, texts=(Text(),), batch_size=24)) as loader:
        batch = next(loader.batches())
    layout = ViewLayout(views, 24)

    def shares(view: View) -> np.ndarray:
        pixels = layout.take(batch.pictures, view).numpy().astype(float)
        # From the middle of the first pixel to the middle of the last is all but one pixel.
        sides = [
            (pixels[:, channel].max((1, 2)) - pixels[:, channel].min((1, 2))) * view.size / (view.size - 1) / 256
            for channel in (0, 1)
        ]
        return sides[0] * sides[1]

    local = np.concatenate([shares(view) for view in LOCAL])
    assert 0.03 < local.min() < 0.12
    assert 0.33 < local.max() < 0.45
    assert 0.45 < shares(views[-1]).min() <= shares(views[-1]).max() < 0.65
    assert len({tuple(shares(view).round(3)) for view in LOCAL}) == 4


def test_views_larger_than_the_models_are_refused() -> None:
    with pytest.raises(InputError, match="views of 96 pixels, and the model's pictures have 24"):
        replace(CONFIG, views=(View(number=1, size=96),))


def stored_crops(path: Path, count: int = 3) -> Path:
    """Crops of the tests' pictures, each another."""
    random = np.random.default_rng(1)
    boxes = np.concatenate([random.integers(0, 8, (40, count, 2)), random.integers(8, 24, (40, count, 2))], axis=2)
    np.save(path, boxes.reshape(40, -1).astype(np.float32))
    return path


def take_stored(
    dataset: Dataset, path: Path | None, *, num_workers: int = 0, rank: int = 0, world_size: int = 1
) -> list[Batch]:
    config = replace(CONFIG, views=(View(), View(number=1)), texts=(Text(),), num_workers=num_workers)
    with Loader(dataset, config, crop_boxes=path, rank=rank, world_size=world_size) as loader:
        return list(loader.batches(0, 6))


def test_stored_crops_are_shown_to_the_pixel_each_as_often(dataset: Dataset, tmp_path: Path) -> None:
    path = stored_crops(tmp_path / "boxes.npy")
    boxes = np.load(path).reshape(40, 3, 4)
    reader, decoder = ImageReader(dataset.tars), Decoder()
    shown = np.zeros(3, int)
    for batch in take_stored(dataset, path):
        rows = zip(batch.indices.tolist(), batch.seeds, batch.images.numpy(), strict=True)
        for index, seed, picture in rows:
            crop = int(choose_crop([seed], 3)[0])
            shown[crop] += 1
            table = dataset.table
            (data,) = reader.read(*(column[[index]] for column in (table.shard, table.offset, table.size)))
            expected = np.empty((24, 24, 3), np.uint8)
            decoder.crop(data, lambda *_, box=boxes[index, crop]: tuple(int(number) for number in box), expected)
            np.testing.assert_array_equal(picture.transpose(1, 2, 0), expected)
    assert shown.sum() == 72
    assert shown.min() > 12


@pytest.mark.parametrize(("num_workers", "world_size"), [(2, 1), (0, 3)])
def test_whoever_shows_stored_crops_they_are_the_same(
    dataset: Dataset, num_workers: int, world_size: int, tmp_path: Path
) -> None:
    path = stored_crops(tmp_path / "boxes.npy")
    expected = take_stored(dataset, path)
    shares = [
        take_stored(dataset, path, num_workers=num_workers, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for step, batch in enumerate(expected):
        pictures = np.concatenate([share[step].pictures.numpy() for share in shares])
        np.testing.assert_array_equal(pictures, batch.pictures.numpy())
    # An augmented view has random crops as ever.
    plain = take_stored(dataset, None)
    np.testing.assert_array_equal(plain[0].pictures[:, 1].numpy(), expected[0].pictures[:, 1].numpy())
    assert (plain[0].images != expected[0].images).any()


def test_a_crop_that_is_outside_its_picture_is_named(dataset: Dataset, tmp_path: Path) -> None:
    np.save(tmp_path / "boxes.npy", np.tile(np.array([0, 0, 4000, 5], np.float32), (40, 1)))
    message = r"its stored crop \(0, 0, 4000, 5\) is not inside its \d+ x \d+ pixels"
    with pytest.raises(StaleDatasetError, match=message):
        take_stored(dataset, tmp_path / "boxes.npy")
    config = LoaderConfig(batch_size=8, image_size=32, patch_size=8)
    with pytest.raises(InputError, match="crop_boxes is for square pictures"):
        Loader(dataset, config, crop_boxes=tmp_path / "boxes.npy")


def test_the_fingerprint_tells_of_stored_crops(dataset: Dataset, tmp_path: Path) -> None:
    path = stored_crops(tmp_path / "boxes.npy")
    assert Loader(dataset, CONFIG, crop_boxes=path).fingerprint != Loader(dataset, CONFIG).fingerprint
