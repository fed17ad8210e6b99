"""Names found in SQL, subqueries included, and tables replaced in it."""

import json

import duckdb
import pytest

from curate.expression import Tree, find_references, find_volatile, replace_table


def parse(query: str) -> Tree:
    ((text,),) = duckdb.execute("SELECT json_serialize_sql(?::VARCHAR)", [query]).fetchall()
    tree: Tree = json.loads(text)
    return tree


def unparse(tree: Tree) -> str:
    ((text,),) = duckdb.execute("SELECT json_deserialize_sql(?::JSON)", [json.dumps(tree)]).fetchall()
    return str(text)


def test_names_are_found_at_every_depth() -> None:
    found = find_references(parse("SELECT B32.score FROM Pool WHERE x IN (SELECT lower(y) FROM z) ORDER BY a.b.c"))
    assert found.columns == {("b32", "score"), ("x",), ("y",), ("a", "b", "c")}
    assert found.tables == {"pool", "z"} and "lower" in found.functions
    assert not found.has_window and not found.has_star


def test_windows_and_stars_are_told() -> None:
    assert find_references(parse("SELECT row_number() OVER (ORDER BY x)")).has_window
    assert find_references(parse("SELECT * FROM t")).has_star


@pytest.mark.parametrize(
    ("sql", "name"),
    [
        ("random() < 0.5", "random"),
        ("x > NOW()", "now"),
        ("current_date > d", "current_date"),
        ("uuid() = u", "uuid"),
        ("md5(uid) < '8'", None),
    ],
)
def test_volatile_functions_are_named(sql: str, name: str | None) -> None:
    assert find_volatile(find_references(parse(f"SELECT {sql}"))) == name


def test_a_table_is_replaced_with_its_aliases() -> None:
    join = parse("SELECT * FROM (a JOIN b USING (i))")["statements"][0]["node"]["from_table"]
    query = "WITH q AS (SELECT p.x FROM Pool p) SELECT pool.b.y, q.x, other.pool FROM pool, q, other"
    replaced = unparse(replace_table(parse(query), "pool", join))
    assert " p" not in replaced.replace(" pool", "") and "Pool" not in replaced
    assert replaced.count("a INNER JOIN b USING (i)") == 2
    assert "SELECT b.y, q.x, other.pool" in replaced
