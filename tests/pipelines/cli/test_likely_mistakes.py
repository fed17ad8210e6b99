"""The likeliest mistakes of each command: the message names what is wrong and what to do, and nothing is said twice or in Python's words."""

import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from curate.select import Selection, select
from pipelines.cli import app
from tests.curate.pool_builder import annotated_pool
from tests.train.training import write_scenes

# Command, what names the fault, what names the remedy. Words in capitals are folders and files of the fixture.
MISTAKES = [
    ("download ROOT/none.csv --pool ROOT/new", "none.csv", ""),
    ("download NOURL --pool ROOT/new", "NOURL has no url column; it has ['adress', 'caption']", "name it with --url-column"),
    ("download BROKEN --pool ROOT/new", "BROKEN cannot be read as Parquet", "check that the file is whole"),
    ("download LIST --pool ROOT/new --image-size big", "Invalid value for '--image-size'", "winnow download --help"),
    ("retry --pool POOL", "holds nothing that was downloaded", ""),
    ("import ROOT/none --pool ROOT/new", "ROOT/none does not exist", ""),
    ("import LIST --pool ROOT/new", "LIST has no column of file names", "name it with --file-column"),
    ("annotate imag_stats --pool POOL", "no operator is called 'imag_stats'", "did you mean 'image_stats'?"),
    ("annotate image_stats --pool EMPTY", "no shards in EMPTY/shards", "`winnow download URLS --pool EMPTY`"),
    ("annotate clip_score:modle=x --pool POOL", "has no parameter 'modle'", "did you mean 'model'?"),
    ("annotate ROOT/none.py --pool POOL", "operator file 'ROOT/none.py' does not exist", ""),
    ("annotate image_stats --pool EMPTY --dry-run", "no shards in EMPTY/shards", "`winnow download URLS --pool EMPTY`"),
    ("select --pool POOL --name x --rule 'a=caption_num_wrds > 2'", "caption_num_wrds", "did you mean"),
    ("select --pool EMPTY --name x", "no shards in EMPTY/shards", "make some with `winnow download"),
    ("select --pool PARTIAL --name x --rule 'a=caption_num_words > 2'", "1 of 3 shards (00001)", "winnow annotate --pool PARTIAL"),
    ("select --pool POOL --name x --top b32.clip_score=30", "top fraction is 30.0", "above 0 and at most 1"),
    ("select --pool POOL --recipe sanee", "no recipe is called 'sanee'", "did you mean 'sane'?"),
    ("select --pool POOL --name x --rule 'a=clip_score > 2'", "is a column of several tables", "say b32.clip_score or siglip.clip_score"),
    ("sql 'SELECT caption_num_wrds FROM pool' --pool POOL", "caption_num_wrds", "did you mean"),
    ("sql 'SELECT 1' --pool EMPTY", "no shards in EMPTY/shards", "make some with `winnow download"),
    ("why nobody --pool POOL", "has no sample with the url 'nobody'", "winnow sql --pool POOL"),
    ("why nobody --pool EMPTY", "no shards in EMPTY/shards", "make some with `winnow download"),
    ("diff kept nobody --pool POOL", "has no selection 'nobody'", "it has: kept-"),
    ("extremes clip_scor --pool POOL", "clip_scor", "did you mean"),
    ("extremes b32.clip_score --pool EMPTY", "no shards in EMPTY/shards", "make some with `winnow download"),
    ("contamination --pool POOL --against POOL", "has no annotation 'decontaminate'", "winnow annotate --pool POOL decontaminate:"),
    ("build --pool POOL --selection nobody --out ROOT/out", "no selection 'nobody'", ""),
    ("build --pool POOL --selection none --out ROOT/out", "keeps no rows", "loosen its rules and select again"),
    ("build --pool POOL --selection kept --out ROOT/out --shard-size 0", "shard_size is 0", "at least 1"),
    ("status --pool DATA", "no shards in DATA/shards", "make some with `winnow download"),
    ("train EMPTY --out ROOT/run", "EMPTY/index.json does not exist", "give the folder that `winnow build` printed"),
    ("train POOL --out ROOT/run", "POOL/index.json does not exist", "give the folder that `winnow build` printed"),
    ("train DATA --out ROOT/run --set modle=x", "unknown key 'modle'", "did you mean 'model'?"),
    ("evaluate EMPTY --data DATA", "EMPTY is neither a run with a checkpoint nor a model folder", "give a run, one of its checkpoints"),
    ("poison DATA --out ROOT/p --target dog --num-samples 0", "poison num_samples is 0", "at least 1"),
    ("run sanee", "no recipe is called 'sanee'", "did you mean 'sane'?"),
    ("run TYPO --pool POOL", "TYPO:3: unknown key 'ruls'", "did you mean 'rules'?"),
    ("run raw --pool EMPTY --out ROOT/out", "names no URL lists and EMPTY has no shards", "give lists with --input"),
    ("sweep 'b32.clip_scor > {1,2}' --pool POOL", "clip_scor", "did you mean b32.clip_score"),
    ("sweep 'row > {1,2}' --pool EMPTY", "no shards in EMPTY/shards", "make some with `winnow download"),
    ("sweep 'caption_num_words > {1,2}' --pool PARTIAL", "1 of 3 shards (00001)", "winnow annotate --pool PARTIAL"),
    ("compare DATA --out ROOT/cmp --seeds a", "--seeds 'a' is not N,N,...", ""),
    ("demo --scale big", "Invalid value for '--scale'", "winnow demo --help"),
]  # fmt: skip

runner = CliRunner()


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Make a pool, one with an unfinished annotation, a dataset, and files that are wrong; return where they lie."""
    root = tmp_path_factory.mktemp("mistakes")
    pool, partial = annotated_pool(root / "pool"), annotated_pool(root / "partial")
    next(Path(partial.root).glob("annotations/caption_stats/*/00001.parquet")).unlink()
    select(pool, Selection(name="kept", rules={"late": "row > 2"}))
    select(pool, Selection(name="none", rules={"late": "row > 99"}))
    write_scenes(root / "data")
    (root / "empty").mkdir()
    texts = {
        "list.csv": "url,caption\nhttp://127.0.0.1:9/x.jpg,a dog\n",
        "nourl.csv": "adress,caption\nx,y\n",
        "broken.parquet": "PAR1 and nothing that follows",
        "typo.yaml": "extends: sane\nselect:\n  ruls: {a: row > 1}\n",
    }
    for name, text in texts.items():
        (root / name).write_text(text)
    files = {"LIST": "list.csv", "NOURL": "nourl.csv", "BROKEN": "broken.parquet", "TYPO": "typo.yaml"}
    folders = {"POOL": "pool", "PARTIAL": "partial", "DATA": "data", "EMPTY": "empty"}
    return {"ROOT": str(root)} | {word: str(root / name) for word, name in (files | folders).items()}


@pytest.mark.parametrize(("command", "fault", "remedy"), MISTAKES, ids=[command for command, _, _ in MISTAKES])
def test_a_mistake_is_named_with_its_remedy(command: str, fault: str, remedy: str, places: dict[str, str]) -> None:
    def fill(text: str) -> str:
        for word in sorted(places, key=len, reverse=True):
            text = text.replace(word, places[word])
        return text

    result = runner.invoke(app, shlex.split(fill(command)), prog_name="winnow")
    assert result.exit_code == 2, f"{result.stderr} {result.exception!r}"
    assert fill(fault) in result.stderr
    assert fill(remedy) in result.stderr
    assert "Traceback" not in result.stderr
    assert "[Errno" not in result.stderr
    assert result.stdout == ""
