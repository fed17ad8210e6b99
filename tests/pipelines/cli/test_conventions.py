"""The command line's promises: verbs and flags do not change by accident, help is quick, errors are one message."""

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from curate.fetch.config import DownloadConfig
from pipelines.cli import app, main
from pipelines.cli.app import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_SHARDS
from pipelines.fields import read_settings
from schemas.errors import InputError, ShardError

# A new flag is added here too, with a line in CHANGELOG.md; a removed or renamed one breaks somebody's script.
COMMANDS = {
    "download": "URLS --pool --address --num-workers --fetcher --input-format --url-column --caption-column --uid-column --sha256-column --extra-columns --encoding --shard-size --image-size --resize-mode --resize-only-if-bigger --keep-original --encode-format --encode-quality --min-image-size --max-image-area --max-aspect-ratio --max-pixels --allow-private --user-agent --respect-robots --disallowed-directives --connections --connections-per-host --request-seconds --max-bytes --max-redirects --retries --backoff-seconds --max-retry-after-seconds --max-crawl-delay-seconds --shard-seconds --decode-threads --seed",
    "retry": "--pool --address --num-workers --fetcher --input-format --url-column --caption-column --uid-column --sha256-column --extra-columns --encoding --shard-size --image-size --resize-mode --resize-only-if-bigger --keep-original --encode-format --encode-quality --min-image-size --max-image-area --max-aspect-ratio --max-pixels --allow-private --user-agent --respect-robots --disallowed-directives --connections --connections-per-host --request-seconds --max-bytes --max-redirects --retries --backoff-seconds --max-retry-after-seconds --max-crawl-delay-seconds --shard-seconds --decode-threads --seed",
    "import": "SOURCE --pool --address --num-workers --kind --table --file-column --url-column --caption-column --uid-column --shard-size",
    "annotate": "OPERATORS --pool --dry-run --address --num-workers",
    "operators": "--json",
    "select": "--pool --name --recipe --rule --weight --caption --top --per-group --mix --mix-cut --limit --seed --set --json",
    "browse": "--pool --selection --port --host --allow-remote --no-token --open",
    "sql": "QUERY --pool --runs --json --csv --parquet",
    "why": "SAMPLE --pool --selection --json",
    "diff": "FIRST SECOND --pool --num-examples --json",
    "report": "--pool --selection --dataset --run --out --examples --picture-size --max-megabytes --json",
    "extremes": "VALUE --pool --out --num-samples --where",
    "contamination": "--pool --against --out --label --num-samples",
    "build": "--pool --selection --out --address --num-workers --shard-size --view --image-format --blur --columns",
    "status": "--pool --json",
    "train": "DATASET --out --recipe --set --address --num-processes",
    "evaluate": "MODEL --data --revision --batch-size --label-column --template --group-column --relevance-column --negatives --compositional --probe --shots --num-seeds --embedding --trigger --target --trigger-place --json",
    "cut": "MODEL --width --out --revision",
    "convert": "MODEL --to --out --revision --config --tokenizer --tokenizer-revision",
    "poison": "DATASET --out --target --trigger --trigger-place --num-samples --seed --json",
    "run": "RECIPE --input --pool --out --set --dry-run --address --num-workers",
    "sweep": "--pool CONDITIONS --rule --top --top-of --recipe --selection --set --name --by --mean --plot --table --train --samples-seen --seeds --data --out --address --num-workers --json",
    "compare": "SOURCES --out --vary --set --recipe --data --seeds --samples-seen --pool --address --num-workers --json",
    "export clip-retrieval": "SOURCE --out --pool --image-embedding --text-embedding --caption --shard-size --address --num-workers --json",
    "export datacompdr": "SOURCE --out --pool --synthetic --image-embedding --text-embedding --crops --shard-size --address --num-workers --json",
    "export share": "SOURCE --out --pool --column --shard-size --address --num-workers --json",
    "card": "DATASET --pool",
    "export croissant": "SOURCE --out --pool --json",
    "export hugging-face": "SOURCE --out --shard-size --address --num-workers --json",
    "export datacomp": "SOURCE --out --pool --num-samples --weights --json",
    "export energon": "SOURCE --out --shard-size --val-shards --num-samples --weights --address --num-workers --json",
    "export open-clip": "SOURCE --out --shard-size --num-samples --weights --address --num-workers --json",
    "export parquet": "SOURCE --out --shard-size --address --num-workers --json",
    "forget": "--pool --url --domain --sha256 --uid --dataset --cache --export --dry-run --yes --json",
    "recipes": "--json",
    "recipe new": "PATH --extends",
    "recipe show": "RECIPE --set",
    "recipe schema": "",
    "demo-models": "--out --json",
    "demo": "--out --scale --port --json --num-workers",
}
HEAVY = (
    "torch",
    "ray",
    "duckdb",
    "transformers",
    "cv2",
    "polars",
    "PIL",
    "simplejpeg",
    "img2dataset",
    "datasets",
    "aiohttp",
    "pandas",
)

runner = CliRunner()


def test_verbs_and_flags_are_frozen() -> None:
    group = typer.main.get_command(app)
    context = group.make_context("winnow", [], resilient_parsing=True)
    assert read_commands(group, context) == COMMANDS


def read_commands(group: Any, context: Any, prefix: str = "") -> dict[str, str]:
    """Return the parameters of every command by its name, those of a group's by both names."""
    found = {}
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if hasattr(command, "list_commands"):
            found |= read_commands(command, context, f"{prefix}{name} ")
            continue
        parts = [p.opts[0] if p.param_type_name == "option" else p.name.upper() for p in command.params]
        found[f"{prefix}{name}"] = " ".join(parts)
    return found


def test_every_setting_of_a_download_is_a_flag() -> None:
    for setting in read_settings(DownloadConfig):
        assert f"--{setting.name.replace('_', '-')}" in COMMANDS["download"].split()


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["operators"], ["annotate", "--help"], ["run", "--help"], ["train", "--help"]],
)
def test_help_and_operators_import_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys\nfrom pipelines.cli import main\nsys.argv = ['winnow', *sys.argv[1:]]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\nassert not loaded, loaded\n"
    )
    result = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout


def test_version() -> None:
    result = runner.invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, "winnow 0.1.0\n")


def test_operators_as_json() -> None:
    found = {entry["name"]: entry for entry in json.loads(runner.invoke(app, ["operators", "--json"]).stdout)}
    assert found["exact_dedup"]["pool_wide"]
    assert found["image_stats"]["writes"]["image_width"] == "int32"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("the list is empty"), EXIT_ERROR, "error: the list is empty\n"),
        (ShardError("2 of 9 shards failed", {"00001": "x"}), EXIT_SHARDS, "error: 2 of 9 shards failed\n"),
        (FileNotFoundError(2, "No such file", "x.csv"), EXIT_ERROR, "error: x.csv does not exist\n"),
        (
            KeyboardInterrupt(),
            EXIT_INTERRUPTED,
            "stopped; what is finished is kept, and the same command goes on from there\n",
        ),
        (KeyboardInterrupt("3 of 9 shards are done"), EXIT_INTERRUPTED, "3 of 9 shards are done\n"),
    ],
)
def test_errors_are_one_message_and_an_exit_code(
    error: BaseException, code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("pipelines.status.status", fail)
    result = runner.invoke(app, ["status", "--pool", str(tmp_path)])
    assert (result.exit_code, result.stderr, result.stdout) == (code, message, "")


def test_verbose_shows_the_traceback(tmp_path: Path) -> None:
    result = runner.invoke(app, ["--verbose", "status", "--pool", str(tmp_path)])
    assert result.exit_code == EXIT_ERROR
    assert "Traceback" in result.stderr
    assert "Traceback" not in runner.invoke(app, ["status", "--pool", str(tmp_path)]).stderr


def test_an_unexpected_error_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("pipelines.status.status", fail)
    assert isinstance(runner.invoke(app, ["status", "--pool", str(tmp_path)]).exception, ZeroDivisionError)


def test_progress_lines_are_shown_and_other_chatter_is_not(tmp_path: Path) -> None:
    runner.invoke(app, ["status", "--pool", str(tmp_path)])
    assert logging.getLogger("pipelines.progress").isEnabledFor(logging.INFO)
    assert not logging.getLogger("curate.annotate").isEnabledFor(logging.INFO)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["annotate", "--pool", "POOL", "imag_stats"],
            "no operator is called 'imag_stats' (did you mean 'image_stats'?)",
        ),
        (
            ["annotate", "--pool", "POOL", "image_stats"],
            "no shards in POOL/shards; make some with `winnow download URLS --pool POOL`",
        ),
        (["sql", "--pool", "POOL", "SELECT 1", "--json", "--csv"], "--json, --csv and --parquet exclude each other"),
        (["select", "--pool", "POOL"], "a selection needs a name; give --name NAME"),
        (["select", "--pool", "POOL", "--name", "x", "--rule", "a > 1"], "--rule 'a > 1' is not REASON=SQL"),
        (["select", "--pool", "POOL", "--name", "x", "--rule", "a=b", "--rule", "a=c"], "--rule 'a=c' is there twice"),
        (["select", "--pool", "POOL", "--name", "x", "--top", "score"], "--top 'score' does not end with =NUMBER"),
        (
            ["select", "--pool", "POOL", "--name", "x", "--recipe", "raw", "--weight", "2"],
            "--weight and --recipe were both given",
        ),
        (["select", "--pool", "POOL", "--name", "x", "--set", "a=1"], "--set changes a recipe"),
        (
            ["select", "--pool", "POOL", "--name", "x", "--mix", "source=web:0.5,wiki"],
            "--mix 'source=web:0.5,wiki' is wrong at 'wiki'; write --mix source=cc12m:0.7,laion:0.3",
        ),
        (["select", "--pool", "POOL", "--name", "x", "--mix-cut"], "--mix-cut says how --mix is reached"),
        (["select", "--pool", "POOL", "--recipe", "raw", "--mix", "a=b:1"], "--mix and --recipe were both given"),
        (["build", "--pool", "POOL", "--selection", "x", "--out", "o"], "no selection 'x' in POOL/selections"),
        (["download", "POOL/none.csv", "--pool", "POOL"], "none.csv"),
        (
            ["download", "POOL/none.csv", "--pool", "POOL", "--image-size", "0"],
            "image_size is 0; it must be at least 1",
        ),
        (["retry", "--pool", "POOL"], "holds nothing that was downloaded"),
        (["import", "POOL/none", "--pool", "POOL"], "POOL/none does not exist"),
        (["train", "POOL/none", "--out", "POOL/run", "--set", "modle=x"], "unknown key 'modle'; did you mean 'model'?"),
        (["train", "POOL/none", "--out", "POOL/run", "--recipe", "raw"], "recipe raw has no section 'train'"),
        (["run", "startr"], "no recipe is called 'startr'; did you mean 'starter'?"),
        (["run", "raw", "--pool", "POOL", "--dry-run"], "the recipe names no URL lists and POOL has no shards"),
        (["demo", "--scale", "0"], "demo scale is 0"),
    ],
)
def test_mistakes_are_explained(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = runner.invoke(app, [argument.replace("POOL", str(tmp_path)) for argument in arguments])
    assert result.exit_code == EXIT_ERROR
    assert message.replace("POOL", str(tmp_path)) in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stdout == ""


def test_main_is_the_console_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["winnow", "--version"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 0
    assert capsys.readouterr().out == "winnow 0.1.0\n"
