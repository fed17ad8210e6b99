"""What the rules of a selection compare, and with what: the values to draw in a histogram, and the rows that lie nearest."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from curate.catalog import Catalog
from curate.expression import Tree, walk
from schemas.errors import InputError
from schemas.selection import TOP_RULE

_COMPARISONS = {
    "COMPARE_LESSTHAN",
    "COMPARE_LESSTHANOREQUALTO",
    "COMPARE_GREATERTHAN",
    "COMPARE_GREATERTHANOREQUALTO",
}


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """A rule and the number that its `expression`, SQL over the pool's columns, is compared with."""

    rule: str
    expression: str
    value: float
    title: str = ""  # the expression as people write it


def find_thresholds(catalog: Catalog, content: Mapping[str, Any]) -> list[Threshold]:
    """Return the thresholds of a selection (its `selection.json`), in the order of its rules, the cut at a top share last.

    A side without columns, be it a quantile in a subquery over the pool, is evaluated once. Where both sides have columns,
    their difference is compared with zero. Comparisons of text, and of what a subquery reads of the row, are left out.
    """
    found = []
    for rule, sql in content["rules"]:
        for expression, value, title in _compare(catalog, sql):
            threshold = Threshold(rule=rule, expression=expression, value=value, title=title)
            if threshold not in found:
                found.append(threshold)
    top = content.get("top")
    if top and content.get("top_threshold") is not None:
        found.append(
            Threshold(rule=TOP_RULE, expression=top["by"], value=float(content["top_threshold"]), title=top["by"])
        )
    return found


def _compare(catalog: Catalog, sql: str) -> Iterator[tuple[str, float, str]]:
    tree = _parse(catalog, sql)
    selected = tree["statements"][0]["node"]["select_list"]
    for node in filter(_is_comparison, walk(selected, into_subqueries=False)):
        if node["class"] == "BETWEEN":
            sides = [(node["input"], node["lower"]), (node["input"], node["upper"])]
        else:
            sides = [(node["left"], node["right"])]
        for left, right in sides:
            pair = _order(catalog, tree, left, right)
            if pair is not None and math.isfinite(pair[1]):
                yield pair


def _order(catalog: Catalog, tree: Tree, left: Tree, right: Tree) -> tuple[str, float, str] | None:
    """Return (expression, number, title) of a comparison, whichever side the number is on."""
    spelled = [_spell(catalog, tree, side) for side in (left, right)]
    if _has_columns(left) and _has_columns(right):
        if not (_is_numeric(left) and _is_numeric(right)):
            return None
        title = " - ".join(map(_unwrap, spelled))
        return f"({spelled[0]}) - ({spelled[1]})", 0.0, title
    expression, constant = spelled if _has_columns(left) else reversed(spelled)
    if not _has_columns(left) and not _has_columns(right):
        return None
    number = _evaluate(catalog, constant)
    return None if number is None else (expression, number, expression)


def _unwrap(sql: str) -> str:
    """Return SQL without the brackets that DuckDB puts around an operation."""
    if not sql.startswith("("):
        return sql
    depth = 0
    for place, letter in enumerate(sql):
        depth += (letter == "(") - (letter == ")")
        if depth == 0 and place < len(sql) - 1:
            return sql  # the first bracket is closed before the end
    return sql[1:-1]


def _evaluate(catalog: Catalog, constant: str) -> float | None:
    """Return the value of SQL without columns, or None where it has no number."""
    try:
        with catalog.translate():
            ((number,),) = catalog.connection.execute(f"SELECT ({catalog.expand(constant)}\n)").fetchall()
    except InputError:  # a subquery that reads the row it is asked for
        return None
    return float(number) if isinstance(number, int | float | Decimal) and not isinstance(number, bool) else None


def _parse(catalog: Catalog, sql: str) -> Tree:
    ((text,),) = catalog.connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [f"SELECT ({sql}\n)"]).fetchall()
    tree: Tree = json.loads(text)
    return tree


def _spell(catalog: Catalog, tree: Tree, expression: Tree) -> str:
    """Return an expression of the tree as SQL."""
    statement = tree["statements"][0]
    node = {**statement["node"], "select_list": [{**expression, "alias": ""}]}
    content = json.dumps({**tree, "statements": [{**statement, "node": node}]})
    ((query,),) = catalog.connection.execute("SELECT json_deserialize_sql(?::JSON)", [content]).fetchall()
    return str(query).removeprefix("SELECT ")


def _is_comparison(node: Tree) -> bool:
    return node.get("class") == "BETWEEN" or node.get("type") in _COMPARISONS


def _has_columns(side: Tree) -> bool:
    return any(node.get("class") == "COLUMN_REF" for node in walk(side, into_subqueries=False))


def _is_numeric(side: Tree) -> bool:
    """Tell whether a side may be subtracted: no text is in it."""
    constants = (node for node in walk(side) if node.get("class") == "CONSTANT")
    return not any(node.get("literal", {}).get("kind") == "STRING" for node in constants)
