"""What a sweep varies, written as SQL with braces: `clip_score > {0.2,0.25,0.3}`, `clip_score > {0.1:0.5:0.05}`.

Braces in quotes stay what they are, and so do those of a struct (`{'a': 1}`): only a list without colons, or START:STOP:STEP, is varied.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from schemas.errors import InputError

MAX_VALUES = 1000
# Quoted text, quoted names and braces; what lies between them is SQL that nothing is done with.
_PIECES = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|\{(?:'(?:[^']|'')*'|[^{}'])*\}")
# A comma with an even number of quotes after it.
_COMMA = re.compile(r",(?=(?:[^']*'[^']*')*[^']*$)")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One of the ways in which a rule may be written: the values in its braces, and the SQL they make."""

    values: tuple[str, ...]
    sql: str


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A rule that is varied: its name, what each of its values is called, and its choices; of a fraction, `sql` is the score."""

    rule: str
    titles: tuple[str, ...]
    choices: tuple[Choice, ...]
    is_fraction: bool = False


def is_varied(sql: str) -> bool:
    """Tell whether SQL has braces with values."""
    return any(values is not None for _, values in _split(sql))


def read_condition(sql: str, rule: str = "") -> Axis:
    """Return the axis of a condition with braces; several of them are combined. Without a name it is called by its words."""
    pieces = list(_split(sql))
    lists = [values for _, values in pieces if values is not None]
    if not lists:
        raise InputError(f"{sql!r} has no values in braces to try; write {sql.split('>')[0].strip()} > {{0.2,0.3}}")
    choices = []
    for chosen in itertools.product(*lists):
        taken = iter(chosen)
        text = "".join(piece if values is None else next(taken) for piece, values in pieces)
        choices.append(Choice(values=tuple(chosen), sql=text.strip()))
    title = "".join(piece if values is None else "_" for piece, values in pieces).strip()
    titles = (title,) if len(lists) == 1 else tuple(f"{title} #{number + 1}" for number in range(len(lists)))
    return Axis(
        rule=rule or _name([piece for piece, values in pieces if values is None]), titles=titles, choices=tuple(choices)
    )


def read_fractions(text: str) -> Axis:
    """Return the axis of `SQL={0.1:0.5:0.1}`: the best shares of the rows by a score."""
    score, _, listed = text.rpartition("=")
    pieces = list(_split(listed.strip()))
    values = pieces[0][1] if len(pieces) == 1 else None
    if not score.strip() or values is None:
        raise InputError(f"--top {text!r} is not SQL={{SHARE,...}}; write --top 'b32.clip_score={{0.1:0.5:0.1}}'")
    for value in values:
        if not _NUMBER.fullmatch(value) or not 0 < float(value) <= 1:
            raise InputError(f"--top {text!r}: {value} is no share; shares are above 0 and at most 1")
    choices = tuple(Choice(values=(value,), sql=score.strip()) for value in values)
    return Axis(rule=f"top_{_name([score])}", titles=(f"top of {score.strip()}",), choices=choices, is_fraction=True)


def _name(pieces: Sequence[str]) -> str:
    """Return a rule's name made of the words of its SQL."""
    return "_".join(re.findall(r"[A-Za-z][A-Za-z0-9]*", " ".join(pieces))) or "swept"


def _split(sql: str) -> Iterator[tuple[str, tuple[str, ...] | None]]:
    """Yield the pieces of SQL, with the values of those that are varied."""
    end = 0
    for match in _PIECES.finditer(sql):
        values = _read_values(match[0][1:-1]) if match[0].startswith("{") else None
        if values is None:
            continue
        if sql[end : match.start()]:
            yield sql[end : match.start()], None
        yield match[0], values
        end = match.end()
    if sql[end:]:
        yield sql[end:], None


def _read_values(text: str) -> tuple[str, ...] | None:
    """Return the values in braces, or None where they are SQL's own."""
    parts = [part.strip() for part in text.split(":")]
    if len(parts) == 3 and all(_NUMBER.fullmatch(part) for part in parts):
        return _range(text, *map(Decimal, parts))
    if ":" in re.sub(r"'(?:[^']|'')*'", "", text):
        return None
    values = tuple(dict.fromkeys(value.strip() for value in _COMMA.split(text)))
    if not values or not all(values):
        raise InputError(f"{{{text}}} has an empty value; write {{0.2,0.25}} or {{0.1:0.5:0.1}}")
    return values


def _range(text: str, start: Decimal, stop: Decimal, step: Decimal) -> tuple[str, ...]:
    """Return start, start + step, ... up to stop and with it; decimals, so that 0.1:0.5:0.1 has five."""
    try:
        count = int((stop - start) / step) + 1
    except (InvalidOperation, ZeroDivisionError, OverflowError):
        count = 0
    if count < 1:
        raise InputError(f"{{{text}}} holds no value; write {{START:STOP:STEP}}, as {{0.1:0.5:0.1}}")
    if count > MAX_VALUES:
        raise InputError(f"{{{text}}} holds {count:,} values; {MAX_VALUES:,} are the most")
    return tuple(f"{start + number * step:f}" for number in range(count))


def combine(axes: Sequence[Axis]) -> list[tuple[int, ...]]:
    """Return every combination of the axes' choices, by their numbers, the last axis changing first."""
    return list(itertools.product(*(range(len(axis.choices)) for axis in axes)))
