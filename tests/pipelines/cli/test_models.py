"""`winnow cut`: a model trained with `matryoshka`, cut, is evaluated like any other; `winnow convert`: to open_clip and back."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.cli.app import EXIT_ERROR
from tests.train.training import TINY, write_scenes

pytestmark = pytest.mark.usefixtures("keep_threads")

runner = CliRunner()


def call(*arguments: str) -> str:
    result = runner.invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_trained_model_is_cut_and_evaluated(tmp_path: Path) -> None:
    dataset = write_scenes(tmp_path / "dataset")
    settings = {**TINY, "samples_seen": 16 * 60, "save_every": 1000, "losses": {"matryoshka": {"widths": [32, 4]}}}
    flags = [f"--set={key}={json.dumps(value)}" for key, value in settings.items()]
    call("train", str(dataset), "--out", str(tmp_path / "run"), *flags)
    printed = call("cut", str(tmp_path / "run"), "--width", "4", "--out", str(tmp_path / "narrow"))
    assert printed.strip() == str(tmp_path / "narrow")
    recalls = {}
    for model in ("run", "narrow"):
        found = call("evaluate", str(tmp_path / model), "--data", str(dataset), "--json")
        recalls[model] = float(re.search(r'"mean_recall@1": ([0-9.]+)', found)[1])
    # Of 48 captions.
    assert recalls["narrow"] > 2 / 48
    assert recalls["narrow"] != recalls["run"]


def test_a_model_that_is_none(tmp_path: Path) -> None:
    result = runner.invoke(app, ["cut", str(tmp_path / "nowhere"), "--width", "4", "--out", str(tmp_path / "out")])
    assert result.exit_code == EXIT_ERROR
    assert "is neither a run with a checkpoint nor a model folder" in result.stderr


def test_a_run_goes_to_open_clip_and_comes_back_to_score_and_to_start_from(tmp_path: Path) -> None:
    dataset = write_scenes(tmp_path / "dataset")
    flags = [f"--set={key}={json.dumps(value)}" for key, value in {**TINY, "samples_seen": 32}.items()]
    call("train", str(dataset), "--out", str(tmp_path / "run"), *flags)
    there, back = str(tmp_path / "there"), str(tmp_path / "back")
    assert call("convert", str(tmp_path / "run"), "--to", "open-clip", "--out", there).strip() == there
    assert call("convert", there, "--to", "transformers", "--out", back).strip() == back
    found = [call("evaluate", model, "--data", str(dataset), "--json") for model in (str(tmp_path / "run"), back)]
    recalls = [re.findall(r'"[a-z_]+@\d+": [0-9.]+', one) for one in found]
    assert recalls[0] == recalls[1] != []
    call(
        "train", str(dataset), "--out", str(tmp_path / "second"), *flags, "--set=model_options={}", f"--set=init={back}"
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--to", "open-clip", "--config", "ViT-B-32"], "--config and --tokenizer are about open_clip's checkpoints"),
        (["--to", "transformers", "--revision", "abc"], "--revision is a hub id's"),
        (["--to", "open-clip"], "is neither a run with a checkpoint nor a model folder"),
        (["--to", "transformers"], "cannot be read as a model's shape"),
    ],
)
def test_what_cannot_be_converted(flags: list[str], message: str, tmp_path: Path) -> None:
    result = runner.invoke(app, ["convert", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out"), *flags])
    assert result.exit_code == EXIT_ERROR
    assert message in result.stderr
    assert not (tmp_path / "out").exists()
