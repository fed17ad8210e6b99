"""Checks SQL expressions over a pool before all of its rows are asked, and finds the one that a row made fail."""

from collections.abc import Iterable, Mapping, Sequence

from curate.catalog import Catalog
from curate.expression import find_volatile
from schemas.errors import InputError


def find_labels(catalog: Catalog, expressions: Mapping[str, str], columns: Iterable[str] = ()) -> list[str]:
    """Return the labels that expressions (by what an error should call them) and named columns read, in the pool's order.

    Raises `InputError` where an expression is not SQL, or would not give the same value for the same row every time.
    """
    references = []
    for place, expression in expressions.items():
        try:
            found = catalog.parse(expression)
        except InputError as error:
            raise InputError(f"{place}: {error}") from error
        if found.has_window:
            raise InputError(
                f"{place} uses a window function ({expression!r}), which rules cannot: compare with a subquery over `pool`, or use top, "
                "per_group, mix or limit"
            )
        if volatile := find_volatile(found):
            raise InputError(
                f"{place} uses {volatile}, which gives another selection every time; use limit with a seed, or md5(uid), to draw at random"
            )
        references.append(found)
    named = {label for label, _ in map(catalog.resolve, columns)}
    used = catalog.used_labels(references)
    return [label for label in catalog.labels if label in named or label in used]


def check_expressions(catalog: Catalog, expressions: Mapping[str, str], labels: Sequence[str]) -> None:
    """Bind every expression by itself, so that an error names it; one whose name begins with "rule" must be a condition."""
    source = catalog.source(labels, 0, 1)
    for place, expression in expressions.items():
        with catalog.translate(place):
            ((kind,),) = catalog.connection.execute(
                f"SELECT typeof(({catalog.expand(expression)}\n)) FROM (SELECT 1) LEFT JOIN ({source}) ON true LIMIT 1"
            ).fetchall()
        if place.startswith("rule") and kind not in ("BOOLEAN", '"NULL"'):
            raise InputError(f"{place} is {kind}, not a condition: {expression!r}; compare it with something")


def blame(catalog: Catalog, expressions: Mapping[str, str], labels: Sequence[str], error: InputError) -> InputError:
    """Return the error of the expression that fails on some row, found by evaluating each alone; `error` where none does."""
    for place, expression in expressions.items():
        # What is counted with must be a number.
        kind = "::DOUBLE" if place in ("weight", "top by") else ""
        try:
            with catalog.translate(place):
                catalog.connection.execute(
                    f"SELECT count(({catalog.expand(expression)}\n){kind}) FROM {catalog.source(labels)}"
                ).fetchall()
        except InputError as found:
            return found
    return error
