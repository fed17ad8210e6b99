"""`winnow export` as typed: what it prints, and the mistakes it explains."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from curate.executor import Executor
from curate.store import Pool
from pipelines.cli import app
from tests.pipelines.export.datasets import embed, make_dataset, make_selections

runner = CliRunner()


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return make_selections(tmp_path_factory.mktemp("export") / "pool")


@pytest.fixture(scope="module")
def dataset(pool: Pool, ray_session: Executor, tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_dataset(pool, tmp_path_factory.mktemp("data"), ray_session).store.root


def winnow(*arguments: str) -> str:
    result = runner.invoke(app, ["export", *arguments])
    assert result.exit_code == 0, f"{arguments}: {result.stderr} {result.exception!r}"
    return result.stdout


def test_datacomp_prints_counts_and_last_the_file(pool: Pool, tmp_path: Path) -> None:
    out = tmp_path / "subset.npy"
    said = winnow("datacomp", "plain", "--pool", pool.root, "--out", str(out))
    lines = said.splitlines()
    assert (lines[0], lines[-1]) == ("30 samples in 1 file, 0.0 MB", str(out))
    assert f"resharder.py -i {pool.root}/shards -o OUT -s {out} -n 3 --shard-format" in lines[2]
    assert len(np.load(out)) == 30
    again = winnow("datacomp", "plain", "--pool", pool.root, "--out", str(out)).splitlines()
    assert again[0] == "up to date: 30 samples, every byte as it was exported"


def test_open_clip_prints_the_command(dataset: str, tmp_path: Path) -> None:
    said = winnow("open-clip", dataset, "--out", str(tmp_path / "out"), "--shard-size", "20", "--no-weights")
    assert f"--train-data '{tmp_path}/out/{{00000..00001}}.tar'" in said
    assert "--train-num-samples 27" in said
    assert said.splitlines()[-1] == str(tmp_path / "out")
    report = json.loads(
        winnow("open-clip", dataset, "--out", str(tmp_path / "out"), "--shard-size", "20", "--no-weights", "--json")
    )
    assert (report["was_current"], report["num_samples"]) == (True, 27)


def test_every_format_runs(pool: Pool, dataset: str, tmp_path: Path) -> None:
    embed(pool, "image", "image_embedding", seed=1)
    embed(pool, "text", "text_embedding", seed=2)
    embed(pool, "recap_text", "text_embedding", seed=3)
    own_text = ["--text-embedding", "text.text_embedding"]
    formats = {
        "energon": [dataset],
        "parquet": [dataset],
        "hugging-face": [dataset],
        "clip-retrieval": [dataset, "--pool", pool.root, *own_text],
        "datacompdr": [
            dataset,
            "--pool",
            pool.root,
            *own_text,
            "--synthetic",
            "recap.recaption=recap_text.text_embedding",
        ],
        "share": ["mixed", "--pool", pool.root],
    }
    for name, arguments in formats.items():
        out = tmp_path / name
        extra = ["--no-weights"] if name == "energon" else []
        assert winnow(name, *arguments, "--out", str(out), *extra).splitlines()[-1] == str(out)
        assert json.loads((out / "export.json").read_text())["num_samples"] == 27
    assert winnow("croissant", dataset).splitlines()[-1] == f"{dataset}/croissant.json"
    card = runner.invoke(app, ["card", dataset, "--pool", pool.root])
    assert card.exit_code == 0
    assert card.stdout.startswith("# mixed\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["datacomp", "POOL/none", "--out", "x.npy"],
            "POOL/none is neither a dataset (it has no index.json) nor a selection",
        ),
        (["datacomp", "gone", "--pool", "POOL", "--out", "x.npy"], "no selection 'gone' in POOL/selections"),
        (["open-clip", "FOLDER", "--out", "OUT"], "open-clip needs pictures in tars"),
        (["open-clip", "FOLDER", "--out", "OUT"], "build it first: `winnow build --pool POOL --selection plain-"),
        (["clip-retrieval", "DATASET", "--out", "OUT"], "reads annotations, which stay in the pool; give --pool DIR"),
        (["share", "DATASET", "--pool", "DATASET", "--out", "OUT"], "give the pool that it was built from"),
        (["parquet", "DATASET", "--out", "DATASET"], "DATASET exists and is not empty; give another --out"),
        (
            ["datacompdr", "DATASET", "--pool", "POOL", "--out", "OUT", "--synthetic", "recap.recaption"],
            "--synthetic 'recap.recaption' is not CAPTION=EMBEDDING",
        ),
    ],
)
def test_mistakes_are_explained(pool: Pool, dataset: str, tmp_path: Path, arguments: list[str], message: str) -> None:
    (plain,) = [name for name in pool.list_names("selections") if name.startswith("plain")]
    names = {
        "POOL": pool.root,
        "DATASET": dataset,
        "FOLDER": f"{pool.root}/selections/{plain}",
        "OUT": str(tmp_path / "out"),
    }

    def spell(text: str) -> str:
        for name, value in names.items():
            text = text.replace(name, value)
        return text

    result = runner.invoke(app, ["export", *map(spell, arguments)])
    assert result.exit_code == 2
    assert spell(message) in result.stderr
    assert result.stderr.startswith("error: ")
    assert not (tmp_path / "out").exists()
