"""Recipes run from URLs to a built dataset and an evaluated model: once, again, and not at all."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import RenderableType

from curate.executor import Executor
from curate.store import Pool
from pipelines.recipe import EvaluateSection, Recipe, load_recipe, shipped_recipes
from pipelines.run import STAGES, RunReport, plan, run, run_folder
from schemas.errors import InputError
from tests.model import make_checkpoint
from tests.pipelines.text import as_text
from tests.pipelines.web import serve_pairs
from tests.wordnet import make_wordnet
from train.config import TrainConfig

RECIPE = """\
name: tiny
download: {image_size: 48, shard_size: 16, allow_private: true, retries: 0, respect_robots: false}
annotate: [caption_stats, image_stats]
select:
  rules: {words: caption_num_words >= 3, readable: image_width IS NOT NULL}
build: {shard_size: 12}
"""
TRAIN = TrainConfig(
    model="vit-tiny",
    model_options={"image_size": 32, "patch_size": 16, "image_layers": 1, "text_layers": 1, "vocab_size": 515},
    samples_seen=64,
    batch_size=8,
    num_workers=1,
    num_threads=1,
)


def digests(*folders: Path) -> dict[str, str]:
    """Return the sha256 and the time of change of every file."""
    return {
        str(path): f"{hashlib.sha256(path.read_bytes()).hexdigest()} {path.stat().st_mtime_ns}"
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def read(folder: Path, text: str = RECIPE) -> Recipe:
    folder.mkdir(exist_ok=True)
    (folder / "tiny.yaml").write_text(text)
    return load_recipe(folder / "tiny.yaml")


def stages(recipe: Recipe, root: Path) -> dict[str, str]:
    """Return what a dry run says about each stage."""
    return {step.stage: step.text for step in plan(recipe, str(root / "pool"), str(root / "out"))}


def go(recipe: Recipe, root: Path, executor: Executor) -> tuple[RunReport, str]:
    """Run a recipe and return its report and what it said."""
    said: list[RenderableType] = []
    report = run(recipe, str(root / "pool"), str(root / "out"), executor=executor, say=said.append)
    return report, "\n".join(as_text(entry) for entry in said)


def test_from_urls_to_a_dataset_once_and_again(tmp_path: Path, ray_session: Executor) -> None:
    with serve_pairs(tmp_path / "list.csv", num_pairs=30) as num_images:
        recipe = read(tmp_path).with_input([str(tmp_path / "list.csv")])
        assert stages(recipe, tmp_path)["download"].startswith("read ")
        assert not (tmp_path / "pool").exists()
        assert not (tmp_path / "out").exists()
        report, said = go(recipe, tmp_path, ray_session)
    assert report.current == ()
    assert "HTTP Error 404: Not Found" in said
    # Every fifth caption has two words; the pictures that are gone fail the download.
    index = json.loads((Path(report.dataset) / "index.json").read_text())
    assert 0 < index["num_samples"] < num_images
    assert load_recipe(tmp_path / "out" / "recipe.yaml") == recipe

    before = digests(tmp_path / "pool", tmp_path / "out" / "datasets")
    dry = plan(recipe, str(tmp_path / "pool"), str(tmp_path / "out"))
    assert all(step.is_current and step.text.startswith("up to date") for step in dry)
    again, said = go(recipe, tmp_path, ray_session)
    assert again.current == ("download", "annotate", "select", "build")
    assert said.count("up to date") == 4
    assert replace(again, current=()) == report
    assert digests(tmp_path / "pool", tmp_path / "out" / "datasets") == before


def test_a_changed_rule_costs_only_what_depends_on_it(tiny_pool: Pool, ray_session: Executor) -> None:
    root = Path(tiny_pool.root).parent
    first, _ = go(read(root), root, ray_session)
    changed = read(root, RECIPE.replace(">= 3", ">= 8"))
    assert stages(changed, root)["annotate"].startswith("up to date")
    assert stages(changed, root)["select"] == "evaluate 2 rules: words, readable"
    second, _ = go(changed, root, ray_session)
    assert second.current == ("download", "annotate")
    assert second.selection != first.selection
    assert second.dataset != first.dataset
    assert Path(first.dataset).exists()


def test_a_dry_run_writes_nothing_and_counts_what_is_missing(tiny_pool: Pool, ray_session: Executor) -> None:
    root = Path(tiny_pool.root).parent
    recipe = read(root)
    before = digests(root)
    said = stages(recipe, root)
    assert digests(root) == before
    assert said == {
        "download": "nothing to fetch, the pool has 2 shards",
        "annotate": "to do: caption_stats 2 of 2 shards, image_stats 2 of 2 shards",
        "select": "evaluate 2 rules once the stages before are done: words, readable",
        "build": "write the dataset",
    }
    go(recipe, root, ray_session)
    (shard, *_) = sorted(Path(tiny_pool.locate("annotations/image_stats")).rglob("00001.parquet"))
    shard.unlink()
    assert stages(recipe, root)["annotate"] == "to do: image_stats 1 of 2 shards"


def test_a_recipe_without_lists_needs_a_pool(tmp_path: Path, ray_session: Executor) -> None:
    recipe = read(tmp_path)
    for call in (stages, lambda recipe, root: go(recipe, root, ray_session)):
        with pytest.raises(InputError, match=r"names no URL lists and .*pool has no shards; give lists with --input"):
            call(recipe, tmp_path)


def test_a_wrong_operator_ends_the_run_before_the_download(tmp_path: Path, ray_session: Executor) -> None:
    recipe = read(tmp_path).model_copy(update={"annotate": read(tmp_path).annotate[:1] * 2})
    with pytest.raises(InputError, match="two operators have one name"):
        go(recipe.with_input([str(tmp_path / "none.csv")]), tmp_path, ray_session)
    assert not (tmp_path / "pool").exists()


def test_training_and_evaluation_are_done_once(tiny_pool: Pool, ray_session: Executor) -> None:
    root = Path(tiny_pool.root).parent
    data = EvaluateSection(data=("dataset",))
    recipe = read(root).model_copy(update={"train": TRAIN, "evaluate": data})
    first, said = go(recipe, root, ray_session)
    assert first.current == ("download",)
    assert "step 8, 64 samples seen" in said
    assert "image_to_text_recall@1" in said
    assert load_recipe(Path(first.run) / "recipe.yaml") == recipe
    assert json.loads((Path(first.run) / "evaluation.json").read_text())["results"] == first.evaluation

    before = digests(root / "out" / "runs", root / "out" / "datasets")
    assert set(stages(recipe, root)) == set(STAGES)
    assert all(step.is_current for step in plan(recipe, str(root / "pool"), str(root / "out")))
    second, said = go(recipe, root, ray_session)
    assert second.current == STAGES
    assert "image_to_text_recall@1" in said
    assert second.evaluation == first.evaluation
    assert digests(root / "out" / "runs", root / "out" / "datasets") == before

    # What the machine decides keeps the run; what the result depends on makes another.
    assert recipe.train is not None
    same = recipe.model_copy(update={"train": replace(TRAIN, num_workers=2)})
    assert stages(same, root)["train"].startswith("up to date")
    other = recipe.model_copy(update={"train": replace(TRAIN, lr=0.1)})
    assert stages(other, root)["train"].startswith("train vit-tiny, from step 0 to 8, in ")
    assert stages(other, root)["evaluate"] == "evaluate on dataset"


def test_the_folder_of_a_run_follows_its_content(tiny_pool: Pool, ray_session: Executor) -> None:
    root = Path(tiny_pool.root).parent
    report, _ = go(read(root), root, ray_session)
    out = Pool(root / "out")
    folder = run_folder(out, "name", report.dataset, TRAIN)
    assert folder.startswith(f"{root}/out/runs/name-")
    assert run_folder(out, "name", report.dataset, replace(TRAIN, log_every=3)) == folder
    assert run_folder(out, "name", report.dataset, replace(TRAIN, seed=3)) != folder


def test_evaluation_on_data_that_is_not_there(tiny_pool: Pool, ray_session: Executor) -> None:
    root = Path(tiny_pool.root).parent
    recipe = read(root).model_copy(update={"train": TRAIN, "evaluate": EvaluateSection(data=("/nowhere",))})
    with pytest.raises(InputError, match=r"evaluate\.data: /nowhere does not exist"):
        go(recipe, root, ray_session)
    assert not tiny_pool.exists("annotations"), "the run ended too late"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make what recipes with parameters ask for."""
    folder = tmp_path_factory.mktemp("models")
    make_checkpoint(folder / "tiny")
    np.save(folder / "targets.npy", np.ones((2, 24)))
    (folder / "entries.txt").write_text("dog\ncat\n")
    make_wordnet(folder / "wordnet")
    (folder / "synsets.txt").write_text("n02084071\n")
    return folder


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_shipped_recipe_dry_runs(
    name: str, tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "list.csv").write_text("url,caption\nhttp://127.0.0.1/a.jpg,a\n")
    lacking = [parameter for parameter, value in load_recipe(name).parameters.items() if value is None]
    models_named = ("model", "captioner", "llm", "rewriter", "teacher", "network", "image_tower", "text_tower")
    files = dict.fromkeys(models_named, "tiny")  # a dry run loads none of them
    files |= {"targets": "targets.npy", "metadata": "entries.txt", "wordnet": "wordnet", "synsets": "synsets.txt"}
    files |= {"names": "entries.txt", "labels": "entries.txt", "concepts": "concepts.parquet", "losses": "run"}
    monkeypatch.chdir(models)
    given = [f"parameters.{parameter}={files[parameter]}" for parameter in lacking]
    recipe = load_recipe(name, given).with_input([str(tmp_path / "list.csv")])
    # The demo's recipes name folders that the demo makes.
    recipe = recipe.model_copy(update={"evaluate": recipe.evaluate and EvaluateSection(data=("dataset",))})
    said = stages(recipe, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["list.csv"]
    assert list(said) == [stage for stage in STAGES if stage == "download" or getattr(recipe, stage) not in (None, ())]
