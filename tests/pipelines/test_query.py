"""SQL over everything: a pool, what was selected from it and the runs made of that, after a real run of a recipe."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import polars
import pytest
from typer.testing import CliRunner

from curate.executor import Executor
from curate.select import select
from curate.selection import Selection
from curate.store import Pool
from pipelines.cli import app
from pipelines.query import Tables, open_tables
from pipelines.recipe import EvaluateSection, load_recipe
from pipelines.run import RunReport, run
from schemas.errors import InputError, StaleDatasetError
from tests.model import make_checkpoint
from tests.pool import FAILED_ROWS, make_pool
from train.config import TrainConfig

DOCUMENT = Path(__file__).parents[2] / "docs" / "sql.md"
BLOCK = re.compile(r"^```sql\n(.*?)^```\n\n\| (.*?) \|$", re.MULTILINE | re.DOTALL)
NUM_ROWS = 24
TRAIN = TrainConfig(
    model="vit-tiny",
    model_options={"image_size": 32, "patch_size": 16, "image_layers": 1, "text_layers": 1, "vocab_size": 515},
    samples_seen=32,
    batch_size=8,
    num_workers=1,
    num_threads=1,
)
RECIPE = """\
annotate: [caption_stats, language, {clip_score: {model: MODEL, label: trusted}}]
select: {rules: {words: caption_num_words >= 3, readable: trusted.clip_score IS NOT NULL}}
build: {}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, ray_session: Executor) -> tuple[Path, RunReport]:
    """A pool with two selections, and a run that was trained and evaluated."""
    root = tmp_path_factory.mktemp("query")
    pool = make_pool(root / "pool")
    model = make_checkpoint(root / "model")
    (root / "mine.yaml").write_text(RECIPE.replace("MODEL", str(model)))
    recipe = load_recipe(root / "mine.yaml")
    recipe = recipe.model_copy(update={"train": TRAIN, "evaluate": EvaluateSection(data=("dataset",))})
    report = run(recipe, pool.root, str(root / "out"), executor=ray_session)
    select(pool, Selection(name="all", weight="2.0"))
    return root, report


@pytest.fixture
def tables(made: tuple[Path, RunReport]) -> Iterator[Tables]:
    root, _ = made
    with open_tables(str(root / "pool"), runs=[str(root / "out")]) as opened:
        yield opened


def test_the_tables_of_a_pool(tables: Tables, made: tuple[Path, RunReport]) -> None:
    _, report = made
    assert tables.names[:2] == ("samples", "pool")
    assert tables.names[-7:] == ("labels", "selections", "funnel", "ledger", "runs", "metrics", "evaluations")
    labels = {row["label"]: row for row in tables.frame("SELECT * FROM labels").to_dicts()}
    assert set(labels) >= {"caption_stats", "language", "trusted"}
    assert labels["trusted"]["operator"] == "clip_score"
    assert labels["trusted"]["num_shards"] == 2
    assert "clip_score" in labels["trusted"]["columns"]
    selections = {row["name"]: row for row in tables.frame("SELECT * FROM selections").to_dicts()}
    assert set(selections) == {"mine", "all"}
    assert selections["mine"]["selection"] == Path(report.selection).name
    assert selections["mine"]["rules"][0] == {"rule": "words", "sql": "caption_num_words >= 3"}
    assert selections["all"]["weight"] == "2.0"
    assert selections["all"]["captions"] == [{"caption": "alt_text", "probability": 1.0}]
    funnel = tables.frame("SELECT rule FROM funnel WHERE selection LIKE 'mine-%' ORDER BY position")
    assert funnel["rule"].to_list() == ["downloaded", "words", "readable"]


def test_the_ledger_is_what_the_selections_wrote(tables: Tables) -> None:
    counts = tables.frame(
        "SELECT selection, count(*) AS n, count_if(kept) AS kept, sum(weight) AS w FROM ledger GROUP BY 1"
    )
    selections = tables.frame("SELECT selection, num_rows AS n, num_kept AS kept FROM selections")
    assert counts.select("selection", "n", "kept").sort("selection").equals(selections.sort("selection"))
    everything = counts.filter(polars.col("selection").str.starts_with("all-")).to_dicts()[0]
    assert everything["kept"] == NUM_ROWS - 2 * len(FAILED_ROWS)
    assert everything["w"] == 2 * everything["kept"]


def test_runs_metrics_and_evaluations(tables: Tables, made: tuple[Path, RunReport]) -> None:
    _, report = made
    (row,) = tables.frame("SELECT * FROM runs").to_dicts()
    assert row["folder"] == report.run
    assert (row["run"], row["name"], row["model"]) == (Path(report.run).name, "mine", "vit-tiny")
    assert (row["step"], row["samples_seen"], row["checkpoint"]) == (4, 32, "step_00000004")
    assert "vit-tiny" in row["recipe"]
    lines = [json.loads(line) for line in (Path(report.run) / "metrics.jsonl").read_text().splitlines()]
    metrics = tables.frame("SELECT * FROM metrics ORDER BY step").to_dicts()
    assert [{key: line[key] for key in lines[0]} for line in metrics] == lines
    assert row["loss"] == lines[-1]["loss"]
    found = tables.frame("SELECT data, metric, value FROM evaluations").rows()
    assert {data: {m: v for d, m, v in found if d == data} for data, _, _ in found} == report.evaluation


def test_relations_are_duckdbs_and_join_everything(tables: Tables) -> None:
    relation = tables.sql(
        "SELECT uid, p.caption_num_words, trusted.clip_score FROM ledger JOIN pool AS p USING (uid) WHERE kept"
    )
    assert relation.columns == ["uid", "caption_num_words", "clip_score"]
    shorter = relation.filter("caption_num_words >= 3").aggregate("count(DISTINCT uid)").fetchall()
    assert 0 < shorter[0][0] < NUM_ROWS
    assert tables.table("samples").count("*").fetchall() == [(NUM_ROWS,)]
    assert isinstance(tables.frame("SELECT * FROM trusted"), polars.DataFrame)


def test_ten_queries_of_the_document_give_what_it_shows(tables: Tables) -> None:
    found = BLOCK.findall(DOCUMENT.read_text(encoding="utf-8"))
    assert len(found) == 10
    assert DOCUMENT.read_text(encoding="utf-8").count("```sql") == 10
    for query, head in found:
        frame = tables.frame(query)
        assert frame.columns == head.split(" | "), query
        assert len(frame), query


def test_the_python_of_the_document_runs(made: tuple[Path, RunReport], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made[0])
    (code,) = re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    scope: dict[str, object] = {}
    exec(code, scope)
    assert isinstance(scope["frame"], polars.DataFrame)
    assert scope["best"]


def test_a_pool_without_selections_has_empty_tables(tiny_pool: Pool) -> None:
    with open_tables(tiny_pool) as tables:
        for name in ("labels", "selections", "funnel", "ledger"):
            assert tables.table(name).fetchall() == []
        assert tables.table("ledger").columns[:3] == ["selection", "uid", "url"]


def test_mistakes(tiny_pool: Pool, tmp_path: Path) -> None:
    with open_tables(tiny_pool) as tables:
        with pytest.raises(InputError, match="metrics needs the folder of the runs; give --runs DIR"):
            tables.sql("SELECT * FROM metrics")
        with pytest.raises(
            InputError, match=r"no table 'ledgr'; there are samples, pool, labels, selections, funnel, ledger"
        ):
            tables.table("ledgr")
        with pytest.raises(InputError, match=r"Could not convert string 'https:"):
            tables.frame("SELECT url::INTEGER FROM samples")
    (tmp_path / "empty").mkdir()
    with (
        open_tables(tiny_pool, runs=[str(tmp_path / "empty")]) as tables,
        pytest.raises(InputError, match=r"no run in .*/empty"),
    ):
        tables.sql("SELECT * FROM runs")


def test_metrics_that_a_crash_cut_short(tiny_pool: Pool, tmp_path: Path) -> None:
    """The last line may be half there; a line that is not JSON anywhere else is a fault."""
    folder = tmp_path / "runs" / "x-1"
    folder.mkdir(parents=True)
    file = folder / "metrics.jsonl"
    file.write_text('{"step": 1, "loss": 2.0, "note": "text"}\n{"step": 2, "lo')
    with open_tables(tiny_pool, runs=[str(tmp_path)]) as tables:
        assert tables.frame("SELECT run, step, loss FROM metrics").rows() == [("x-1", 1, 2.0)]
        assert tables.frame("SELECT name, step, model FROM runs").rows() == [("x", 1, None)]
        assert tables.frame("SELECT * FROM evaluations").rows() == []
    file.write_text('{"step": 1, "lo\n{"step": 2, "loss": 2.0}\n')
    with (
        open_tables(tiny_pool, runs=[str(folder)]) as tables,
        pytest.raises(StaleDatasetError, match=r"metrics\.jsonl:1: not JSON"),
    ):
        tables.sql("SELECT * FROM metrics")


def test_a_label_stands_before_a_table_of_its_name(tiny_pool: Pool, ray_session: Executor) -> None:
    from curate.annotate import annotate, parse_operator

    annotate(tiny_pool, [parse_operator("caption_stats:label=ledger")], executor=ray_session)
    with open_tables(tiny_pool) as tables:
        assert "caption_num_words" in tables.table("ledger").columns
        assert tables.names.count("ledger") == 1


def test_the_command(made: tuple[Path, RunReport]) -> None:
    root, _ = made
    arguments = ["sql", "--pool", str(root / "pool"), "--json"]
    query = "SELECT name, metric, value FROM runs JOIN evaluations USING (run) WHERE metric = 'num_images'"
    result = CliRunner().invoke(app, [*arguments, "--runs", str(root / "out"), query])
    assert result.exit_code == 0, result.stderr
    assert [row["name"] for row in json.loads(result.stdout)] == ["mine"]
    lacking = CliRunner().invoke(app, [*arguments, query])
    assert (lacking.exit_code, lacking.stderr) == (2, "error: runs needs the folder of the runs; give --runs DIR\n")
