"""What a piece of SQL reads, found in the syntax tree that DuckDB makes of it; nothing here runs a query.

A tree is the JSON of DuckDB's `json_serialize_sql`: nested objects with a `class` (expressions) or a `type` (tables).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Tree = Mapping[str, Any]

# A selection is a function of its pool; these would make it a different one each time.
VOLATILE_FUNCTIONS = frozenset([
    "random",
    "setseed",
    "uuid",
    "gen_random_uuid",
    "uuidv4",
    "uuidv7",
    "now",
    "today",
    "current_date",
    "current_time",
    "current_timestamp",
    "get_current_time",
    "get_current_timestamp",
    "transaction_timestamp",
    "current_localtime",
    "current_localtimestamp",
])


@dataclass(frozen=True, kw_only=True)
class References:
    """The names a query uses, lower-cased, because SQL names are compared without case."""

    columns: frozenset[tuple[str, ...]]  # ("label", "column") or ("column",)
    tables: frozenset[str]
    functions: frozenset[str]
    has_window: bool
    has_star: bool


def quote_name(name: str) -> str:
    """Return a name as SQL: quoted, whatever characters it has."""
    return '"' + name.replace('"', '""') + '"'


def quote_text(text: object) -> str:
    """Return a text as an SQL literal."""
    return "'" + str(text).replace("'", "''") + "'"


def walk(node: Any, *, into_subqueries: bool = True) -> Iterator[Tree]:
    """Yield the nodes of a tree in the order in which they are written, each before those inside it."""
    if isinstance(node, list):
        for value in node:
            yield from walk(value, into_subqueries=into_subqueries)
    elif isinstance(node, Mapping) and (into_subqueries or node.get("class") != "SUBQUERY"):
        yield node
        for value in node.values():
            yield from walk(value, into_subqueries=into_subqueries)


def find_references(tree: Tree) -> References:
    """Return every name that the tree mentions, subqueries included."""
    nodes = list(walk(tree))
    expressions = [(node.get("class"), node) for node in nodes]
    return References(
        columns=frozenset(
            tuple(str(name).lower() for name in node["column_names"])
            for kind, node in expressions
            if kind == "COLUMN_REF"
        ),
        tables=frozenset(str(node["table_name"]).lower() for node in nodes if node.get("type") == "BASE_TABLE"),
        functions=frozenset(str(node["function_name"]).lower() for kind, node in expressions if kind == "FUNCTION"),
        has_window=any(kind == "WINDOW" for kind, _ in expressions),
        has_star=any(kind == "STAR" for kind, _ in expressions),
    )


def find_volatile(references: References) -> str | None:
    """Return a function whose value differs from one evaluation to the next, or None."""
    keywords = {names[0] for names in references.columns if len(names) == 1}  # current_date has no brackets
    found = sorted(VOLATILE_FUNCTIONS & (references.functions | keywords))
    return found[0] if found else None


def replace_table(tree: Any, name: str, replacement: Tree) -> Any:
    """Return the tree with every use of the table `name` replaced by another table; `name AS p` makes `p.x` mean `x`."""
    aliases = {
        str(node["alias"]).lower()
        for node in walk(tree)
        if node.get("type") == "BASE_TABLE" and str(node["table_name"]).lower() == name and node.get("alias")
    } | {name}

    def replaced(node: Any) -> Any:
        if isinstance(node, list):
            return [replaced(value) for value in node]
        if not isinstance(node, Mapping):
            return node
        if node.get("type") == "BASE_TABLE" and str(node["table_name"]).lower() == name and not node["schema_name"]:
            return replacement
        if node.get("class") == "COLUMN_REF":
            names = node["column_names"]
            if len(names) > 1 and str(names[0]).lower() in aliases:
                return {**node, "column_names": names[1:]}
            return node
        return {key: replaced(value) for key, value in node.items()}

    return replaced(tree)
