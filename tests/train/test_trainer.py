import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from schemas.errors import InputError
from tests.train.training import SCENES, TINY, draw_scene, read_bytes, run_training, write_scenes
from train.checkpoint import list_checkpoints, load_state
from train.config import TrainConfig
from train.metrics import read_metrics
from train.model import load_model
from train.trainer import TrainingStopped, TrainReport, train

pytestmark = pytest.mark.usefixtures("keep_threads")

STEPS = 14
SHORT = {**TINY, "samples_seen": 16 * STEPS}
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes") / "dataset")


@pytest.fixture(scope="module")
def undisturbed(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    train(str(dataset), str(run), TrainConfig(**SHORT))
    return run


@pytest.fixture(scope="module")
def learned(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainReport:
    settings = {**TINY, "epochs": 50, "save_every": 1000, "log_every": 20}
    return train(str(dataset), str(tmp_path_factory.mktemp("learned") / "run"), TrainConfig(**settings))


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(run / "metrics.jsonl")]


class Recorder:
    """A progress that remembers the training, and may act at a given advance of it."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.total = self.done = 0
        self.unit = ""
        self.closed = False
        self.signal_at = -1

    def start(self, stage: str, total: int | None, unit: str) -> None:
        self.stages.append(stage)
        self.total, self.unit = total or 0, unit

    def advance(self, amount: int, **fields: str) -> None:
        assert ("loss" in fields) == (self.stages[-1] == "train")
        self.done += amount if self.stages[-1] == "train" else 0
        if self.done == self.signal_at:
            os.kill(os.getpid(), signal.SIGTERM)

    def close(self) -> None:
        self.closed = True


# ---- Learning ---------------------------------------------------------------------------------------------------------


def test_loss_falls_far_below_chance(learned: TrainReport) -> None:
    curve = losses(learned.run)
    assert curve[0] > 0.9 * math.log(16)
    assert np.mean(curve[-3:]) < 0.35 * math.log(16)


def test_unseen_pictures_find_their_captions(learned: TrainReport) -> None:
    model = load_model(learned.checkpoint)
    pictures = np.stack([draw_scene(number, variant=99, size=32) for number in range(len(SCENES))])
    with torch.no_grad():
        images = model.encode_image(torch.from_numpy(pictures).permute(0, 3, 1, 2))
        texts = model.encode_text([f"a {colour} {shape} on the {place}" for colour, shape, place in SCENES])
    ranks = (images @ texts.T).argsort(dim=1, descending=True)
    hits = (ranks[:, :5] == torch.arange(len(SCENES))[:, None]).any(dim=1).float().mean().item()
    assert hits > 0.4  # chance: 5 of 48, 0.104


def test_transformers_alone_gives_the_same_features(learned: TrainReport) -> None:
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    model = load_model(learned.checkpoint)
    picture = draw_scene(5, variant=0, size=32)
    network = AutoModel.from_pretrained(learned.checkpoint)
    pixels = AutoImageProcessor.from_pretrained(learned.checkpoint)(picture, return_tensors="pt")
    tokens = AutoTokenizer.from_pretrained(learned.checkpoint)(["a red square"], return_tensors="pt")
    with torch.no_grad():
        theirs = network(**tokens, **pixels)
        image = model.encode_image(torch.from_numpy(picture).permute(2, 0, 1)[None])
        text = model.encode_text(["a red square"])
    torch.testing.assert_close(theirs.image_embeds, image, rtol=0, atol=1e-5)
    torch.testing.assert_close(theirs.text_embeds, text, rtol=0, atol=1e-5)


# ---- What a run leaves ------------------------------------------------------------------------------------------------


def test_metrics_describe_each_step(undisturbed: Path) -> None:
    records = list(read_metrics(undisturbed / "metrics.jsonl"))
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    draws = {"sampling/effective_sample_size", "sampling/num_distinct"}
    assert set(records[0]) == {"step", "epoch", "samples_seen", "loss", "logit_scale", "lr", "grad_norm", *draws}
    assert records[5]["samples_seen"] == 96
    assert records[5]["epoch"] == 1.0  # 96 samples make an epoch
    assert records[0]["lr"] == pytest.approx(2e-3 / 3)  # a quarter of the run warms up
    timings = list(read_metrics(undisturbed / "logs" / "timings.jsonl"))
    assert [record["step"] for record in timings] == list(range(1, STEPS + 1))
    assert all(record["samples_per_second"] > 0 for record in timings)
    assert len(list((undisturbed / "tensorboard").iterdir())) == 1


def test_checkpoints_are_kept_by_rule(undisturbed: Path) -> None:
    assert list(list_checkpoints(undisturbed)) == [10, STEPS]
    assert load_state(undisturbed / "checkpoints" / "step_00000010").samples_seen == 160


def test_recipe_in_the_run_folder_repeats_it(undisturbed: Path) -> None:
    recipe = yaml.safe_load((undisturbed / "recipe.yaml").read_text())
    assert TrainConfig(**recipe["train"]).to_dict() == TrainConfig(**SHORT).to_dict()


def test_progress_counts_samples(dataset: Path, tmp_path: Path) -> None:
    progress = Recorder()
    train(str(dataset), str(tmp_path / "run"), TrainConfig(**{**SHORT, "samples_seen": 48}), progress=progress)
    assert (progress.total, progress.done, progress.unit, progress.closed) == (48, 48, "samples", True)


# ---- Going on ---------------------------------------------------------------------------------------------------------


def test_killed_runs_end_like_an_undisturbed_one(dataset: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    # Before the first checkpoint, two steps past it, and with everything of the next one written but its name.
    for die, newest in (("48", []), ("112", [5]), ("step_00000010", [5])):
        process = run_training(dataset, run, SHORT, die=die)
        assert process.returncode == -signal.SIGKILL, process.stdout
        assert list(list_checkpoints(run)) == newest
    process = run_training(dataset, run, SHORT)
    assert process.returncode == 0, process.stdout
    assert "from_step=5 " in process.stdout
    assert read_bytes(run) == read_bytes(undisturbed)


def test_a_terminated_run_saves_and_goes_on(dataset: Path, undisturbed: Path, tmp_path: Path) -> None:
    progress = Recorder()
    progress.signal_at = 7 * 16
    run = str(tmp_path / "run")
    with pytest.raises(TrainingStopped, match=r"stopped by SIGTERM after step 7 of 14; .* the same command goes on"):
        train(str(dataset), run, TrainConfig(**SHORT), progress=progress)
    assert list(list_checkpoints(tmp_path / "run")) == [5, 7]
    train(str(dataset), run, TrainConfig(**SHORT))
    assert read_bytes(tmp_path / "run") == read_bytes(undisturbed)


def test_going_on_between_two_records(dataset: Path, undisturbed: Path, tmp_path: Path) -> None:
    settings = {**SHORT, "log_every": 4, "save_every": 3}
    progress = Recorder()
    progress.signal_at = 6 * 16
    with pytest.raises(TrainingStopped):
        train(str(dataset), str(tmp_path / "run"), TrainConfig(**settings), progress=progress)
    train(str(dataset), str(tmp_path / "run"), TrainConfig(**settings), progress=Recorder())
    records = list(read_metrics(tmp_path / "run" / "metrics.jsonl"))
    assert [record["step"] for record in records] == [1, 4, 8, 12, 14]
    assert [record["loss"] for record in records] == [losses(undisturbed)[step - 1] for step in (1, 4, 8, 12, 14)]


def test_a_finished_run_is_left_alone(dataset: Path, undisturbed: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = read_bytes(undisturbed)
    with caplog.at_level("INFO"):
        report = train(str(dataset), str(undisturbed), TrainConfig(**SHORT))
    assert report.was_finished
    assert report.checkpoint == undisturbed / "checkpoints" / f"step_{STEPS:08d}"
    assert (report.step, report.samples_seen) == (STEPS, 16 * STEPS)
    assert "training is finished" in caplog.text
    assert read_bytes(undisturbed) == before


def test_another_configuration_is_refused(dataset: Path, undisturbed: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"holds another run: lr was 0\.002 and is now 0\.001; give a new --out folder"
    ):
        train(str(dataset), str(undisturbed), TrainConfig(**{**SHORT, "lr": 1e-3}))
    other = write_scenes(tmp_path / "dataset", copies=1)
    with pytest.raises(
        InputError, match=r"dataset 'tiny' has other samples, captions, weights or values of train\.columns than it had"
    ):
        train(str(other), str(undisturbed), TrainConfig(**SHORT))


def test_loader_workers_change_nothing(dataset: Path, undisturbed: Path, tmp_path: Path) -> None:
    train(str(dataset), str(tmp_path / "run"), TrainConfig(**{**SHORT, "num_workers": 2}))
    assert losses(tmp_path / "run") == losses(undisturbed)


# ---- Other ways to the same curve -------------------------------------------------------------------------------------


def test_accumulation_gives_the_same_curve(dataset: Path, undisturbed: Path, tmp_path: Path) -> None:
    train(str(dataset), str(tmp_path / "run"), TrainConfig(**{**SHORT, "grad_accumulation": 4}))
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(undisturbed), rtol=2e-4)


def test_two_processes_give_the_same_curve_through_a_lost_one(dataset: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = run_training(dataset, run, SHORT, die="112", launcher=TORCHRUN)
    assert process.returncode == 0, process.stdout
    assert process.stdout.count("processes=2") >= 2  # torchrun started the group again
    assert "from_step=5 " in process.stdout
    np.testing.assert_allclose(losses(run), losses(undisturbed), rtol=2e-4)


def test_two_processes_take_over_from_one(dataset: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert run_training(dataset, run, SHORT, die="112").returncode == -signal.SIGKILL
    process = run_training(dataset, run, SHORT, launcher=TORCHRUN)
    assert process.returncode == 0, process.stdout
    assert losses(run)[:5] == losses(undisturbed)[:5]
    np.testing.assert_allclose(losses(run), losses(undisturbed), rtol=2e-4)


# ---- Other settings ---------------------------------------------------------------------------------------------------


def test_starting_from_a_checkpoint(dataset: Path, undisturbed: Path, tmp_path: Path) -> None:
    start = undisturbed / "checkpoints" / f"step_{STEPS:08d}"
    settings = {key: value for key, value in SHORT.items() if key not in {"model", "model_options"}}
    config = TrainConfig(**{**settings, "init": str(start), "lr": 1e-5, "samples_seen": 16})
    report = train(str(dataset), str(tmp_path / "run"), config)
    assert losses(tmp_path / "run")[0] < losses(undisturbed)[0] - 0.3
    assert (report.checkpoint / "tokenizer.json").read_bytes() == (start / "tokenizer.json").read_bytes()


def test_a_vocabulary_too_large_for_the_model_is_refused(dataset: Path, undisturbed: Path, tmp_path: Path) -> None:
    from train.tokenizer import train_tokenizer

    texts = [f"word{first}{second}" for first in "abcdefgh" for second in "klmnopqr"]
    train_tokenizer(texts * 3, 700, 16).save_pretrained(tmp_path / "tokenizer")
    settings = {key: value for key, value in SHORT.items() if key not in {"model", "model_options"}}
    start = undisturbed / "checkpoints" / f"step_{STEPS:08d}"
    with pytest.raises(InputError, match=r"has \d+ tokens, .* has embeddings for \d+; leave tokenizer out"):
        config = TrainConfig(**{**settings, "init": str(start), "tokenizer": str(tmp_path / "tokenizer")})
        train(str(dataset), str(tmp_path / "run"), config)


def test_a_convnext_trains_in_bf16_with_clipping(dataset: Path, tmp_path: Path) -> None:
    shape = {
        **TINY["model_options"],
        "image_tower": "convnext",
        "patch_size": 4,
        "image_depths": [1, 1],
        "image_widths": [16, 32],
    }
    config = TrainConfig(**{
        **SHORT,
        "model_options": shape,
        "precision": "bf16",
        "grad_clip": 0.01,
        "samples_seen": 48,
    })
    report = train(str(dataset), str(tmp_path / "run"), config)
    assert report.step == 3
    assert load_model(report.checkpoint).network.config.model_type == "vision-text-dual-encoder"
    assert all(record["grad_norm"] > 0.01 for record in read_metrics(tmp_path / "run" / "metrics.jsonl"))


def test_evaluation_on_the_way_is_recorded(dataset: Path, undisturbed: Path, tmp_path: Path) -> None:
    config = TrainConfig(**{**SHORT, "eval_data": [str(dataset)], "eval_every": 10, "log_every": 3})
    train(str(dataset), str(tmp_path / "run"), config)
    records = {record["step"]: record for record in read_metrics(tmp_path / "run" / "metrics.jsonl")}
    assert list(records) == [1, 3, 6, 9, 10, 12, 14]
    measured = {name for name in records[10] if name.startswith("tiny/")}
    assert measured
    assert measured == {name for name in records[14] if name.startswith("tiny/")}
    assert not any(name.startswith("tiny/") for name in records[12])
    assert records[14]["loss"] == losses(undisturbed)[-1]  # looking changes nothing


def test_captions_and_weights_can_be_replaced(dataset: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from train.index import Dataset

    data = Dataset.open(str(dataset))
    uids = data.table.uids(np.arange(data.num_samples))
    pq.write_table(
        pa.table({"uid": uids, "weight": [1.0] * 16 + [0.0] * (len(uids) - 16)}), tmp_path / "weights.parquet"
    )
    config = TrainConfig(**{**SHORT, "weights": str(tmp_path / "weights.parquet"), "samples_seen": 32})
    train(str(dataset), str(tmp_path / "run"), config)
    assert [record["epoch"] for record in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [1.0, 2.0]
    with pytest.raises(InputError, match="caption column 'recaption' is not in the dataset"):
        train(str(dataset), str(tmp_path / "other"), replace(config, captions={"recaption": 1.0}))


def test_a_batch_that_does_not_divide_is_refused(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="batch_size 16 does not divide into 1 processes x 3 parts; use a multiple of 3"
    ):
        train(str(dataset), str(tmp_path / "run"), TrainConfig(**{**SHORT, "grad_accumulation": 3}))


def test_a_run_has_one_trainer(dataset: Path, tmp_path: Path) -> None:
    progress = Recorder()

    def start_second(amount: int, **fields: str) -> None:
        with pytest.raises(InputError, match="is being trained by another process"):
            train(str(dataset), str(tmp_path / "run"), TrainConfig(**SHORT))
        progress.done += amount

    progress.advance = start_second  # type: ignore[method-assign]
    train(str(dataset), str(tmp_path / "run"), TrainConfig(**{**SHORT, "samples_seen": 16}), progress=progress)
    assert progress.done == 16


def test_a_diverged_run_ends_with_advice(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the loss became .* by step .*; lower lr"):
        train(str(dataset), str(tmp_path / "run"), TrainConfig(**{**SHORT, "lr": 1e30, "warmup_steps": 0}))
    assert all(json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
