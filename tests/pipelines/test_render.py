"""Tables for people, values for programs."""

import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from curate.catalog import Catalog
from curate.operator import discover
from curate.store import Pool
from pipelines.cli import app
from pipelines.render import (
    MAX_ROWS,
    describe_evaluation,
    describe_operators,
    tabulate_evaluation,
    tabulate_operators,
    tabulate_rows,
    write_csv,
    write_json,
    write_parquet,
)
from tests.pipelines.text import as_text
from tests.pool import make_pool

QUERY = """
SELECT uid, row AS n, row / 8 AS share, CASE WHEN row = 0 THEN 'nan'::DOUBLE END AS odd, [row, 1] AS pair,
    {'a': row} AS inner, '[bold]x' AS markup
FROM samples WHERE shard = 0 ORDER BY row LIMIT 2
"""


def test_rows_as_a_table(tiny_pool: Pool) -> None:
    with Catalog(tiny_pool) as catalog:
        text = as_text(tabulate_rows(catalog.sql(QUERY)))
        assert "0.125" in text
        assert "[bold]x" in text
        assert "the first" not in text
        long = as_text(tabulate_rows(catalog.sql(f"SELECT * FROM range({MAX_ROWS + 1})")))
        assert f"the first {MAX_ROWS} rows" in long
        assert str(MAX_ROWS) not in long.splitlines()[-2]


def test_rows_as_json(tiny_pool: Pool) -> None:
    stream = io.StringIO()
    with Catalog(tiny_pool) as catalog:
        write_json(catalog.sql(QUERY), stream)
        rows = json.loads(stream.getvalue())
        assert [row["n"] for row in rows] == [0, 1]
        assert rows[0]["odd"] is None
        assert rows[1]["pair"] == [1, 1]
        assert rows[1]["inner"] == {"a": 1}
        empty = io.StringIO()
        write_json(catalog.sql("SELECT 1 AS a WHERE false"), empty)
        assert json.loads(empty.getvalue()) == []


def test_rows_as_csv(tiny_pool: Pool) -> None:
    stream = io.StringIO()
    with Catalog(tiny_pool) as catalog:
        write_csv(catalog.sql("SELECT 'a,b' AS text, NULL AS nothing, 2 AS n"), stream)
    assert stream.getvalue() == 'text,nothing,n\n"a,b",,2\n'


def test_rows_as_parquet(tiny_pool: Pool, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "rows.parquet"
    with Catalog(tiny_pool) as catalog:
        assert write_parquet(catalog.sql("SELECT uid, shard FROM samples"), path) == 24
    table = pq.read_table(path)
    assert table.column_names == ["uid", "shard"]
    assert table.num_rows == 24
    assert [entry.name for entry in path.parent.iterdir()] == ["rows.parquet"]


def test_operators_are_listed_with_their_columns() -> None:
    found = discover()
    text = as_text(tabulate_operators(found))
    entries = describe_operators(found)
    assert {entry["name"] for entry in entries} == set(found)
    for name, cls in found.items():
        assert name in text
        assert cls.writes.names[0] in text


def test_evaluation_shows_chance_beside_the_score() -> None:
    text = as_text(tabulate_evaluation({"set": {"recall@1": 0.5, "chance_recall@1": 0.25, "num_images": 1200.0}}))
    lines = [line.split() for line in text.splitlines() if line.strip()]
    assert ["set", "recall@1", "0.5000", "0.2500"] in lines
    assert ["set", "num_images", "1,200"] in lines


@pytest.mark.parametrize("width", [60, 200])
def test_tables_fit_the_terminal(width: int) -> None:
    assert max(map(len, as_text(tabulate_operators(discover()), width).splitlines())) <= width


def test_datacomp_averages_say_what_they_lack() -> None:
    results = {"wds_cifar10_test": {"acc1": 0.5}, "wds_vtab-pets_test": {"acc1": 0.9, "mean_per_class_recall": 0.25}}
    text = as_text(tabulate_evaluation(results))
    assert "Average (incomplete)" in text
    assert "0.3750" in text
    assert "2 of 38" in text
    assert "missing: ImageNet 1k, ImageNet Sketch" in text
    described = describe_evaluation(results)
    assert described["wds_cifar10_test"] == {"acc1": 0.5}
    summary = described["DataComp"]
    assert isinstance(summary, dict)
    assert summary["scores"] == {"CIFAR-10": 0.5, "Oxford-IIIT Pet": 0.25}
    assert len(summary["groups"]["Average"]["missing"]) == 36
    assert "DataComp" not in describe_evaluation({"mine": {"acc1": 0.5}})


def test_the_funnel_is_printed_with_the_mix_as_it_came_out(tmp_path: Path) -> None:
    pool = str(make_pool(tmp_path / "pool", num_shards=1, shard_size=24).root)
    source = "CASE WHEN row % 2 = 0 THEN 'even' ELSE 'odd' END=even:3,odd:1"
    flags = ["select", "--pool", pool, "--name", "mixed", "--mix", source]
    said = CliRunner().invoke(app, flags).stdout
    assert "of the draws" in said
    assert [line.split()[-1] for line in said.splitlines() if line.split()[:1] in (["even"], ["odd"])] == [
        "75.0%",
        "25.0%",
    ]
    report = json.loads(CliRunner().invoke(app, [*flags, "--mix-cut", "--json"]).stdout)
    even, odd = report["mix"]
    assert (even["source"], odd["source"]) == ("even", "odd")
    assert even["num_rows"] == pytest.approx(3 * odd["num_rows"], abs=2)
