"""`winnow forget` as it is typed: what it prints, when it asks, what it exits with."""

import json
import os
import pty
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from curate.forget import ForgetRequest, ForgetTargets
from curate.store import Pool
from pipelines.cli import app
from pipelines.cli.app import EXIT_ERROR
from pipelines.forget import forget
from schemas.sample import STATUS_FORGOTTEN, STATUS_SUCCESS
from tests.train.dataset_builder import make_samples, make_uid, write_dataset
from train.index import Dataset, own_temporary_folder

URL = "https://example.org/0/2.jpg"

runner = CliRunner()


def statuses(pool: Pool) -> list[str]:
    return [row for shard in pool.shards() for row in pool.read_table(pool.shard_parquet(shard))["status"].to_pylist()]


@pytest.fixture(autouse=True)
def own_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_the_receipt_is_printed_and_kept(tiny_pool: Pool) -> None:
    result = runner.invoke(app, ["forget", "--pool", tiny_pool.root, "--url", URL, "--json"])
    assert result.exit_code == 0, result.output
    receipt = json.loads(result.stdout)
    assert receipt == json.loads(tiny_pool.read_bytes(receipt["receipt"]))
    assert [(row["shard"], row["row"]) for row in receipt["rows"]] == [(0, 2)]
    assert statuses(tiny_pool)[2] == STATUS_FORGOTTEN
    assert URL not in json.dumps(receipt)


def test_a_dry_run_says_what_it_would_touch(tiny_pool: Pool) -> None:
    result = runner.invoke(app, ["forget", "--pool", tiny_pool.root, "--domain", "example.org", "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "would be rewritten: shards/00001.tar (12 samples)" in result.stdout
    assert "... and 4 more" in result.stdout
    assert result.stdout.rstrip().endswith("would never be fetched again: 1 domain")
    assert STATUS_FORGOTTEN not in statuses(tiny_pool)
    assert not tiny_pool.exists("forgotten")


def test_nothing_matched_is_said_and_no_failure(tiny_pool: Pool) -> None:
    result = runner.invoke(app, ["forget", "--pool", tiny_pool.root, "--url", "https://example.org/none.jpg"])
    assert result.exit_code == 0, result.output
    assert "no sample of the pool or the datasets matches" in result.stdout
    assert len(json.loads(tiny_pool.read_bytes("forgotten/list.json"))["url"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: nothing to forget was named; give --url, --domain, --sha256 or --uid"),
        (["--domain", "org"], "error: --domain 'org' is a top-level domain"),
        (["--uid", "x", "--yes"], "error: --uid 'x' is not 32 lower-case hex characters"),
        (["--url", URL, "--dataset", "/nowhere"], "error: /nowhere holds no dataset"),
    ],
)
def test_mistakes_are_one_message(tiny_pool: Pool, arguments: list[str], message: str) -> None:
    result = runner.invoke(app, ["forget", "--pool", tiny_pool.root, *arguments])
    assert result.exit_code == EXIT_ERROR
    assert message in result.stderr


@pytest.mark.parametrize(("answer", "code", "status"), [("n", 1, STATUS_SUCCESS), ("y", 0, STATUS_FORGOTTEN)])
def test_a_terminal_is_asked(tiny_pool: Pool, answer: str, code: int, status: str) -> None:
    ours, theirs = pty.openpty()
    arguments = ["forget", "--pool", tiny_pool.root, "--url", URL]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", *arguments],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    os.close(theirs)
    os.write(ours, f"{answer}\n".encode())
    _, error = process.communicate(timeout=120)
    os.close(ours)
    assert process.returncode == code, error
    assert b"would be rewritten: shards/00000.tar" in error
    assert b"This cannot be undone. Go on?" in error
    assert statuses(tiny_pool)[2] == status


def test_the_trainers_columns_are_removed_where_they_hold_the_sample(tiny_pool: Pool, tmp_path: Path) -> None:
    samples = make_samples(6)
    write_dataset(tmp_path / "data", samples, shard_size=3)
    named = Dataset.open(str(tmp_path / "data"), cache=str(tmp_path / "columns"))
    unnamed = Dataset.open(str(tmp_path / "data"))
    assert str(unnamed.table.folder).startswith(own_temporary_folder())
    targets = ForgetTargets(caches=(str(tmp_path / "columns"),))
    forget(tiny_pool, ForgetRequest(uids=("f" * 32,)), targets)
    assert Path(named.table.folder).exists()
    report = forget(tiny_pool, ForgetRequest(uids=(make_uid(4),)), targets)
    assert not Path(named.table.folder).exists()
    assert not Path(unnamed.table.folder).exists()
    assert {change.path for change in report.files} == {named.table.folder, unnamed.table.folder}
