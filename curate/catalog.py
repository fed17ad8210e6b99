"""SQL over a pool, and the only DuckDB connection in Winnow.

Tables: `samples` (every row ever fetched), one per label, and `pool`, which is `samples` joined with every label, so that
`b32.clip_score > 0.3 AND caption_num_words > 2` reads as it is meant: `label.column`, or the bare name where only one table has it.

Rows are joined by position, which costs no hash table. That is right because each annotation file states the digest of its uids: where it
equals the shard's, the file is read in place; where it does not, its rows are first aligned by uid in a temporary file; where there is no
file, nulls stand in for it. Only columns that a query uses are read.
"""

import difflib
import json
import logging
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from curate.alignment import Aligner, LabelFiles, annotate_command, read_footers, shard_header
from curate.expression import References, Tree, find_references, quote_name, quote_text, replace_table
from curate.store import Pool
from schemas.annotation import UID_COLUMN
from schemas.errors import InputError, MissingColumnsError
from schemas.sample import SQL_NAMES, shard_name

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection, DuckDBPyRelation

logger = logging.getLogger(__name__)

SAMPLES = "samples"
POOL = "pool"
# Views that leave the uid out, so that joined tables do not have it several times.
_RANGE_ROWS = 400_000
_JOINED_SCHEMA = "joined"
_ARROW_SCHEMA_KEY = b"ARROW:schema"


class Catalog:
    """A pool as tables; a context manager, because it keeps temporary files.

    with Catalog(Pool("pool")) as catalog:
        print(catalog.sql("SELECT avg(clip_score) FROM pool WHERE language.language = 'en'"))
    """

    def __init__(
        self, pool: Pool, *, memory_limit: str | None = None, threads: int | None = None, sandboxed: bool = False
    ) -> None:
        """Open the pool's shards; `memory_limit` is DuckDB's ("4GB"), `sandboxed` keeps SQL from reading any other file."""
        self.pool = pool
        self.folder = tempfile.TemporaryDirectory(prefix="winnow-catalog-")
        self._memory_limit = memory_limit
        self._threads = threads
        self._sandboxed = sandboxed
        self._files: dict[str, LabelFiles] = {}
        self._footers = read_footers(pool, [pool.shard_parquet(shard) for shard in pool.require_shards()])
        self.shards = [shard_header(pool, *item) for item in zip(pool.shards(), self._footers, strict=True)]
        self._aligner = Aligner(pool, self.shards, self.folder.name)
        self.labels = pool.labels()
        self._check_labels()

    def __enter__(self) -> "Catalog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection and remove the temporary files."""
        if "connection" in vars(self):
            self.connection.close()
        self.folder.cleanup()

    @cached_property
    def connection(self) -> "DuckDBPyConnection":
        """The connection, with the view `samples`."""
        import duckdb

        connection = duckdb.connect()
        settings: dict[str, object] = {"temp_directory": f"{self.folder.name}/spill", "enable_progress_bar": False}
        # No extension is fetched from the network behind the user's back.
        settings |= {"autoinstall_known_extensions": False, "autoload_known_extensions": False}
        # DuckDB 2.0 ends with an internal error where it would fetch file_index or file_row_number after an ORDER BY ... LIMIT.
        settings["disabled_optimizers"] = "late_materialization"
        if self._memory_limit:
            settings["memory_limit"] = self._memory_limit
        if self._threads:
            settings["threads"] = self._threads
        for name, value in settings.items():
            connection.execute(f"SET {name} = {_literal(value)}")
        if not self.pool.is_local:
            connection.register_filesystem(self.pool.filesystem)
        if self._sandboxed:
            allowed = [f"{self.pool.root}/", f"{self.folder.name}/"]
            connection.execute(f"SET allowed_directories = [{', '.join(map(_literal, allowed))}]")
            connection.execute("SET enable_external_access = false")
        connection.execute(f"CREATE SCHEMA {_JOINED_SCHEMA}")
        connection.execute(f"CREATE VIEW {SAMPLES} AS {self._samples_query(0, len(self.shards), connection)}")
        return connection

    @cached_property
    def sample_columns(self) -> tuple[str, ...]:
        """The columns of `samples`: shard, row, then the shards' own, `caption` under its SQL name."""
        return tuple(self.connection.table(SAMPLES).columns)

    @cached_property
    def label_columns(self) -> Mapping[str, tuple[str, ...]]:
        """The columns of every label that has at least one file, without the uid."""
        found = {}
        for label, target in self.labels.items():
            schema = self._aligner.schema(target)
            if schema is not None:
                found[label] = tuple(name for name in schema.names if name != UID_COLUMN)
        return found

    def sql(self, query: str) -> "DuckDBPyRelation":
        """Return the result of one SELECT as a relation, lazily; columns of incomplete annotations are null where they are missing."""
        tree = self._parse(query)
        if tree is None:
            self._create_views(self.labels)
            self._create_flat_pool()
            return self._bind(query)
        references = find_references(tree)
        used = self.used_labels([references])
        self._create_views({*used, *(label for label in self.labels if label.lower() in references.tables)})
        if POOL in references.tables:
            query = self._expand_pool(tree, used)
        return self._bind(query)

    def pool_relation(self, reads: Mapping[str, str]) -> "DuckDBPyRelation":
        """Return shard, row, uid and `reads` (new name -> sample column or "label.column") for every row, in pool order."""
        sources = {name: self.resolve(source) for name, source in reads.items()}
        labels = [label for label in self.labels if any(source[0] == label for source in sources.values())]
        self.require_complete(labels)
        columns = [f"{SAMPLES}.{name}" for name in ("shard", "row", UID_COLUMN)]
        columns += [
            f"{quote_name(table)}.{quote_name(column)} AS {quote_name(name)}"
            for name, (table, column) in sources.items()
        ]
        return self._bind(f"SELECT {', '.join(columns)} FROM {self.source(labels)}")

    def source(self, labels: Iterable[str], first: int = 0, last: int | None = None) -> str:
        """Return the FROM clause of `samples` joined with `labels`, over the shards at positions `first` to `last` (exclusive)."""
        end = len(self.shards) if last is None else last
        parts = [f"({self._samples_query(first, end, self.connection)}) AS {SAMPLES}"]
        for label in labels:
            paths = self.files(label).paths[first:end]
            parts.append(f"(SELECT * EXCLUDE ({UID_COLUMN}) FROM {_read_parquet(paths)}) AS {quote_name(label)}")
        return " POSITIONAL JOIN ".join(parts)

    def used_labels(self, references: Iterable[References]) -> list[str]:
        """Return the labels that the references name, or own a column that they name bare, in the pool's order."""
        used = set()
        own = {name.lower() for name in self.sample_columns}
        tables = {SAMPLES, *(label.lower() for label in self.labels)}
        for each in references:
            everything = each.has_star and POOL in each.tables
            named = {part for names in each.columns for part in names[:-1]}
            # Under an alias of `pool` or of a subquery the owner is not told by the name.
            bare = {part for names in each.columns if len(names) == 1 or names[0] not in tables for part in names} - own
            for label, columns in self.label_columns.items():
                if everything or label.lower() in named or not bare.isdisjoint(name.lower() for name in columns):
                    used.add(label)
            used |= {label for label in self.labels if label.lower() in named}
        return [label for label in self.labels if label in used]

    def require_complete(self, labels: Iterable[str]) -> None:
        """Raise `MissingColumnsError` unless every shard has a current annotation of every label."""
        incomplete = [label for label in labels if self.files(label).missing]
        if not incomplete:
            return
        lines = []
        for label in incomplete:
            missing = self.files(label).missing
            names = ", ".join(shard_name(shard) for shard in missing[:5]) + (", ..." if len(missing) > 5 else "")
            lines.append(
                f"{label} has no current annotation of {len(missing)} of {len(self.shards)} shards ({names}); run\n"
                f"  {self.annotate_command(label)}"
            )
        raise MissingColumnsError("\n".join(lines))

    def annotate_command(self, label: str) -> str:
        """Return the command that completes a label."""
        target = self.labels[label]
        return annotate_command(self.pool, label, target, self.files(label).parameters)

    def files(self, label: str) -> LabelFiles:
        """Return a label's files, one per shard, every one of them as long as its shard and in its order."""
        if label not in self._files:
            self._files[label] = self._aligner.align(label, self.labels[label])
        return self._files[label]

    def parse(self, expression: str) -> References:
        """Return what a scalar SQL expression reads; a syntax error raises `InputError` with DuckDB's words."""
        tree = self._parse(f"SELECT ({expression}\n)")
        if tree is None or len(tree["statements"]) != 1 or len(tree["statements"][0]["node"]["select_list"]) != 1:
            raise InputError(f"{expression!r} is not one SQL expression")
        return find_references(tree)

    def resolve(self, source: str) -> tuple[str, str]:
        """Return (table, column) of "label.column" or of a bare name that one table has."""
        label, dot, column = source.partition(".")
        if not dot:
            owners = [label for label, columns in self.label_columns.items() if source in columns]
            if source in self.sample_columns:
                return SAMPLES, source
            if len(owners) == 1:
                return owners[0], source
        elif label == SAMPLES and column in self.sample_columns:
            return SAMPLES, column
        elif column in self.label_columns.get(label, ()):
            return label, column
        raise MissingColumnsError(f"no column {source!r} in this pool{self.suggest(source)}")

    def column_type(self, table: str, column: str) -> str:
        """Return DuckDB's name of a column's type: "VARCHAR", "VARCHAR[]", "FLOAT"."""
        with self.translate():
            source = self.source([] if table == SAMPLES else [table], 0, 1)
            relation = self.connection.sql(f"SELECT {quote_name(table)}.{quote_name(column)} FROM {source}")
        return str(relation.types[0])

    def expand(self, expression: str) -> str:
        """Return an expression with `pool` inside its subqueries spelled out as the join it means."""
        tree = self._parse(f"SELECT ({expression}\n)")
        assert tree is not None, "the expression has been parsed before"
        references = find_references(tree)
        self._create_views([label for label in self.labels if label.lower() in references.tables])
        if POOL not in references.tables:
            return expression
        used = self.used_labels([references])
        self._create_views(used)
        return self._expand_pool(tree, used).removeprefix("SELECT ")

    def tabulate(self, table: str, columns: Sequence[str], labels: Sequence[str]) -> None:
        """Fill a temporary table with SQL `columns` of every row, in pool order."""
        query = self.over_ranges(columns, labels)
        with self.translate():
            self.connection.execute(f"CREATE OR REPLACE TEMP TABLE {quote_name(table)} AS {query}")

    def over_ranges(self, columns: Sequence[str], labels: Sequence[str], where: str = "true") -> str:
        """Return the query of SQL `columns` of the rows for which `where` holds; ranges of shards are evaluated side by side."""
        parts = (
            f"SELECT {', '.join(columns)} FROM {self.source(labels, first, last)} WHERE {where}"
            for first, last in self._ranges()
        )
        return " UNION ALL ".join(parts)

    @contextmanager
    def translate(self, place: str = "") -> Iterator[None]:
        """Turn DuckDB's errors into `InputError`, its message led by `place`."""
        import duckdb

        try:
            yield
        except duckdb.Error as error:
            raise InputError(f"{place}: {self.explain(error)}" if place else self.explain(error)) from error

    def explain(self, error: Exception) -> str:
        """Return DuckDB's message in a line, with the nearest right name where one was wrong."""
        text = str(error).split("\n\nLINE ")[0].strip()
        lines = [line for line in text.splitlines() if not line.startswith(("Candidate", "LINE "))]
        text = re.sub(r"^\w+ Error: ", "", " ".join(line.strip() for line in lines))
        text = re.split(r"\s*Candidate (?:bindings|tables|functions)|\s*Did you mean", text)[0]
        text = text.replace(" not found in FROM clause!", " is not there").rstrip("!.; ")
        member = re.search(r'(?:Values list|Table) "(\w+)" does not have a column named "(\w+)"', text)
        if member:
            return f"{member[1]} has no column {member[2]!r}{self.suggest(f'{member[1]}.{member[2]}')}"
        wrong = re.search(r"(?:Referenced (?:column|table)|Table with name) \"?([\w.]+)", text)
        hint = self.suggest(wrong[1]) if wrong else ""
        ambiguous = re.search(r"Ambiguous reference to (?:column|table) name:? \"(\w+)\"", text)
        if ambiguous:
            owners = [SAMPLES] if ambiguous[1] in self.sample_columns else []
            owners += [label for label, columns in self.label_columns.items() if ambiguous[1] in columns]
            text = f"{ambiguous[1]!r} is a column of several tables"
            hint = f"; say {' or '.join(f'{owner}.{ambiguous[1]}' for owner in owners)}"
        return f"{text}{hint}"

    def suggest(self, name: str) -> str:
        """Return "; did you mean ...?" with the nearest column or label, or where to see them all."""
        qualified = {f"{label}.{column}" for label, columns in self.label_columns.items() for column in columns}
        bare = {column for columns in self.label_columns.values() for column in columns}
        known = sorted({*self.sample_columns, *self.labels, *qualified, *bare, SAMPLES, POOL})
        nearest = difflib.get_close_matches(name, known, n=2, cutoff=0.6)
        if nearest:
            return f"; did you mean {' or '.join(nearest)}?"
        labels = ", ".join(self.labels) or "none: run `winnow annotate` first"
        return (
            f"; labels of this pool: {labels}; `winnow sql --pool {self.pool.root} 'DESCRIBE pool'` lists every column"
        )

    def _bind(self, query: str) -> "DuckDBPyRelation":
        with self.translate():
            relation = self.connection.sql(query)
        if relation is None:
            raise InputError(f"{query!r} returns no rows; give one SELECT statement")
        return relation

    def _ranges(self) -> Iterator[tuple[int, int]]:
        """Yield ranges of shards of about `_RANGE_ROWS` rows: DuckDB runs the parts of a union on all its threads, a positional join on one."""
        first = rows = 0
        for position, header in enumerate(self.shards):
            rows += header.num_rows
            if rows >= _RANGE_ROWS:
                yield first, position + 1
                first, rows = position + 1, 0
        if first < len(self.shards):
            yield first, len(self.shards)

    def _parse(self, query: str) -> Tree | None:
        """Return the syntax tree of a SELECT, or None for another kind of statement."""
        ((text,),) = self.connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [query]).fetchall()
        tree: Tree = json.loads(text)
        if not tree["error"]:
            return tree
        if tree["error_type"] == "parser":
            raise InputError(f"{query!r}: {tree['error_message']}")
        return None

    def _expand_pool(self, tree: Tree, labels: Sequence[str]) -> str:
        joined = "".join(
            f" POSITIONAL JOIN {_JOINED_SCHEMA}.{quote_name(label)} AS {quote_name(label)}" for label in labels
        )
        table = self._parse(f"SELECT * FROM ({SAMPLES}{joined})")
        assert table is not None
        expanded = replace_table(tree, POOL, table["statements"][0]["node"]["from_table"])
        ((query,),) = self.connection.execute("SELECT json_deserialize_sql(?::JSON)", [json.dumps(expanded)]).fetchall()
        return str(query)

    def _create_views(self, labels: Iterable[str]) -> None:
        for label in labels:
            files = _read_parquet(self.files(label).paths)
            self.connection.execute(f"CREATE OR REPLACE VIEW {quote_name(label)} AS SELECT * FROM {files}")
            self.connection.execute(
                f"CREATE OR REPLACE VIEW {_JOINED_SCHEMA}.{quote_name(label)} AS SELECT * EXCLUDE ({UID_COLUMN}) FROM {files}"
            )

    def _create_flat_pool(self) -> None:
        """Make `pool` a plain view for statements that are not a SELECT: names that several tables have become "label.column"."""
        names = [name.lower() for columns in self.label_columns.values() for name in columns]
        names += [name.lower() for name in self.sample_columns]
        columns = [f"{SAMPLES}.*"]
        for label, own in self.label_columns.items():
            columns += [
                f"{quote_name(label)}.{quote_name(name)} AS {quote_name(name if names.count(name.lower()) == 1 else f'{label}.{name}')}"
                for name in own
            ]
        self.connection.execute(
            f"CREATE OR REPLACE VIEW {POOL} AS SELECT {', '.join(columns)} FROM {self.source(self.label_columns)}"
        )

    def _samples_query(self, first: int, last: int, connection: "DuckDBPyConnection") -> str:
        shards = [header.shard for header in self.shards[first:last]]
        paths = [self.pool.locate(self.pool.shard_parquet(shard)) for shard in shards]
        template = self._shard_template
        files = _read_parquet([template, *paths] if template else paths, by_name=template is not None)
        own = connection.sql(f"SELECT * FROM {_read_parquet([template or paths[0]])}").columns
        skipped = 1 if template else 0
        if shards == list(range(shards[0], shards[0] + len(shards))):
            shard = f"file_index::INTEGER + {shards[0] - skipped}"
        else:
            shard = f"{[-1] * skipped + shards}[file_index::BIGINT + 1]"
        taken = {"shard", "row"}
        columns = []
        for name in own:
            alias = SQL_NAMES.get(name, name)
            while alias.lower() in taken or (alias in SQL_NAMES.values() and name not in SQL_NAMES):
                alias += "_"
            taken.add(alias.lower())
            columns.append(f"{quote_name(name)} AS {quote_name(alias)}")
        return f"SELECT ({shard})::INTEGER AS shard, file_row_number::INTEGER AS row, {', '.join(columns)} FROM {files}"

    @cached_property
    def _shard_template(self) -> str | None:
        """An empty file with the columns of every shard, which leads the list where shards differ; None where they do not."""
        by_schema = {
            footer.metadata.get(_ARROW_SCHEMA_KEY): header
            for footer, header in zip(self._footers, self.shards, strict=True)
        }
        if len(by_schema) == 1:
            return None
        schemas = []
        for header in by_schema.values():
            with self.pool.open(self.pool.shard_parquet(header.shard)) as file:
                schemas.append(pq.read_schema(file).remove_metadata())
        try:
            merged = pa.unify_schemas(schemas, promote_options="permissive")
        except pa.ArrowTypeError as error:
            shards = ", ".join(shard_name(header.shard) for header in by_schema.values())
            raise InputError(
                f"shards {shards} of {self.pool.root} hold a column with types that do not go together ({error}); "
                "import or download one of them again with the column left out or renamed"
            ) from error
        path = f"{self.folder.name}/shards.parquet"
        pq.write_table(merged.empty_table(), path)
        return path

    def _check_labels(self) -> None:
        seen: dict[str, str] = {SAMPLES: SAMPLES, POOL: POOL}
        for label in self.labels:
            if label.lower() in seen:
                raise InputError(
                    f"label {label!r} and {seen[label.lower()]!r} are one name in SQL; annotate again with another label"
                )
            seen[label.lower()] = label


def _read_parquet(paths: Sequence[str], *, by_name: bool = False) -> str:
    listed = ", ".join(_literal(path) for path in paths)
    return f"read_parquet([{listed}], union_by_name = {str(by_name).lower()})"


def _literal(value: object) -> str:
    if isinstance(value, bool | int):
        return str(value).lower()
    return quote_text(value)
