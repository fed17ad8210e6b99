"""Comparisons: which arms there are, that they are fair, and that a killed one goes on without training anything twice."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from curate.executor import Executor
from pipelines.compare import CompareConfig, compare, make_arms
from schemas.errors import InputError
from tests.pipelines.web import serve_pairs
from tests.train.dataset_builder import Sample, encode_picture, make_uid, write_dataset
from tests.train.training import ROOT, SCENES, TINY, draw_scene, write_scenes

FILES = ("comparison.json", "comparison.md", "comparison.svg", "results.parquet")
LOSSES = ("train.losses={info_nce: 1}", "train.losses={info_nce: 2}")


def _scenes(folder: Path, variant: int) -> Path:
    samples = [
        Sample(
            uid=make_uid(1000 * variant + number),
            image=encode_picture(draw_scene(number, variant)),
            captions={"alt_text": f"a {colour} {shape} on the {place}"},
        )
        for number, (colour, shape, place) in enumerate(SCENES)
    ]
    return write_dataset(folder, samples, name=folder.name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write two datasets, one to evaluate on, and a recipe that trains for a moment."""
    root = tmp_path_factory.mktemp("compare")
    write_scenes(root / "many")
    _scenes(root / "few", 1)
    _scenes(root / "held-back", 7)
    recipe = {
        "name": "mine",
        "select": {"rules": {}},
        "build": {},
        "train": {**TINY, "samples_seen": 160},
        "evaluate": {"data": [str(root / "held-back")]},
    }
    (root / "mine.yaml").write_text(yaml.safe_dump(recipe))
    return root


def _config(folder: Path, *sources: str, **settings: object) -> CompareConfig:
    defaults = {"recipe": str(folder / "mine.yaml"), "seeds": (0, 1)}
    return CompareConfig(sources=tuple(str(folder / name) for name in sources), **{**defaults, **settings})  # type: ignore[arg-type]


def test_arms_are_every_source_with_every_combination(folder: Path) -> None:
    arms = make_arms(_config(folder, "many", "few", vary=("lr=0.1", "lr=0.2", "train.beta1=0.5")))
    assert [arm.name for arm in arms] == [
        "many lr=0.1 beta1=0.5",
        "many lr=0.2 beta1=0.5",
        "few lr=0.1 beta1=0.5",
        "few lr=0.2 beta1=0.5",
    ]
    assert [arm.train.lr for arm in arms] == [0.1, 0.2, 0.1, 0.2]
    assert arms[0].differences == {}
    assert arms[1].differences == {"train.lr": 0.2}
    assert arms[3].differences == {"dataset": str(folder / "few"), "train.lr": 0.2}


def test_only_the_loss_differs_where_only_the_loss_is_varied(folder: Path) -> None:
    for source in ("many", "mine.yaml"):
        first, second = make_arms(_config(folder, source, vary=LOSSES))
        assert first.differences == {}
        assert second.differences == {"train.losses": {"info_nce": 2}}


def test_unfair_comparisons_are_refused(folder: Path) -> None:
    for config, message in [
        (_config(folder, "many", vary=("train.samples_seen=160", "train.samples_seen=320")), "see different numbers of samples .*give --samples-seen"),
        (_config(folder, "many", recipe="", data=("x",)), "epochs of its own dataset.*give --samples-seen"),
        (_config(folder, "many", recipe="", samples_seen=160), "does not say what its models are evaluated on; give --data"),
        (_config(folder, "many", data=("dataset",)), "would be evaluated on its own dataset; give --data"),
        (_config(folder, "many", "many"), "two arms would be called 'many'"),
        (_config(folder, "many", vary=("lr",)), "--vary 'lr' is not KEY=VALUE"),
        (_config(folder, "many", vary=("lrr=1",)), "unknown key 'lrr'; did you mean 'lr'"),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=message):
            make_arms(config)
    with pytest.raises(InputError, match="nothing to compare"):
        CompareConfig(sources=())
    with pytest.raises(InputError, match=r"seeds must be one or more different numbers, got \[0, 0\]"):
        CompareConfig(sources=("a",), seeds=(0, 0))


def _command(folder: Path, out: Path) -> list[str]:
    sources = [str(folder / "many"), str(folder / "few")]
    options = ["--recipe", str(folder / "mine.yaml"), "--seeds", "0,1", "--samples-seen", "320"]
    return [sys.executable, "-m", "pipelines.cli", "compare", *sources, *options, "--out", str(out)]


def _run(command: list[str]) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_arms_are_checked_before_the_first_is_trained(folder: Path, tmp_path: Path) -> None:
    losses = ("train.losses={info_nce: 1}", "train.losses={info_nice: 1}")
    for config, message in (
        (_config(folder, "many", vary=losses), "many losses={info_nice: 1}: unknown loss 'info_nice'"),
        (_config(folder, "many", data=("nope",)), "nope does not exist; give a dataset"),
    ):
        with pytest.raises(InputError, match=message):
            compare(config, "", str(tmp_path / "out"), executor=None)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_a_recipe_of_two_sections_is_enough_for_datasets(folder: Path, tmp_path: Path) -> None:
    whole = yaml.safe_load((folder / "mine.yaml").read_text())
    for sections, has_data in ((("train", "evaluate"), True), (("train",), False)):
        path = tmp_path / f"{len(sections)}.yaml"
        path.write_text(yaml.safe_dump({name: whole[name] for name in sections}))
        data = () if has_data else (str(folder / "few"),)
        (arm,) = make_arms(_config(folder, "many", recipe=str(path), data=data))
        assert arm.evaluate.data == (data or (str(folder / "held-back"),))


def test_a_killed_comparison_goes_on_and_ends_as_an_undisturbed_one(folder: Path, tmp_path: Path) -> None:
    whole = _run(_command(folder, tmp_path / "whole"))
    killed = _run(_command(folder, tmp_path / "killed"))
    runs = tmp_path / "killed" / "runs"
    deadline = time.monotonic() + 300
    # In the middle of the second cell.
    while len(list(runs.glob("*/checkpoints/step_*"))) < 3 or len(list(runs.iterdir())) < 2:
        assert time.monotonic() < deadline
        assert killed.poll() is None
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    assert whole.wait(timeout=400) == 0, whole.stderr and whole.stderr.read()
    assert not (tmp_path / "killed" / "comparison.json").exists()
    checkpoints = {path: path.stat().st_mtime_ns for path in runs.glob("*/checkpoints/step_*/model.safetensors")}
    again = _run(_command(folder, tmp_path / "killed"))
    output, errors = again.communicate(timeout=400)
    assert again.returncode == 0, errors
    assert "many, seed 0: up to date" in output
    assert "few, seed 1: done" in output
    for name in FILES:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    # The first cell's checkpoints were not written anew.
    first = [path for path in checkpoints if "step_00000020" in str(path)]
    assert first
    assert all(path.stat().st_mtime_ns == checkpoints[path] for path in first)
    rows = pq.read_table(tmp_path / "whole" / "results.parquet").to_pylist()
    assert {(row["arm"], row["seed"]) for row in rows} == {("many", 0), ("many", 1), ("few", 0), ("few", 1)}
    recalls = {row["value"] for row in rows if row["metric"] == "text_to_image_recall@10"}
    assert len(recalls) > 1


def test_recipes_share_a_pool_and_a_second_time_costs_nothing(
    folder: Path, tmp_path: Path, ray_session: Executor
) -> None:
    recipe = {
        "name": "web",
        "download": {"image_size": 48, "shard_size": 16, "allow_private": True, "retries": 0, "respect_robots": False},
        "annotate": ["caption_stats"],
        "select": {"rules": {"words": "caption_num_words >= 1"}},
        "build": {"shard_size": 12},
        "train": {**TINY, "samples_seen": 64, "batch_size": 8},
        "evaluate": {"data": [str(folder / "held-back")], "embedding": True},
    }
    strict = {"extends": "all.yaml", "name": "strict", "select": {"rules": {"words": "caption_num_words >= 3"}}}
    with serve_pairs(tmp_path / "list.csv", num_pairs=30):
        recipe["input"] = {"urls": [str(tmp_path / "list.csv")]}
        (tmp_path / "all.yaml").write_text(yaml.safe_dump(recipe))
        (tmp_path / "strict.yaml").write_text(yaml.safe_dump(strict))
        config = CompareConfig(sources=(str(tmp_path / "all.yaml"), str(tmp_path / "strict.yaml")), seeds=(0, 3))
        said: list[str] = []
        pool, out = str(tmp_path / "pool"), str(tmp_path / "out")
        comparison = compare(config, pool, out, executor=ray_session, say=said.append)
    assert said == [f"{arm}, seed {seed}: done" for seed in (0, 3) for arm in ("all", "strict")]
    assert comparison.arms["strict"]["select.rules.words"] == "caption_num_words >= 3"
    assert "modality_gap" in {metric for _, metric in comparison.scores()}
    assert len(list((tmp_path / "out" / "datasets").iterdir())) == 2
    assert len(list((tmp_path / "out" / "runs").iterdir())) == 4
    before = json.loads((tmp_path / "out" / "comparison.json").read_text())
    said.clear()
    compare(config, pool, out, executor=ray_session, say=said.append)
    assert all(line.endswith("up to date") for line in said)
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == before
