"""What a filter from the browser may be: one expression over the pool's tables that has no effect and no view of anything else.

The syntax tree is checked against what is allowed, never the text against what is not. What passes runs in a process of its own, see
`pipelines.browse.evaluator`.
"""

import json
import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from curate.expression import find_references, find_volatile, walk
from schemas.errors import InputError

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

MAX_CHARACTERS = 4_000
MAX_NODES = 5_000
# A table in FROM is one of these; functions that make tables (read_csv, glob, query) are of another type.
_TABLE_TYPES = frozenset({"BASE_TABLE", "SUBQUERY", "JOIN", "EMPTY", "EXPRESSION_LIST"})
_CLASSES = frozenset({
    "BETWEEN",
    "CASE",
    "CAST",
    "COLLATE",
    "COLUMN_REF",
    "COMPARISON",
    "CONJUNCTION",
    "CONSTANT",
    "FUNCTION",
    "LAMBDA",
    "LAMBDA_REF",
    "OPERATOR",
    "STAR",
    "SUBQUERY",
    "TYPE",
})
# `x = ANY(list)` is written with it in the tree.
_UNNEST = "unnest"
# Functions that speak of the server instead of the rows, or that keep something from one row to the next.
_FOREIGN = re.compile(
    r"^(_|pg_|has_|current_|col_description|format_pg_type|map_to_pg|shobj_description|obj_description|in_search_path|txid|user$|"
    r"session_user$|version$|getenv|getvariable|setseed|set_bit_config|write_|parse_duckdb|json_(de)?serialize|json_execute|json_copy|inet_)"
)
_HOW = "write one condition over the columns, such as clip_score > 0.25 AND caption_num_words > 2"


def allowed_functions(connection: "DuckDBPyConnection") -> frozenset[str]:
    """Return the functions a filter may call: those whose value follows from their arguments."""
    rows = connection.execute(
        "SELECT DISTINCT lower(function_name) FROM duckdb_functions() WHERE function_type IN ('scalar', 'aggregate', 'macro') "
        "AND coalesce(stability, 'CONSISTENT') <> 'VOLATILE' AND coalesce(internal, false)"
    ).fetchall()
    return frozenset(name for (name,) in rows if not _FOREIGN.match(name)) | {_UNNEST}


def check_filter(
    connection: "DuckDBPyConnection", text: str, *, tables: Collection[str], functions: Collection[str]
) -> str:
    """Return the filter as the SQL of its checked syntax tree; raises InputError, with the remedy, where it is anything but a condition."""
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"the filter has {len(text):,} characters; at most {MAX_CHARACTERS:,} are read")
    if "\0" in text:
        raise InputError("the filter holds a NUL character; remove it")
    ((parsed,),) = connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [f"SELECT ({text}\n)"]).fetchall()
    tree = json.loads(parsed)
    if tree["error"]:
        raise InputError(f"this is not a condition: {tree['error_message']}; {_HOW}")
    node = _only_node(tree)
    _check_nodes(node, {table.lower() for table in tables}, functions)
    references = find_references(node)
    if references.has_window:
        raise InputError("a window function needs rows in an order; compare with a subquery over pool instead")
    if volatile := find_volatile(references):
        raise InputError(f"{volatile} gives another value every time; sort at random instead")
    ((query,),) = connection.execute("SELECT json_deserialize_sql(?::JSON)", [json.dumps(tree)]).fetchall()
    return str(query).removeprefix("SELECT ").rstrip().removesuffix(";")


def _only_node(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the query around the filter, which must be nothing but `SELECT <expression>`."""
    statements = tree["statements"]
    node: Mapping[str, Any] = statements[0]["node"] if len(statements) == 1 else {}
    is_plain = (
        node.get("type") == "SELECT_NODE"
        and len(node["select_list"]) == 1
        and node["from_table"]["type"] == "EMPTY"
        and not node.get("modifiers")
        and not node["cte_map"]["map"]
        and not any(node.get(clause) for clause in ("where_clause", "having", "qualify", "sample", "group_expressions"))
    )
    if not is_plain:
        raise InputError(f"the filter is more than one condition; {_HOW}")
    return node


def _check_nodes(root: Mapping[str, Any], tables: set[str], functions: Collection[str]) -> None:
    for number, node in enumerate(walk(root)):
        if number > MAX_NODES:
            raise InputError("the filter has too many parts; make it shorter")
        kind, type_ = node.get("class"), str(node.get("type", ""))
        if "table_name" in node and type_ == "BASE_TABLE":
            _check_table(node, tables)
        elif kind is None and "sample" in node and type_ not in _TABLE_TYPES and not type_.endswith("_NODE"):
            raise InputError(f"a filter reads the pool's own tables only, not {_describe(node)}; {_HOW}")
        elif kind is not None:
            _check_expression(node, str(kind), functions)
        if node.get("sample"):
            raise InputError(
                "a filter may not use TABLESAMPLE, which gives other rows every time; sort at random instead"
            )
        if node.get("cte_map", {}).get("map"):
            raise InputError("a filter may not use WITH; put the query where its name stands")


def _check_table(node: Mapping[str, Any], tables: set[str]) -> None:
    name = str(node["table_name"])
    if node.get("schema_name") or node.get("catalog_name") or name.lower() not in tables:
        raise InputError(f"a filter may read {', '.join(sorted(tables))}, not {name!r}")


def _check_expression(node: Mapping[str, Any], kind: str, functions: Collection[str]) -> None:
    if kind == "FUNCTION":
        name = str(node["function_name"]).lower()
        if node.get("catalog") or node.get("schema") not in ("", "main", None) or name not in functions:
            raise InputError(f"a filter may not call {name}; only functions of the row's values are open to it")
    elif kind == "STAR" and node.get("columns"):
        raise InputError("COLUMNS(...) is more than one condition; name the column")
    elif kind == "WINDOW":
        raise InputError("a window function needs rows in an order; compare with a subquery over pool instead")
    elif kind not in _CLASSES:
        raise InputError(f"a filter may not hold {kind.lower().replace('_', ' ')}s; {_HOW}")


def _describe(node: Mapping[str, Any]) -> str:
    function = node.get("function")
    name = function.get("function_name") if isinstance(function, Mapping) else None
    return f"{name}(...)" if name else str(node.get("type", "that")).lower().replace("_", " ")
