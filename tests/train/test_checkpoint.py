import json
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from schemas.errors import InputError, StaleDatasetError, WinnowError
from train import checkpoint
from train.checkpoint import (
    TrainState,
    find_checkpoint,
    list_checkpoints,
    load_optimizer_state,
    load_state,
    remove_old_checkpoints,
    save_checkpoint,
    write_file,
)
from train.config import ModelConfig
from train.model import ImageTextModel, build_model, load_model
from train.tokenizer import train_tokenizer

SHAPE = ModelConfig(
    image_size=16, patch_size=8, image_width=16, image_layers=1, image_heads=1, text_width=16, text_layers=1,
    text_heads=1, context_length=8, embed_dim=8,
)  # fmt: skip
STATE = TrainState(step=7, samples_seen=70, dataset="tiny", dataset_fingerprint="abc", config={"lr": 0.1})


@pytest.fixture(scope="module")
def model() -> ImageTextModel:
    return build_model(SHAPE, train_tokenizer(["a dog"] * 2, 515, 8), seed=0)


@pytest.fixture
def tokenizer_folder(tmp_path: Path, model: ImageTextModel) -> Path:
    model.tokenizer.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def moments() -> dict[str, torch.Tensor]:
    return {"exp_avg.b": torch.arange(3.0), "exp_avg.a": torch.zeros(2, 2), "step.a": torch.tensor(7.0)}


def make_empty(run: Path, *steps: int) -> None:
    for step in steps:
        (run / "checkpoints" / f"step_{step:08d}").mkdir(parents=True)


def test_what_is_saved_comes_back(tmp_path: Path, model: ImageTextModel, tokenizer_folder: Path) -> None:
    folder = save_checkpoint(tmp_path / "run", STATE, model, moments(), tokenizer_folder)
    assert folder == tmp_path / "run" / "checkpoints" / "step_00000007"
    assert load_state(folder) == STATE
    loaded = load_optimizer_state(folder)
    assert sorted(loaded) == sorted(moments())
    assert all(torch.equal(value, loaded[name]) for name, value in moments().items())
    assert torch.equal(load_model(folder).logit_scale, model.logit_scale)


def test_equal_states_give_equal_bytes(tmp_path: Path, model: ImageTextModel, tokenizer_folder: Path) -> None:
    folders = [save_checkpoint(tmp_path / name, STATE, model, moments(), tokenizer_folder) for name in ("a", "b")]
    first, second = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    assert first == second


def test_a_failed_save_leaves_no_checkpoint_and_the_next_one_cleans_up(
    tmp_path: Path, model: ImageTextModel, tokenizer_folder: Path
) -> None:
    broken: dict[str, torch.Tensor] = {"x": torch.zeros(2).to("meta")}
    with pytest.raises(NotImplementedError):
        save_checkpoint(tmp_path, STATE, model, broken, tokenizer_folder)
    assert list_checkpoints(tmp_path) == {}
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1
    save_checkpoint(tmp_path, STATE, model, moments(), tokenizer_folder)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000007"]


def test_whoever_may_read_a_file_may_read_all(tmp_path: Path, model: ImageTextModel, tokenizer_folder: Path) -> None:
    before = os.umask(0o027)
    try:
        folder = save_checkpoint(tmp_path / "run", STATE, model, moments(), tokenizer_folder)
    finally:
        os.umask(before)
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {
        path.name: 0o640 for path in folder.iterdir()
    }


def test_a_full_disk_is_named(
    tmp_path: Path, model: ImageTextModel, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise SafetensorError("No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(WinnowError, match=r"step_00000007 cannot be written: No space left .* make room there"):
        save_checkpoint(tmp_path / "run", STATE, model, moments(), tokenizer_folder)
    assert list_checkpoints(tmp_path / "run") == {}


def test_newest_complete_checkpoint_is_found(tmp_path: Path) -> None:
    make_empty(tmp_path, 9, 100, 20)
    (tmp_path / "checkpoints" / ".step_00000200.1.staging").mkdir()
    (tmp_path / "checkpoints" / "step_notes").mkdir()
    assert list(list_checkpoints(tmp_path)) == [9, 20, 100]
    assert find_checkpoint(tmp_path).name == "step_00000100"
    model_folder = tmp_path / "model"
    model_folder.mkdir()
    (model_folder / "config.json").write_text("{}")
    assert find_checkpoint(str(model_folder)) == model_folder
    with pytest.raises(InputError, match="neither a run with a checkpoint nor a model folder"):
        find_checkpoint(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("steps", "keep_last", "keep_every", "left"),
    [
        ([10, 20, 30, 40], 2, 0, [30, 40]),
        ([10, 20, 30, 40], 1, 20, [20, 40]),
        ([10, 20, 25], 2, 0, [10, 20, 25]),  # stopped at 25: the newest, whatever its step
        ([10, 20, 25, 30], 2, 0, [20, 30]),  # gone as soon as a regular one is newer
        ([10, 20, 25, 30], 2, 5, [10, 20, 30]),
        ([40, 45], 1, 0, [45]),  # the last step of the run is a regular one
    ],
)
def test_old_checkpoints_go(tmp_path: Path, steps: list[int], keep_last: int, keep_every: int, left: list[int]) -> None:
    make_empty(tmp_path, *steps)
    (tmp_path / "checkpoints" / ".step_00000005.staging").mkdir()  # what a crash during an earlier removal left
    remove_old_checkpoints(tmp_path, keep_last=keep_last, keep_every=keep_every, save_every=10, last_step=45)
    assert list(list_checkpoints(tmp_path)) == left
    assert len(list((tmp_path / "checkpoints").iterdir())) == len(left)


def test_foreign_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no training\.json: it is a model, not a checkpoint"):
        load_state(tmp_path)
    (tmp_path / "training.json").write_text(json.dumps({"format": "winnow-checkpoint", "version": 99}))
    with pytest.raises(StaleDatasetError, match="not of this release"):
        load_state(tmp_path)


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_file(path, b"one")
    write_file(path, b"two")
    assert path.read_bytes() == b"two"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
