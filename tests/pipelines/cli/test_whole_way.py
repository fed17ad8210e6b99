"""Every command on a small web, as a new user would type them."""

import csv
import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from curate.executor import Executor
from curate.store import Pool
from pipelines.cli import app
from tests.pipelines.web import serve_pairs
from tests.pool import draw, jpeg
from tests.webserver import Route, WebServer

NETWORK = ["--allow-private", "--retries", "0", "--request-seconds", "5"]
TRAIN = {
    "model": "vit-tiny",
    "model_options": "{image_size: 32, patch_size: 16, image_layers: 1, text_layers: 1, vocab_size: 515}",
    "samples_seen": 32,
    "batch_size": 8,
    "num_workers": 1,
}

runner = CliRunner()


def winnow(*arguments: str) -> str:
    """Run a command that must succeed, and return its stdout."""
    result = runner.invoke(app, list(arguments))
    assert result.exit_code == 0, f"{arguments}: {result.stderr} {result.exception!r}"
    return result.stdout


def last_line(text: str) -> str:
    return text.rstrip("\n").splitlines()[-1]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory, ray_session: Executor) -> str:
    """A pool that was downloaded and annotated from the command line."""
    folder = tmp_path_factory.mktemp("cli")
    with serve_pairs(folder / "list.csv", num_pairs=30):
        said = winnow(
            "download",
            str(folder / "list.csv"),
            "--pool",
            str(folder / "pool"),
            "--image-size",
            "64",
            "--shard-size",
            "16",
            *NETWORK,
        )
        assert "30 URLs in 2 of 2 shards, 27 downloaded (90.0%)" in said
        assert "HTTP Error 404: Not Found" in said
        again = winnow(
            "download",
            str(folder / "list.csv"),
            "--pool",
            str(folder / "pool"),
            "--image-size",
            "64",
            "--shard-size",
            "16",
            *NETWORK,
        )
        assert again == "up to date: 2 shards, nothing left to fetch\n"
    said = winnow("annotate", "--pool", str(folder / "pool"), "image_stats", "caption_stats:label=words", "exact_dedup")
    assert [line.split()[:2] for line in said.splitlines()[2:5]] == [
        ["image_stats", "image_stats"],
        ["words", "caption_stats"],
        ["exact_dedup", "exact_dedup"],
    ]
    return str(folder / "pool")


def test_status(pool: str) -> None:
    found = json.loads(winnow("status", "--pool", pool, "--json"))
    assert (found["num_shards"], found["num_samples"], found["num_successes"]) == (2, 30, 27)
    assert {entry["label"]: (entry["done"], entry["total"]) for entry in found["operators"]} == {
        "image_stats": (2, 2),
        "words": (2, 2),
        "exact_dedup": (2, 2),
    }
    assert "30 samples, 27 downloaded (90.0%)" in winnow("status", "--pool", pool)


def test_sql(pool: str, tmp_path: Path) -> None:
    query = "SELECT status, count(*) AS n, max(words.caption_num_words) AS most FROM pool GROUP BY 1 ORDER BY 1"
    assert json.loads(winnow("sql", "--pool", pool, query, "--json")) == [
        {"status": "failed_to_download", "n": 3, "most": 2},
        {"status": "success", "n": 27, "most": 7},
    ]
    rows = list(csv.DictReader(io.StringIO(winnow("sql", "--pool", pool, query, "--csv"))))
    assert rows[1] == {"status": "success", "n": "27", "most": "7"}
    assert "failed_to_download" in winnow("sql", "--pool", pool, query)
    path = tmp_path / "rows.parquet"
    assert winnow("sql", "--pool", pool, query, "--parquet", str(path)) == f"2 rows written to {path}\n"
    assert pq.read_table(path).num_rows == 2
    assert "caption_num_words" in winnow("sql", "--pool", pool, "DESCRIBE pool")
    wrong = runner.invoke(app, ["sql", "--pool", pool, "SELECT caption_num_word FROM pool"])
    assert wrong.exit_code == 2
    assert "did you mean caption_num_words" in wrong.stderr


def test_select_by_flags_prints_the_funnel_and_last_its_folder(pool: str) -> None:
    flags = ["--rule", "a few words=caption_num_words >= 3", "--rule", "readable=image_width IS NOT NULL"]
    flags += ["--weight", "image_entropy_bits + 1", "--caption", "alt_text=1", "--per-group", "caption_num_words=20"]
    said = winnow(
        "select",
        "--pool",
        pool,
        "--name",
        "flags",
        *flags,
        "--top",
        "image_entropy_bits=0.9",
        "--limit",
        "words.caption_num_words=12",
    )
    folder = Path(last_line(said))
    assert folder.parent == Path(pool) / "selections"
    content = json.loads((folder / "selection.json").read_text())
    assert [row["rule"] for row in content["funnel"]] == [
        "downloaded",
        "a few words",
        "readable",
        "top",
        "per_group",
        "limit",
    ]
    assert all(row["rule"] in said for row in content["funnel"])
    ledger = pq.read_table(folder / "ledger.parquet").to_pylist()
    assert len(ledger) == 30
    assert sum(row["kept"] for row in ledger) == content["num_kept"] <= 12
    report = json.loads(winnow("select", "--pool", pool, "--name", "flags", *flags, "--json"))
    assert report["num_rows"] == 30


def test_select_by_recipe(pool: str, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("select: {rules: {words: caption_num_words >= 3}}")
    said = winnow(
        "select",
        "--pool",
        pool,
        "--name",
        "other",
        "--recipe",
        str(recipe),
        "--set",
        "rules.words=caption_num_words >= 7",
    )
    assert Path(last_line(said)).name.startswith("other-")
    assert "caption_num_words >= 7" in said
    assert Path(last_line(winnow("select", "--pool", pool, "--recipe", str(recipe)))).name.startswith("mine-")


def test_a_rule_over_an_unfinished_operator_prints_the_command_that_finishes_it(pool: str) -> None:
    Path(next(Path(pool).glob("annotations/caption_stats/*/00001.parquet"))).unlink()
    result = runner.invoke(app, ["select", "--pool", pool, "--name", "x", "--rule", "words=caption_num_words >= 3"])
    assert result.exit_code == 2
    command = f"winnow annotate --pool {pool} caption_stats:label=words"
    assert command in result.stderr
    assert "caption_stats" in winnow(*command.split()[1:])
    winnow("select", "--pool", pool, "--name", "x", "--rule", "words=caption_num_words >= 3")


def test_build_train_and_evaluate(pool: str, tmp_path: Path) -> None:
    winnow("select", "--pool", pool, "--name", "all", "--rule", "readable=image_width IS NOT NULL")
    build = ["build", "--pool", pool, "--selection", "all", "--out", str(tmp_path / "datasets")]
    said = winnow(*build, "--shard-size", "10")
    assert "27 samples in 3 shards" in said
    dataset = last_line(said)
    assert Path(dataset).parent == tmp_path / "datasets"
    assert (Path(dataset) / "index.json").exists()
    again = winnow(*build, "--shard-size", "10")
    assert again.startswith("up to date: 27 samples")
    view = last_line(winnow(*build, "--view"))
    assert not list(Path(view).glob("*.tar"))

    settings = [part for key, value in TRAIN.items() for part in ("--set", f"{key}={value}")]
    checkpoint = last_line(winnow("train", dataset, "--out", str(tmp_path / "run"), *settings))
    assert Path(checkpoint) == tmp_path / "run" / "checkpoints" / "step_00000004"
    scores = json.loads(winnow("evaluate", str(tmp_path / "run"), "--data", view, "--json"))
    (metrics,) = scores.values()
    assert 0 <= metrics["image_to_text_recall@1"] <= 1
    assert "text_to_image_recall@10" in winnow("evaluate", checkpoint, "--data", dataset)


def test_retry_goes_on_with_the_settings_of_the_pool(tmp_path: Path, ray_session: Executor) -> None:
    body = tmp_path / "list.csv"
    with WebServer() as server:
        server.add(
            "/busy.jpg", Route(jpeg(draw((9, 9, 200), "circle", seed=1, width=200, height=100)), statuses=(503, 200))
        )
        body.write_text(f"url,caption\n{server.url('/busy.jpg')},a busy server\n")
        pool = str(tmp_path / "pool")
        said = winnow(
            "download", str(body), "--pool", pool, "--image-size", "50", "--resize-mode", "center_crop", *NETWORK
        )
        assert "0 downloaded (0.0%)" in said
        said = winnow("retry", "--pool", pool, "--allow-private")
        assert "1 URLs in 1 of 1 shards, 1 downloaded (100.0%)" in said
        assert winnow("retry", "--pool", pool, "--allow-private") == "up to date: 1 shards, nothing left to fetch\n"
    (row,) = Pool(pool).read_table("shards/00000.parquet").to_pylist()
    assert (row["width"], row["height"]) == (50, 50)


def test_import_of_tars(pool: str, tmp_path: Path) -> None:
    said = winnow("import", f"{pool}/shards", "--pool", str(tmp_path / "pool"))
    assert "27 with an image" in said
    found = json.loads(winnow("status", "--pool", str(tmp_path / "pool"), "--json"))
    assert found["num_successes"] == 27
    assert not list((tmp_path / "pool" / "shards").glob("*.tar")), "tars are not copied"


def test_run_and_dry_run(pool: str, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "annotate: [image_stats]\nselect: {rules: {readable: image_width IS NOT NULL}}\nbuild: {shard_size: 10}\n"
    )
    arguments = ["run", str(recipe), "--pool", pool, "--out", str(tmp_path / "out")]
    dry = winnow(*arguments, "--dry-run", "--set", "build.shard_size=5")
    assert [line.partition(":")[0] for line in dry.splitlines()] == ["download", "annotate", "select", "build"]
    assert not (tmp_path / "out").exists()
    assert "build: done" in winnow(*arguments)
    again = winnow(*arguments)
    assert again.count("up to date") == 4
