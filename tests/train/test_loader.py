import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from schemas.errors import InputError, StaleDatasetError
from tests.train.dataset_builder import Sample, draw_picture, encode_picture, make_samples, make_uid, write_dataset
from train.crop import random_box
from train.index import Dataset
from train.loader import Batch, Loader, LoaderConfig
from train.workers import WorkerError

MIXTURE = {"alt_text": 0.3, "recaption": 0.3, "rewrite[*]": 0.4}
CONFIG = LoaderConfig(batch_size=12, image_size=24, num_workers=0, seed=5, epoch_samples=50)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Sixty samples of different weights and sizes, one of them a PNG."""
    root = tmp_path_factory.mktemp("loader")
    samples = make_samples(60, weights=[0.25 + number % 5 for number in range(60)])
    png = encode_picture(draw_picture(7), "png")
    samples[7] = replace(samples[7], image=png, suffix="png")
    folder = write_dataset(root / "dataset", samples, captions=MIXTURE)
    return Dataset.open(str(folder), cache=str(root / "cache"))


def _take(
    dataset: Dataset, config: LoaderConfig, start: int, count: int, *, rank: int = 0, world_size: int = 1
) -> list[Batch]:
    with Loader(dataset, config, rank=rank, world_size=world_size) as loader:
        batches = loader.batches(start)
        return [next(batches) for _ in range(count)]


def _join(shares: list[Batch]) -> tuple[list[str], list[str], np.ndarray]:
    return (
        [uid for share in shares for uid in share.uids],
        [text for share in shares for text in share.texts],
        np.concatenate([share.images.numpy() for share in shares]),
    )


@pytest.mark.parametrize(
    ("num_workers", "world_size", "start"), [(0, 1, 3), (2, 1, 0), (3, 2, 5), (0, 4, 7), (1, 3, 11)]
)
def test_the_batch_of_a_step_is_the_same_whoever_makes_it(
    dataset: Dataset, num_workers: int, world_size: int, start: int
) -> None:
    reference = _take(dataset, CONFIG, 0, 14)
    config = replace(CONFIG, num_workers=num_workers)
    count = min(5, 14 - start)
    ranks = [_take(dataset, config, start, count, rank=rank, world_size=world_size) for rank in range(world_size)]
    for offset in range(count):
        expected = reference[start + offset]
        shares = [batches[offset] for batches in ranks]
        uids, texts, images = _join(shares)
        assert {(share.step, share.epoch) for share in shares} == {(expected.step, expected.epoch)}
        assert uids == expected.uids
        assert texts == expected.texts
        np.testing.assert_array_equal(images, expected.images.numpy())


def test_steps_go_on_over_epochs_each_in_its_own_order(dataset: Dataset) -> None:
    batches = _take(dataset, CONFIG, 0, 9)
    assert [(batch.step, batch.epoch) for batch in batches] == [(step, step // 4) for step in range(9)]
    assert batches[0].uids != batches[4].uids
    assert batches[0].images.shape == (12, 3, 24, 24)
    assert str(batches[0].images.dtype) == "torch.uint8"
    np.testing.assert_array_equal(dataset.table.uids(batches[0].indices), batches[0].uids)


def test_samples_come_at_their_weights(dataset: Dataset) -> None:
    config = replace(CONFIG, batch_size=50, image_size=4)
    drawn = np.concatenate([batch.indices for batch in _take(dataset, config, 0, 60)])
    counts = np.bincount(drawn, minlength=60)
    expected = 60 * 50 * dataset.weights / dataset.weights.sum()
    # Each epoch draws floor or ceil of the expectation, so 60 epochs stay within a few standard deviations of 60 coin flips.
    assert (np.abs(counts - expected) < 4 * np.sqrt(60) / 2).all()


def test_texts_come_at_the_mixture_and_fall_back(dataset: Dataset) -> None:
    config = replace(CONFIG, batch_size=50, image_size=4)
    kinds: Counter[tuple[int, str]] = Counter()
    for batch in _take(dataset, config, 0, 80):
        for index, text in zip(batch.indices.tolist(), batch.texts, strict=True):
            kind, name = text.split(" ")
            assert name.split(".")[0] == str(index)
            kinds[index % 3, kind] += 1
    # Samples 0 of 3 have no rewrites, 1 and 2 no recaption: their shares go to the others in proportion.
    for rest, shares in ((0, {"alt": 0.5, "recaption": 0.5}), (1, {"alt": 3 / 7, "rewrite": 4 / 7})):
        total = sum(count for (group, _), count in kinds.items() if group == rest)
        chi_square = sum((kinds[rest, kind] - total * share) ** 2 / (total * share) for kind, share in shares.items())
        assert chi_square < 10.8  # 1 degree of freedom, p = 0.001
        assert {kind for group, kind in kinds if group == rest} == set(shares)


def test_the_fingerprint_tells_what_batches_depend_on(dataset: Dataset) -> None:
    with Loader(dataset, CONFIG) as loader:
        fingerprint = loader.fingerprint
    for change, same in (
        ({"num_workers": 3}, True),
        ({"prefetch": 9}, True),
        ({"seed": 6}, False),
        ({"crop_scale": (0.5, 1.0)}, False),
        ({"epoch_samples": 49}, False),
    ):
        with Loader(dataset, replace(CONFIG, **change), rank=1, world_size=2) as loader:
            assert (loader.fingerprint == fingerprint) == same, change


def test_an_epoch_is_by_default_as_long_as_there_are_samples_to_draw(dataset: Dataset) -> None:
    weights = dataset.weights.copy()
    weights[:10] = 0
    with Loader(replace(dataset, weights=weights), replace(CONFIG, epoch_samples=0)) as loader:
        assert loader.epoch_samples == 50
        assert loader.steps_per_epoch == 4


def test_without_replacement_an_epoch_never_repeats(dataset: Dataset) -> None:
    config = replace(CONFIG, replacement=False, epoch_samples=48)
    drawn = [uid for batch in _take(dataset, config, 0, 4) for uid in batch.uids]
    assert len(set(drawn)) == 48


def test_another_iterator_ends_the_first_and_is_not_disturbed_by_it(dataset: Dataset) -> None:
    with Loader(dataset, replace(CONFIG, num_workers=2)) as loader:
        first = loader.batches(0)
        expected = next(first).uids
        pids = loader.worker_pids
        second = loader.batches(0)
        assert next(second).uids == expected
        with pytest.raises(RuntimeError, match="use one iterator of a loader at a time"):
            next(first)
        assert next(second).step == 1
        assert loader.worker_pids == pids


def test_batches_keep_their_pixels_as_long_as_anyone_looks(dataset: Dataset) -> None:
    expected = [batch.images.numpy() for batch in _take(dataset, CONFIG, 0, 20)]
    with Loader(dataset, replace(CONFIG, num_workers=2, prefetch=1)) as loader:
        batches = loader.batches(0)
        some = [next(batches).images[3:5] for _ in range(6)]  # parts of batches, more of them than are made ahead
        for _ in range(8):
            next(batches)
        some += [next(batches).images[3:5] for _ in range(6)]
    for step, part in zip([*range(6), *range(14, 20)], some, strict=True):
        np.testing.assert_array_equal(part.numpy(), expected[step][3:5])


def test_a_killed_worker_is_an_error_at_once(dataset: Dataset) -> None:
    with Loader(dataset, replace(CONFIG, num_workers=2)) as loader:
        batches = loader.batches(0)
        next(batches)
        os.kill(loader.worker_pids[1], signal.SIGKILL)
        with pytest.raises(
            WorkerError, match=r"loader worker \d+ was killed by SIGKILL; the machine may be out of memory"
        ):
            for _ in range(10):
                next(batches)
        # The same loader goes on with new workers.
        assert next(loader.batches(3)).step == 3


def test_workers_end_with_their_loader(dataset: Dataset) -> None:
    loader = Loader(dataset, replace(CONFIG, num_workers=2))
    next(loader.batches(0))
    pids = loader.worker_pids
    loader.close()
    assert not any(_is_running(pid) for pid in pids)


def test_workers_end_when_the_trainer_is_killed(dataset: Dataset) -> None:
    code = (
        "import sys; from train.index import Dataset; from train.loader import Loader, LoaderConfig;"
        f"loader = Loader(Dataset.open({dataset.root!r}, cache={str(Path(dataset.table.folder).parent)!r}),"
        "LoaderConfig(batch_size=12, image_size=8, num_workers=2)); next(loader.batches(0));"
        "print(*loader.worker_pids, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 2
        assert all(_is_running(pid) for pid in pids)
        process.kill()
        process.wait()
        deadline = time.monotonic() + 20
        while any(_is_running(pid) for pid in pids) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(_is_running(pid) for pid in pids)


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_unreadable_image_is_an_error_that_names_it(tmp_path: Path, num_workers: int) -> None:
    samples = make_samples(24)
    samples[5] = replace(samples[5], image=b"\xff\xd8\xff not an image")
    folder = write_dataset(tmp_path / "dataset", samples)
    dataset = Dataset.open(str(folder), cache=str(tmp_path / "cache"))
    with (
        Loader(dataset, LoaderConfig(batch_size=8, image_size=8, num_workers=num_workers)) as loader,
        pytest.raises(
            StaleDatasetError, match=r"00000\.tar, member '000000005\.jpg' at byte \d+ is not a readable image"
        ),
    ):
        batches = loader.batches(0)
        for _ in range(3):
            next(batches)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_tar_that_was_replaced_is_an_error_that_names_it(tmp_path: Path, num_workers: int) -> None:
    folder = write_dataset(tmp_path / "dataset", make_samples(24))
    dataset = Dataset.open(str(folder), cache=str(tmp_path / "cache"))
    (folder / "00001.tar").write_bytes(bytes((folder / "00001.tar").stat().st_size))
    with (
        Loader(dataset, LoaderConfig(batch_size=24, image_size=8, num_workers=num_workers)) as loader,
        pytest.raises(StaleDatasetError, match=r"00001\.tar has no member of \d+ bytes at byte \d+"),
    ):
        next(loader.batches(0))


def test_wrong_settings_are_refused(dataset: Dataset) -> None:
    with pytest.raises(InputError, match="batch_size 12 is not a multiple of the 5 processes"):
        Loader(dataset, CONFIG, world_size=5)
    with pytest.raises(InputError, match="an epoch of 50 samples does not fill one batch of 64; lower batch_size"):
        Loader(dataset, replace(CONFIG, batch_size=64))
    with pytest.raises(InputError, match="crop_scale is two shares"):
        LoaderConfig(batch_size=1, crop_scale=(0.9, 0.8))
    with pytest.raises(InputError, match="batch_size, image_size and prefetch are at least 1"):
        LoaderConfig(batch_size=0)


# ---- Crops --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(300, 300), (200, 500), (500, 100), (1, 7), (37, 1000)])
def test_random_crops_stay_inside_and_keep_their_share_and_ratio(height: int, width: int) -> None:
    rng = np.random.default_rng(0)
    whole_tries = 0
    for _ in range(300):
        top, left, box_height, box_width = random_box(height, width, rng.random(22), (0.5, 1.0), (3 / 4, 4 / 3))
        assert 0 <= top <= top + box_height <= height
        assert 0 <= left <= left + box_width <= width
        assert box_height >= 1
        assert box_width >= 1
        share, ratio = box_height * box_width / (height * width), box_width / box_height
        whole_tries += 0.49 < share < 1.01 and 0.74 < ratio < 1.35
    if (height, width) == (300, 300):
        assert whole_tries == 300


def test_a_picture_too_wide_for_any_ratio_is_cut_in_the_middle() -> None:
    assert random_box(90, 900, np.full(22, 0.5), (0.9, 1.0), (3 / 4, 4 / 3)) == (0, 390, 90, 120)
    assert random_box(900, 90, np.full(22, 0.5), (0.9, 1.0), (3 / 4, 4 / 3)) == (390, 0, 120, 90)


def test_crop_areas_are_uniform() -> None:
    rng = np.random.default_rng(1)
    areas = []
    for _ in range(4000):
        _, _, height, width = random_box(1000, 1000, rng.random(22), (0.2, 0.4), (3 / 4, 4 / 3))
        areas.append(height * width / 1e6)
    counts, _ = np.histogram(areas, bins=10, range=(0.2, 0.4))
    assert ((counts - 400) ** 2 / 400).sum() < 27.9  # 9 degrees of freedom, p = 0.001


def test_a_sample_without_text_gives_an_empty_one(tmp_path: Path) -> None:
    image = encode_picture(draw_picture(0))
    samples = [Sample(uid=make_uid(number), image=image, captions={"alt_text": None}) for number in range(4)]
    folder = write_dataset(tmp_path / "dataset", samples)
    dataset = Dataset.open(str(folder), cache=str(tmp_path / "cache"))
    assert _take(dataset, LoaderConfig(batch_size=4, image_size=8, num_workers=0), 0, 1)[0].texts == [""] * 4
