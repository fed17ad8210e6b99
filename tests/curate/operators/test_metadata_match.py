"""MetaCLIP's substring rule, against the rule as it is written."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.columns import Input
from curate.operators.metadata_match import MetadataMatch, build_automaton, pad, read_entries
from schemas.errors import InputError
from tests.contract import check_operator, column, run

FINGERPRINT = "f452aec3d87326c0a218b77dea586d16499ccd1d3dad749b4b26ab8919a65255"
ENTRIES = ["dog", "black dog", "a", "Dog", "hot dog", "U.S", "photo", "ice cream", "grey ground", "犬", "7"]


def naive(text: str, entries: list[str]) -> list[int]:
    """The rule, word for word."""
    for blank in "\t\n\r":
        text = text.replace(blank, " ")
    for mark in ",.;:?!`":
        text = text.replace(mark, f" {mark} ")
    text = f" {text} "
    return [number for number, entry in enumerate(entries) if f" {entry} " in text]


@pytest.fixture
def metadata(tmp_path: Path) -> str:
    path = tmp_path / "metadata.txt"
    path.write_text("\n".join(ENTRIES) + "\n")
    return str(path)


def match(operator: MetadataMatch, texts: list[str | None]) -> list[list[int]]:
    values = pa.array(texts, pa.string())
    return column(run(operator, {"alt_text": Input.from_column(values)}, len(texts)), "metadata_matches")


def test_contract(metadata: str) -> None:
    output = check_operator(MetadataMatch(metadata=metadata), fingerprint=FINGERPRINT)
    assert column(output, "metadata_matches")[0] == [2, 8]
    assert column(output, "metadata_num_matches")[:2] == [2, 1]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a black dog", ["a", "black dog", "dog"]),
        ("hotdog", []),
        ("DOG", []),
        ("Dog!", ["Dog"]),
        ("dog,dog", ["dog"]),
        ("the U.S", []),  # the dot gets spaces in the text, not in the entry
        ("dog's", []),  # an apostrophe gets none
        ("(dog)", []),
        ("ice\tcream", ["ice cream"]),
        ("ice  cream", []),  # two spaces are not one
        ("hot dog\n7", ["dog", "hot dog", "7"]),
        ("犬犬", []),
        ("", []),
        (None, []),
        ("dog " * 30_000, ["dog"]),
        ("\u202edog\u202c \x00 dog", ["dog"]),
        ("😀😀", []),
    ],
)
def test_boundaries(metadata: str, text: str | None, wanted: list[str]) -> None:
    assert match(MetadataMatch(metadata=metadata), [text]) == [sorted(ENTRIES.index(entry) for entry in wanted)]


def test_scripts_without_spaces(metadata: str) -> None:
    assert match(MetadataMatch(metadata=metadata, unspaced=True), ["犬犬", "hotdog"]) == [[9], []]


_WORDS = st.text(st.sampled_from("ab .,!`\t\n\r'A犬"), max_size=12)


@given(st.lists(_WORDS.filter(str.strip), min_size=1, max_size=8, unique=True), st.lists(_WORDS, max_size=6))
@settings(max_examples=300, deadline=None)
def test_equals_the_naive_rule(entries: list[str], texts: list[str]) -> None:
    automaton = build_automaton(entries)
    for text in texts:
        assert sorted({number for _, number in automaton.iter(pad(text))}) == naive(text, entries)


def test_a_json_list_is_the_same(metadata: str, tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(json.dumps(ENTRIES))
    assert read_entries(str(tmp_path / "m.json")) == read_entries(metadata) == ENTRIES


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.txt", "", "holds no entries"),
        ("m.txt", "dog\n\ncat", "entry 1 is blank"),
        ("m.txt", "dog\ncat\ndog", "entry 2, 'dog', is entry 0 again"),
        ("m.json", '{"dog": 1}', "JSON list of texts"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        read_entries(str(tmp_path / name))


def test_a_missing_file_is_named() -> None:
    with pytest.raises(InputError, match=r"nowhere\.txt' does not exist"):
        MetadataMatch(metadata="nowhere.txt").identity()
