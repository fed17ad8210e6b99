"""What a filter may not be: every way that is known of to do more with SQL than compare columns."""

from collections.abc import Iterator

import duckdb
import pytest

from pipelines.browse.guard import MAX_CHARACTERS, allowed_functions, check_filter
from schemas.errors import InputError

TABLES = ("pool", "samples", "b32")

REFUSED = {
    "a second statement": ("1=1; DROP TABLE x", "not a condition"),
    "a second statement after a comment": ("1=1 /* */ ; ATTACH 'x.db'", "not a condition"),
    "DETACH": ("DETACH x", "not a condition"),
    "COPY": ("COPY pool TO '/tmp/x.csv'", "not a condition"),
    "INSTALL": ("INSTALL httpfs", "not a condition"),
    "PRAGMA": ("PRAGMA database_list", "not a condition"),
    "SET": ("SET memory_limit = '1TB'", "not a condition"),
    "a bracket closed too soon": ("true) FROM pool WHERE (true", "more than one condition"),
    "a second column": ("1=1), (2=2", "more than one condition"),
    "a union": ("1=1) UNION SELECT (2=2", "more than one condition"),
    "reading a file": ("(SELECT count(*) FROM read_csv('/etc/passwd')) > 0", r"not read_csv\(...\)"),
    "reading text": ("EXISTS (FROM read_text('/etc/passwd'))", r"not read_text\(...\)"),
    "reading bytes": ("EXISTS (FROM read_blob('/etc/passwd'))", r"not read_blob\(...\)"),
    "reading Parquet": ("EXISTS (FROM read_parquet('shards/*.parquet'))", r"not read_parquet\(...\)"),
    "a file as a table": ("EXISTS (SELECT * FROM '/etc/passwd')", "may read b32, pool, samples, not '/etc/passwd'"),
    "listing files": ("EXISTS (SELECT * FROM pool, glob('/*'))", r"not glob\(...\)"),
    "SQL in a text": ("EXISTS (FROM query('SELECT 1'))", r"not query\(...\)"),
    "a table's name in a text": ("EXISTS (FROM query_table('pool'))", r"not query_table\(...\)"),
    "SQL as JSON": ("EXISTS (FROM json_execute_serialized_sql('{}'))", "not json_execute_serialized_sql"),
    "settings": ("EXISTS (FROM duckdb_settings())", r"not duckdb_settings\(...\)"),
    "secrets": ("EXISTS (FROM duckdb_secrets())", r"not duckdb_secrets\(...\)"),
    "the catalog": ("EXISTS (FROM information_schema.tables)", "not 'tables'"),
    "another database's table": ("EXISTS (FROM other.main.pool)", "not 'pool'"),
    "SHOW": ("EXISTS (SHOW TABLES)", "own tables only"),
    "PIVOT": ("(PIVOT pool ON uid) = 1", "not a condition"),
    "the environment": ("getenv('HOME') IS NULL", "may not call getenv"),
    "a setting": ("current_setting('memory_limit') = ''", "may not call current_setting"),
    "a variable": ("getvariable('x') = 1", "may not call getvariable"),
    "a sequence": ("nextval('s') > 0", "may not call nextval"),
    "waiting": ("sleep_ms(100000) IS NULL", "may not call sleep_ms"),
    "the log": ("write_log('x') IS NULL", "may not call write_log"),
    "an error of one's own": ("error('x') = 1", "may not call error"),
    "a function by its schema": ("pg_catalog.pg_size_pretty(1) = ''", "may not call pg_size_pretty"),
    "the seed": ("setseed(0.5) IS NULL", "may not call setseed"),
    "chance": ("random() > 0.5", "may not call random"),
    "the time": ("now() > TIMESTAMP '2020-01-01'", "gives another value every time"),
    "a sample of a table": ("EXISTS (FROM pool TABLESAMPLE 10%)", "may not use TABLESAMPLE"),
    "a window": ("row_number() OVER () > 1", "a window function"),
    "a window inside": ("(SELECT max(uid) OVER () FROM pool LIMIT 1) = 'x'", "a window function"),
    "WITH": ("(WITH a AS (SELECT 1 AS x) SELECT x FROM a) = 1", "not 'a'|may not use WITH"),
    "a parameter": ("uid = ?", "may not hold parameters"),
    "a numbered parameter": ("uid = $1", "may not hold parameters"),
    "a column by number": ("#1 = 'x'", "may not hold positional references"),
    "all columns": ("COLUMNS(*) = 1", "more than one condition"),
    "a NUL": ("uid = '\0'", "NUL"),
    "too much": ("1 = 1 OR " * 1000 + "true", f"at most {MAX_CHARACTERS:,}"),
    "too deep": ("(" * 1500 + "1" + ")" * 1500, "not a condition"),
}
TAKEN = [
    "clip_score > 0.3 AND url LIKE '%.jpg' AND NOT a IS NULL",
    "width BETWEEN 1 AND 2 AND status IN ('success', 'x')",
    "CASE WHEN a THEN b ELSE c END",
    "CAST(width AS INTEGER) = 3 OR try_cast(url AS DATE) > DATE '2020-01-01'",
    "b32.clip_score > (SELECT avg(clip_score) FROM b32 WHERE clip_score > 0)",
    "uid IN (SELECT uid FROM pool WHERE width > 3)",
    "list_filter(rewrite, lambda text: length(text) > 1) <> [] AND 'a' = ANY(rewrite)",
    "manual.decision IS DISTINCT FROM 'drop'",
    "regexp_matches(url, '^https?://') -- a remark",
    "md5(uid) < '8' AND exif::JSON->>'$.Make' = 'x'",
]


@pytest.fixture(scope="module")
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as opened:
        yield opened


def check(connection: duckdb.DuckDBPyConnection, text: str) -> str:
    return check_filter(connection, text, tables=TABLES, functions=allowed_functions(connection))


@pytest.mark.parametrize("name", REFUSED)
def test_anything_but_a_condition_is_refused(name: str, connection: duckdb.DuckDBPyConnection) -> None:
    text, message = REFUSED[name]
    with pytest.raises(InputError, match=message):
        check(connection, text)


@pytest.mark.parametrize("text", TAKEN)
def test_conditions_are_taken(text: str, connection: duckdb.DuckDBPyConnection) -> None:
    checked = check(connection, text)
    # What was checked is what will run: the text of the tree, which is checked to the same text again.
    assert check(connection, checked) == f"({checked})" or check(connection, checked) == checked


def test_every_function_that_acts_is_kept_out(connection: duckdb.DuckDBPyConnection) -> None:
    allowed = allowed_functions(connection)
    assert {"length", "regexp_matches", "avg", "list_contains"} <= allowed
    volatile = connection.execute(
        "SELECT DISTINCT function_name FROM duckdb_functions() WHERE stability = 'VOLATILE'"
    ).fetchall()
    assert volatile
    assert allowed.isdisjoint(name for (name,) in volatile)
    assert not {name for name in allowed if name.startswith(("read_", "pg_", "duckdb_", "pragma_", "write_"))}
