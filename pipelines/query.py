"""A pool, its selections and the runs made of them, as tables: what `winnow sql` asks, and Python too.

    with open_tables("pool", runs=["out"]) as tables:
        tables.sql("SELECT source, avg(clip_score) FROM pool GROUP BY source")           # a DuckDB relation, read when it is asked
        tables.frame("SELECT first_failing_rule, count(*) FROM ledger GROUP BY 1")       # a polars frame

Beside `samples`, `pool` and the labels of `curate.catalog`:

    labels        label, operator, fingerprint, num_shards, columns
    selections    selection, name, fingerprint, num_rows, num_kept, effective_samples, weight, rules, captions
    funnel        selection, position, rule, sql, num_failing, num_first_failing, num_remaining
    ledger        selection, and the columns of its ledger: a row for every row of the pool in every selection
    runs          run, folder, name, model, step, samples_seen, loss, checkpoint, recipe
    metrics       run, step, epoch, samples_seen, loss, ...: a row for every line of metrics.jsonl
    evaluations   run, checkpoint, data, metric, value

The last three need `runs`. A label of one of these names stands before the table.
"""

import contextlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

import pyarrow as pa

from curate.catalog import POOL, SAMPLES, Catalog
from curate.expression import quote_name, quote_text
from curate.store import Pool, Store
from pipelines.evaluation import EVALUATION_FILE
from pipelines.run import RECIPE_FILE
from pipelines.yaml_file import read_tree
from schemas.errors import InputError, StaleDatasetError
from schemas.selection import LEDGER_FILE, LEDGER_SCHEMA, SELECTION_FILE

if TYPE_CHECKING:
    import polars
    from duckdb import DuckDBPyRelation

METRICS_FILE = "metrics.jsonl"  # train.metrics has the name too, and brings torch
_RUN_TABLES = ("runs", "metrics", "evaluations")
_NO_TABLE = re.compile(rf"Table with name \"?({'|'.join(_RUN_TABLES)})\b")
_LABELS = pa.schema([
    ("label", pa.string()),
    ("operator", pa.string()),
    ("fingerprint", pa.string()),
    ("num_shards", pa.int64()),
    ("columns", pa.list_(pa.string())),
])
_SELECTIONS = pa.schema([
    ("selection", pa.string()),
    ("name", pa.string()),
    ("fingerprint", pa.string()),
    ("num_rows", pa.int64()),
    ("num_kept", pa.int64()),
    ("effective_samples", pa.float64()),
    ("weight", pa.string()),
    ("rules", pa.list_(pa.struct([("rule", pa.string()), ("sql", pa.string())]))),
    ("captions", pa.list_(pa.struct([("caption", pa.string()), ("probability", pa.float64())]))),
])
_FUNNEL = pa.schema([
    ("selection", pa.string()),
    ("position", pa.int64()),
    ("rule", pa.string()),
    ("sql", pa.string()),
    ("num_failing", pa.int64()),
    ("num_first_failing", pa.int64()),
    ("num_remaining", pa.int64()),
])
_RUNS = pa.schema([
    ("run", pa.string()),
    ("folder", pa.string()),
    ("name", pa.string()),
    ("model", pa.string()),
    ("step", pa.int64()),
    ("samples_seen", pa.int64()),
    ("loss", pa.float64()),
    ("checkpoint", pa.string()),
    ("recipe", pa.string()),
])
_EVALUATIONS = pa.schema([
    ("run", pa.string()),
    ("checkpoint", pa.string()),
    ("data", pa.string()),
    ("metric", pa.string()),
    ("value", pa.float64()),
])
_COUNTS = ("step", "samples_seen")


def open_tables(pool: str | Pool, runs: Sequence[str] = ()) -> "Tables":
    """Open a pool (a folder or an fsspec URL) and the runs in `runs`: their own folders, folders of them, or the `--out` of `winnow run`."""
    return Tables(pool if isinstance(pool, Pool) else Pool(pool), runs)


class Tables:
    """SELECTs over a pool and runs; a context manager, because it keeps temporary files. Relations end with it, frames do not."""

    def __init__(self, pool: Pool, runs: Sequence[str] = ()) -> None:
        """Open the pool's shards; other tables are read when a query first names them."""
        self._catalog = Catalog(pool)
        self._pool = pool
        self._folders = list(runs)
        self._runs: list[Store] | None = None
        self._made: set[str] = set()
        shadowed = {label.lower() for label in self._catalog.labels}
        makers: dict[str, Callable[[], None]] = {
            "labels": self._add_labels,
            "selections": self._add_selections,
            "funnel": self._add_funnel,
            "ledger": self._add_ledger,
        }
        if runs:
            makers |= {"runs": self._add_runs, "metrics": self._add_metrics, "evaluations": self._add_evaluations}
        self._makers = {name: make for name, make in makers.items() if name not in shadowed}

    def __enter__(self) -> "Tables":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection and remove the temporary files."""
        self._catalog.close()

    @property
    def names(self) -> tuple[str, ...]:
        """Every table that a query may name."""
        return (SAMPLES, POOL, *self._catalog.labels, *self._makers)

    def sql(self, query: str) -> "DuckDBPyRelation":
        """Return the result of one SELECT as a relation, lazily.

        Raises `InputError` with DuckDB's words and the nearest right name. What goes wrong while rows are read is DuckDB's own error:
        read them inside `translate`, or use `frame`.
        """
        for name, make in self._makers.items():
            # Too many tables cost a moment, too few an error: a word of the query is reason enough.
            if name not in self._made and re.search(rf"\b{name}\b", query, re.IGNORECASE):
                make()
                self._made.add(name)
        try:
            return self._catalog.sql(query)
        except InputError as error:
            missing = _NO_TABLE.search(str(error))
            if missing and not self._folders:
                raise InputError(f"{missing[1]} needs the folder of the runs; give --runs DIR") from error
            raise

    def table(self, name: str) -> "DuckDBPyRelation":
        """Return a whole table as a relation."""
        if name.lower() not in {known.lower() for known in self.names}:
            raise InputError(f"no table {name!r}; there are {', '.join(self.names)}")
        return self.sql(f"SELECT * FROM {quote_name(name)}")

    def frame(self, query: str) -> "polars.DataFrame":
        """Return the result of one SELECT as a polars frame, in memory."""
        with self.translate():
            frame: polars.DataFrame = self.sql(query).pl()
        return frame

    def translate(self) -> "contextlib.AbstractContextManager[None]":
        """Turn DuckDB's errors into `InputError`, for reading a relation's rows."""
        return self._catalog.translate()

    def _register(self, name: str, table: pa.Table) -> None:
        self._catalog.connection.register(name, table)

    def _add_labels(self) -> None:
        columns = self._catalog.label_columns
        rows = [
            {
                "label": label,
                "operator": target.operator,
                "fingerprint": target.fingerprint,
                "num_shards": len(
                    self._pool.list_names(self._pool.annotation_folder(target.operator, target.fingerprint), ".parquet")
                ),
                "columns": list(columns.get(label, ())),
            }
            for label, target in self._catalog.labels.items()
        ]
        self._register("labels", pa.Table.from_pylist(rows, _LABELS))

    def _selections(self) -> dict[str, Mapping[str, object]]:
        """Return what every finished selection says of itself, by folder name."""
        return {
            folder.removeprefix("selections/"): _read_json(self._pool, f"{folder}/{SELECTION_FILE}")
            for folder in self._pool.selections()
        }

    def _add_selections(self) -> None:
        rows = [
            {
                **{field: content[field] for field in _SELECTIONS.names if field in content},
                "selection": name,
                "rules": [{"rule": rule, "sql": sql} for rule, sql in content["rules"]],  # type: ignore[attr-defined]
                "captions": [
                    {"caption": caption, "probability": share}
                    for caption, share in content["captions"]  # type: ignore[attr-defined]
                ],
            }
            for name, content in self._selections().items()
        ]
        self._register("selections", pa.Table.from_pylist(rows, _SELECTIONS))

    def _add_funnel(self) -> None:
        rows: list[dict[str, object]] = []
        for name, content in self._selections().items():
            funnel: Sequence[Mapping[str, object]] = content["funnel"]  # type: ignore[assignment]
            rows += [{"selection": name, "position": position, **row} for position, row in enumerate(funnel)]
        self._register("funnel", pa.Table.from_pylist(rows, _FUNNEL))

    def _add_ledger(self) -> None:
        parts = [
            f"SELECT {quote_text(name)} AS selection, * FROM "
            f"read_parquet({quote_text(self._pool.locate(f'selections/{name}/{LEDGER_FILE}'))})"
            for name in self._selections()
        ]
        if parts:
            self._catalog.connection.execute(f"CREATE VIEW ledger AS {' UNION ALL '.join(parts)}")
        else:
            self._register("ledger", pa.schema([("selection", pa.string()), *LEDGER_SCHEMA]).empty_table())

    def _add_runs(self) -> None:
        rows: list[dict[str, object]] = []
        for run in self._find_runs():
            lines = _read_metrics(run)
            last = lines[-1] if lines else {}
            recipe = run.read_bytes(RECIPE_FILE).decode() if run.exists(RECIPE_FILE) else None
            checkpoints = run.list_names("checkpoints")
            rows.append({
                "run": _name(run),
                "folder": run.root,
                "name": _name(run).rpartition("-")[0] or _name(run),
                "model": _find_model(recipe),
                "checkpoint": checkpoints[-1] if checkpoints else None,
                "recipe": recipe,
                **{key: last.get(key) for key in ("step", "samples_seen", "loss")},
            })
        self._register("runs", pa.Table.from_pylist(rows, _RUNS))

    def _add_metrics(self) -> None:
        rows = [{"run": _name(run), **line} for run in self._find_runs() for line in _read_metrics(run)]
        names = dict.fromkeys(["run", "step", "epoch", "samples_seen", "loss", *(key for row in rows for key in row)])
        kinds = {"run": pa.string(), **dict.fromkeys(_COUNTS, pa.int64())}
        schema = pa.schema([(name, kinds.get(name, pa.float64())) for name in names])
        self._register("metrics", pa.Table.from_pylist(rows, schema))

    def _add_evaluations(self) -> None:
        rows = []
        for run in self._find_runs():
            if not run.exists(EVALUATION_FILE):
                continue
            content = _read_json(run, EVALUATION_FILE)
            results: Mapping[str, Mapping[str, float]] = content["results"]  # type: ignore[assignment]
            identity: Mapping[str, str] = content["identity"]  # type: ignore[assignment]
            rows += [
                {
                    "run": _name(run),
                    "checkpoint": identity.get("checkpoint"),
                    "data": data,
                    "metric": metric,
                    "value": value,
                }
                for data, metrics in results.items()
                for metric, value in metrics.items()
            ]
        self._register("evaluations", pa.Table.from_pylist(rows, _EVALUATIONS))

    def _find_runs(self) -> list[Store]:
        if self._runs is None:
            self._runs = [run for folder in self._folders for run in _find_runs(Store(folder))]
        return self._runs


def _find_runs(folder: Store) -> list[Store]:
    """Return the runs that a folder is, or holds, or holds in `runs`."""
    if folder.exists(METRICS_FILE):
        return [folder]
    for below in ("", "runs"):
        names = [f"{below}/{name}".lstrip("/") for name in folder.list_names(below)]
        found = [Store(folder.locate(name)) for name in names if folder.exists(f"{name}/{METRICS_FILE}")]
        if found:
            return found
    raise InputError(
        f"no run in {folder.root}: neither it nor a folder in it or in its runs/ has a {METRICS_FILE}; give the --out of `winnow run`"
    )


def _read_metrics(run: Store) -> list[dict[str, float]]:
    """Return the numbers of every line of a run's metrics; a line cut short by a crash is the last, and is left out."""
    lines = []
    texts = run.read_bytes(METRICS_FILE).decode().splitlines()
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
        except ValueError as error:
            if number == len(texts):
                break
            raise StaleDatasetError(f"{run.locate(METRICS_FILE)}:{number}: not JSON: {error}") from error
        lines.append({
            key: value for key, value in line.items() if isinstance(value, int | float) and not isinstance(value, bool)
        })
    return lines


def _read_json(store: Store, path: str) -> Mapping[str, object]:
    try:
        content = json.loads(store.read_bytes(path))
    except ValueError as error:
        raise StaleDatasetError(f"{store.locate(path)} is not JSON: {error}") from error
    assert isinstance(content, dict)
    return content


def _find_model(recipe: str | None) -> str | None:
    """Return the model that a run's recipe names: the one it started from, or the shape."""
    content = read_tree(recipe, RECIPE_FILE).value if recipe else {}
    # A run of `winnow train` notes the section alone.
    section = content.get("train", content)
    found = (section.get("init") or section.get("model")) if isinstance(section, dict) else None
    return str(found) if found else None


def _name(run: Store) -> str:
    return run.root.rstrip("/").rpartition("/")[2]
