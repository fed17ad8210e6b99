"""Captions of many kinds with the objects, attributes and actions a person finds in them, and how well a parser finds the same."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from curate.parsing.parse import Parse, Parser

FILE = Path(__file__).with_name("captions.tsv")
KINDS = ("objects", "attributes", "actions")


@dataclass(frozen=True)
class Labelled:
    """A caption and what it says; attributes are `object:attribute`, actions `verb(object, ...)`."""

    caption: str
    found: dict[str, Counter[str]]


@dataclass(frozen=True)
class Score:
    """Precision and recall of one kind, each 0 to 1, over so many expected."""

    precision: float
    recall: float
    num_expected: int


def read_labelled() -> list[Labelled]:
    """Return the whole set; every second one is held back from tuning."""
    rows = [line.split("\t") for line in FILE.read_text().splitlines()[1:]]
    return [
        Labelled(
            caption,
            {
                "objects": Counter(_split(objects, ", ")),
                "attributes": Counter(_split(attributes, "; ")),
                "actions": Counter(_split(actions, "; ")),
            },
        )
        for caption, objects, attributes, actions in rows
    ]


def held_back(labelled: Sequence[Labelled]) -> list[Labelled]:
    """Return the half that nothing was tuned on."""
    return list(labelled[1::2])


def measure(parser: Parser, labelled: Sequence[Labelled]) -> dict[str, Score]:
    """Return how well a parser does, by kind."""
    right, given, wanted = Counter[str](), Counter[str](), Counter[str]()
    for row in labelled:
        found = as_counters(parser(row.caption))
        for kind in KINDS:
            right[kind] += (found[kind] & row.found[kind]).total()
            given[kind] += found[kind].total()
            wanted[kind] += row.found[kind].total()
    return {kind: Score(right[kind] / given[kind], right[kind] / wanted[kind], wanted[kind]) for kind in KINDS}


def differences(parser: Parser, labelled: Sequence[Labelled]) -> Iterator[str]:
    """Yield a line for every caption that the parser reads otherwise."""
    for row in labelled:
        found = as_counters(parser(row.caption))
        for kind in KINDS:
            if found[kind] != row.found[kind]:
                yield f"{row.caption} | {kind}: {sorted(found[kind])} for {sorted(row.found[kind])}"


def as_counters(parse: Parse) -> dict[str, Counter[str]]:
    """Return a parse in the words of the labels."""
    names = parse.objects
    return {
        "objects": Counter(names),
        "attributes": Counter(f"{names[number]}:{attribute}" for number, attribute in parse.attributes),
        "actions": Counter(f"{a.verb}({', '.join(names[number] for number in a.objects)})" for a in parse.actions),
    }


def _split(text: str, separator: str) -> list[str]:
    return [part for part in text.split(separator) if part]
