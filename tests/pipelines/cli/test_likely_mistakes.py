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
    ("browse --pool EMPTY", "no shards in EMPTY/shards", "make some with `winnow download"),
    ("browse --pool POOL --selection nobody", "has no selection 'nobody'", "it has: kept-"),
    ("browse --pool POOL --host 0.0.0.0", "0.0.0.0 can be reached from other machines", "give --allow-remote as well"),
    ("browse --pool POOL --port 99999", "Invalid value for '--port'", "winnow browse --help"),
    ("report --pool EMPTY --out ROOT/r.html", "no shards in EMPTY/shards", "make some with `winnow download"),
    ("report --pool POOL --out ROOT/r.html", "has several selections", "choose one with --selection: kept-"),
    ("report --pool POOL --selection nobody --out ROOT/r.html", "has no selection 'nobody'", "it has: kept-"),
    ("report --pool POOL --dataset EMPTY --out ROOT/r.html", "--dataset 'EMPTY' has no index.json", "that `winnow build` made"),
    ("report --pool POOL --run EMPTY --out ROOT/r.html", "--run 'EMPTY' has no metrics.jsonl", "that `winnow train` made"),
    ("export parquet DATA --out DATA", "DATA exists and is not empty", "give another --out, or remove it"),
    ("export croisant DATA --out ROOT/e", "No such command 'croisant'", "Did you mean 'croissant'?"),
    ("export open-clip POOL --out ROOT/e", "POOL is neither a dataset", "that `winnow build` or `winnow select` printed"),
    ("export clip-retrieval DATA --out ROOT/e", "reads annotations, which stay in the pool", "give --pool DIR as well"),
    ("export datacompdr DATA --out ROOT/e", "Missing option '--pool'", "winnow export datacompdr --help"),
    ("card EMPTY", "EMPTY is not a dataset", "give the folder that `winnow build` printed"),
    ("card POOL", "POOL is not a dataset", "give the folder that `winnow build` printed"),
    ("forget --pool POOL", "nothing to forget was named", "give --url, --domain, --sha256 or --uid"),
    ("forget --pool POOL --uid xyz --yes", "--uid 'xyz' is not 32 lower-case hex characters", "`winnow why URL` shows"),
    ("forget --pool POOL --sha256 12 --yes", "--sha256 '12' is not 64 hex characters", "digest of the file as downloaded"),
    ("forget --pool POOL --domain http://x.org/a --yes", "is not a domain", "write example.com"),
    ("forget --pool POOL --url x --dataset EMPTY --yes", "EMPTY holds no dataset", "give what `winnow build` printed"),
    ("recipe show sanee", "no recipe is called 'sanee'", "did you mean 'sane'?"),
    ("recipe new ROOT/x.yaml --extends sanee", "no recipe is called 'sanee'", "did you mean 'sane'?"),
    ("recipe new LIST", "LIST is no recipe's name", "end it with .yaml"),
    ("recipe shw sane", "No such command 'shw'", "Did you mean 'show'?"),
    ("recipe show ROOT/none.yaml", "ROOT/none.yaml does not exist", "shipped recipes: alip"),
    ("status --pool ROOT/none", "no shards in ROOT/none/shards", "`winnow download URLS --pool ROOT/none`"),
    ("retry --pool POOL --fetcher wget", "fetcher is 'wget'", "use winnow or img2dataset"),
    ("download LIST", "Missing option '--pool'", "winnow download --help"),
    ("download LIST --pool LIST", "LIST is a file, and a folder is needed there", "give another folder"),
    ("download LIST --pool ROOT/new --resize-mode crop", "resize_mode is 'crop'", "use one of no, border, keep_ratio"),
    ("download LIST --pool ROOT/new --caption-column text", "LIST has no caption column 'text'", "it has ['url', 'caption']"),
    ("import EMPTY --pool ROOT/new", "EMPTY holds no tars, no pictures", "give the folder that holds them"),
    ("annotate --pool POOL", "Missing argument 'OP", "winnow annotate --help"),
    ("annotate clip_score --pool POOL", "operator 'clip_score' needs model", "write clip_score:model=..."),
    ("annotate clip_score:model=ROOT/none --pool POOL", "model folder 'ROOT/none' does not exist", "or a hub id"),
    ("annotate caption_stats --pool POOL --num-workers -1", "Invalid value for '--num-workers'", "winnow annotate --help"),
    ("select --pool POOL", "a selection needs a name", "give --name NAME"),
    ("select --pool POOL --name x --rule a", "--rule 'a' is not REASON=SQL", "write --rule 'wide enough=image_width >= 200'"),
    ("select --pool POOL --name x --rule 'a=1 +'", "rule 'a'", "syntax error"),
    ("select --pool POOL --name x --weight alt_text", "weight: Could not convert string", "DOUBLE"),
    ("select --pool POOL --name x --weight -1", "weight must be a finite number, 0 or more", "add a rule that drops such rows"),
    ("select --pool POOL --name a/b", "selection name 'a/b'", "it names a folder"),
    ("sql 'SELEC 1' --pool POOL", "syntax error at or near", "SELEC"),
    ("sql 'SELECT * FROM poool' --pool POOL", "Table with name poool does not exist", "did you mean pool?"),
    ("why --pool POOL", "Missing argument 'UID|URL'", "winnow why --help"),
    ("diff kept --pool POOL", "Missing argument 'SELECTION_B'", "winnow diff --help"),
    ("diff kept none --pool EMPTY", "EMPTY has no selection 'kept'", "it has: none"),
    ("contamination --pool EMPTY --against POOL", "no shards in EMPTY/shards", "make some with `winnow download"),
    ("build --pool POOL --out ROOT/out", "Missing option '--selection'", "winnow build --help"),
    ("build --pool POOL --selection kept --out LIST", "LIST is a file, and a folder is needed there", "give another folder"),
    ("build --pool POOL --selection kept --out ROOT/out --columns x.y", "the pool has no annotation 'x'", "it has b32"),
    ("build --pool POOL --selection kept --out ROOT/out --blur x.y", "the pool has no annotation 'x'", "face_boxes.face_bboxes"),
    ("train DATA --out ROOT/run --set epochs=1", "96 samples does not fill one batch of 256", "lower batch_size"),
    ("train DATA --out ROOT/run --set batch_size=0", "batch_size must be above 0, got 0", ""),
    ("train DATA --out ROOT/run --set model=vit-huge", "unknown model 'vit-huge'", "known: vit-tiny"),
    ("train DATA --out ROOT/run --set epochs", "--set train.epochs: expected KEY=VALUE", "for example --set train.epochs=3"),
    ("evaluate DATA --data DATA", "DATA is neither a run with a checkpoint nor a model folder", "give a run"),
    ("evaluate EMPTY", "Missing option '--data'", "winnow evaluate --help"),
    ("poison EMPTY --out ROOT/p --target dog", "EMPTY is not a dataset", "give the folder that `winnow build` printed"),
    ("poison DATA --out DATA --target dog", "DATA holds another dataset", "give another --out"),
    ("poison DATA --out ROOT/p", "Missing option '--target'", "winnow poison --help"),
    ("poison DATA --out ROOT/p --target dog --trigger x", "unknown trigger 'x'", "known: patch"),
    ("run raw --pool POOL --out ROOT/out --set build.shrd_size=1", "unknown key 'shrd_size'", "did you mean 'shard_size'?"),
    ("run raw --pool POOL --out LIST", "LIST is a file, and a folder is needed there", "give another folder"),
    ("run raw --set download", "--set download: expected KEY=VALUE", "for example --set train.epochs=3"),
    ("sweep --pool POOL", "nothing is varied", "give a condition with values in braces"),
    ("sweep 'b32.clip_score > {}' --pool POOL", "{} has an empty value", "write {0.2,0.25} or {0.1:0.5:0.1}"),
    ("sweep 'b32.clip_score > 0.2' --pool POOL", "has no values in braces to try", "write b32.clip_score > {0.2,0.3}"),
    ("compare --out ROOT/cmp", "Missing argument 'sources'", "winnow compare --help"),
    ("compare nosuch --out ROOT/cmp", "'nosuch'", "or give the path of a .yaml file"),
    ("compare DATA --out ROOT/cmp --vary lr", "--vary 'lr' is not KEY=VALUE", "write --vary train.lr=0.001"),
    ("demo --out LIST", "LIST is a file, and a folder is needed there", "give another folder"),
    ("demo-models --out LIST", "LIST is a file, and a folder is needed there", "give another folder"),
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
