"""Pictures of any aspect: packed they are what they are alone, and a run with them is a run like any other."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModel, Siglip2VisionConfig, Siglip2VisionModel

from schemas.errors import InputError
from tests.train.dataset_builder import Sample, encode_picture, make_uid, write_dataset
from tests.train.training import SCENES, TINY, draw_scene, run_training
from train.config import TrainConfig
from train.evaluate import evaluate
from train.evaluation import EvaluationOptions
from train.index import Dataset
from train.loader import Loader, LoaderConfig
from train.metrics import read_metrics
from train.model import load_model
from train.packing import check_native, encode_packed, grid_key, pack_rows, square_patches
from train.request import Patches, Text, View
from train.trainer import train

PATCH, MOST = 8, 16
GRIDS = torch.tensor([[4, 4], [1, 3], [2, 5], [1, 1], [8, 2], [3, 3], [2, 5]])
NATIVE = {**TINY, "model_options": {**TINY["model_options"], "image_tower": "navit"}}
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@given(st.lists(st.integers(1, 20), min_size=1, max_size=60), st.integers(20, 50))
def test_rows_hold_everything_once(lengths: list[int], row_length: int) -> None:
    rows = pack_rows(lengths, row_length)
    assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
    sums = [sum(lengths[number] for number in row) for row in rows]
    assert max(sums) <= row_length
    # Of any two rows, one could not have taken the other's share: more than half of all tokens but the last row's are filled.
    assert all(one + other > row_length for number, one in enumerate(sums) for other in sums[number + 1 :])


@pytest.fixture
def tower() -> Siglip2VisionModel:
    torch.manual_seed(0)
    config = Siglip2VisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        patch_size=PATCH,
        num_patches=MOST,
    )
    return Siglip2VisionModel(config).double()


def _pictures() -> torch.Tensor:
    return torch.randn(
        len(GRIDS), MOST, PATCH * PATCH * 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )


def _alone(tower: Siglip2VisionModel, patches: torch.Tensor) -> torch.Tensor:
    """Return what transformers' own forward pass pools of each picture, one at a time and without any padding."""
    found = []
    for own, grid in zip(patches, GRIDS, strict=True):
        length = int(grid.prod())
        output = tower(own[None, :length], torch.ones(1, length, dtype=torch.long), grid[None])
        found.append(output.pooler_output[0])
    return torch.stack(found)


@pytest.mark.parametrize("row_length", [0, MOST + 3, 2 * MOST, 1000])
def test_packed_equals_alone(tower: Siglip2VisionModel, row_length: int) -> None:
    """Features, and the gradients of every parameter and of the pictures."""
    wanted = torch.randn(len(GRIDS), 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    results = []
    for encode in (
        lambda pictures: encode_packed(tower, pictures, GRIDS, row_length=row_length),
        lambda p: _alone(tower, p),
    ):
        tower.zero_grad()
        pictures = _pictures().requires_grad_()
        pooled = encode(pictures)
        (pooled * wanted).sum().backward()
        results.append((pooled, pictures.grad, {name: value.grad for name, value in tower.named_parameters()}))
    (packed, packed_inputs, packed_grads), (alone, alone_inputs, alone_grads) = results
    torch.testing.assert_close(packed, alone, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(packed_inputs, alone_inputs, rtol=1e-8, atol=1e-9)
    for name, value in alone_grads.items():
        # Positions are interpolated in float32.
        torch.testing.assert_close(
            packed_grads[name],
            value,
            rtol=1e-7,
            atol=1e-6 if "position" in name else 1e-9,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def test_neighbours_and_padding_are_not_seen(tower: Siglip2VisionModel) -> None:
    pictures, changed = _pictures(), _pictures()
    changed[1:] += 1.0
    changed[0, int(GRIDS[0].prod()) :] = 9.0
    one, other = (encode_packed(tower, value, GRIDS, row_length=40) for value in (pictures, changed))
    torch.testing.assert_close(one[0], other[0], rtol=1e-9, atol=1e-9)
    assert not torch.allclose(one[1], other[1])


def test_squares_become_patches_in_reading_order() -> None:
    images = torch.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4)
    patches, grids = square_patches(images, 2)
    assert grids.tolist() == [[2, 2], [2, 2]]
    assert torch.equal(patches[1, 1].reshape(2, 2, 3), images[1, :, :2, 2:].permute(1, 2, 0))


def _write(folder: Path) -> Path:
    """Write scenes of four aspects."""
    samples = []
    for number in range(2 * len(SCENES)):
        colour, shape, place = SCENES[number % len(SCENES)]
        picture = draw_scene(number, number // len(SCENES), size=40)
        height, width = ((40, 40), (40, 24), (20, 40), (24, 16))[number % 4]
        picture = np.ascontiguousarray(picture[(40 - height) // 2 :][:height, (40 - width) // 2 :][:, :width])
        samples.append(
            Sample(
                uid=make_uid(number),
                image=encode_picture(picture, quality=95),
                captions={"alt_text": f"a {colour} {shape} on the {place}"},
                extra={"colour": colour},
            )
        )
    return write_dataset(folder, samples)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_loader_keeps_the_aspect(num_workers: int, tmp_path: Path) -> None:
    data = Dataset.open(str(_write(tmp_path / "data")))
    config = LoaderConfig(
        batch_size=48, image_size=32, patch_size=PATCH, crop_scale=(1.0, 1.0), num_workers=num_workers
    )
    with Loader(data, config) as loader:
        assert loader.fingerprint != Loader(data, LoaderConfig(batch_size=48, image_size=32)).fingerprint
        batch = next(loader.batches())
        assert batch.pictures.shape == (48, 1, MOST, PATCH * PATCH * 3)
        assert batch.grids is not None
        for row, index in enumerate(batch.indices.tolist()):
            # 40 x 40 is reduced to the budget of 16 patches; the others have their own size.
            rows, columns = [(4, 4), (5, 3), (2, 5), (3, 2)][index % 4]
            assert batch.grids[row, 0].tolist() == [rows, columns]
            picture = batch.pictures[row, 0, : rows * columns].reshape(rows, columns, PATCH, PATCH, 3)
            assert picture.float().std() > 5
            assert not batch.pictures[row, 0, rows * columns :].any()


def test_a_run_learns_and_its_checkpoint_is_transformers_own(tmp_path: Path) -> None:
    data = _write(tmp_path / "data")
    config = {**NATIVE, "samples_seen": 16 * 40, "towers": {"row_patches": 48}}
    process = run_training(data, tmp_path / "run", config)
    assert process.returncode == 0, process.stdout
    losses = [record["loss"] for record in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:3])
    folder = tmp_path / "run" / "checkpoints" / "step_00000040"
    model, plain = load_model(folder), AutoModel.from_pretrained(folder).eval()
    assert (model.patch_size, model.image_size) == (PATCH, 32)
    dataset = Dataset.open(str(data))
    with Loader(dataset, LoaderConfig(batch_size=8, image_size=32, patch_size=PATCH, num_workers=0)) as loader:
        batch = next(loader.batches())
    grids = batch.grids[:, 0]  # type: ignore[index]
    ours = model({View().key: batch.pictures[:, 0], grid_key(View()): grids}, (View(),))[View().key]
    pixels = (batch.pictures[:, 0].unflatten(2, (-1, 3)).float() / 255 - model._mean.view(3)) / model._std.view(3)
    mask = torch.arange(MOST) < grids.prod(1, keepdim=True)
    theirs = plain.get_image_features(
        pixel_values=pixels.flatten(2), pixel_attention_mask=mask.long(), spatial_shapes=grids.long()
    ).pooler_output
    torch.testing.assert_close(ours, torch.nn.functional.normalize(theirs, dim=-1), rtol=1e-4, atol=1e-5)
    options = EvaluationOptions(label_column="colour", templates=("a {c} thing",))
    (metrics,) = evaluate(str(tmp_path / "run"), [str(data)], options, num_workers=0, device="cpu").values()
    assert metrics["acc1"] > 2 * metrics["chance_acc1"]


@pytest.mark.slow
def test_parts_and_processes_give_the_same_curve(tmp_path: Path) -> None:
    data = _write(tmp_path / "data")
    config = {**NATIVE, "samples_seen": 16 * 5, "losses": {"info_nce": 1.0, "otter": {"alpha": 0.5}}}
    runs = {"whole": {}, "parts": {"grad_accumulation": 4}, "packed": {"towers": {"row_patches": 64}}}
    for name, changes in runs.items():
        process = run_training(data, tmp_path / name, {**config, **changes})
        assert process.returncode == 0, process.stdout
    process = run_training(data, tmp_path / "two", config, launcher=TORCHRUN)
    assert process.returncode == 0, process.stdout
    curves = {
        name: [record["loss"] for record in read_metrics(tmp_path / name / "metrics.jsonl")] for name in (*runs, "two")
    }
    for name in ("parts", "packed", "two"):
        np.testing.assert_allclose(curves[name], curves["whole"], rtol=2e-3, err_msg=name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"losses": {"info_nce": 1.0, "simclr": 1.0}}, "navit has no augmented views"),
        ({"losses": {"filip": 1.0}}, "navit gives no patches"),
        ({"compile": True}, "navit does not go with compile"),
        ({"towers": {"patch_share": 0.5}}, "patch_share"),
        (
            {"model_options": TINY["model_options"], "towers": {"row_patches": 9}},
            "row_patches 9 is for image_tower navit",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(settings: dict[str, object], message: str, tmp_path: Path) -> None:
    from pydantic import TypeAdapter

    data = _write(tmp_path / "data")
    config = TypeAdapter(TrainConfig).validate_python({**NATIVE, "samples_seen": 16, **settings})
    with pytest.raises(InputError, match=message):
        train(str(data), str(tmp_path / "run"), config)
    check_native((View(), Text()), is_compiled=False)
    with pytest.raises(InputError, match="no patches"):
        check_native((Patches(),), is_compiled=False)
