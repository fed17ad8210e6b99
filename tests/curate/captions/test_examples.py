"""The example sets: sizes of the paper, draws without repetition, files of one's own."""

import json
import random
from pathlib import Path

import pytest

from curate.captions.examples import Source, read_sources
from curate.captions.framing import clean
from schemas.errors import InputError


def test_four_sources_of_the_papers_sizes() -> None:
    sources = {source.name: source for source in read_sources()}
    assert [(name, len(source.pairs), len(source.groups)) for name, source in sources.items()] == [
        ("polished", 16, 0),
        ("vivid", 16, 0),
        ("human", 16, 0),
        ("coco", 0, 18),
    ]
    assert all(len(set(group)) == 5 for group in sources["coco"].groups)


def test_no_sentence_is_there_twice_and_all_stay_as_they_are_in_a_prompt() -> None:
    texts = [text for source in read_sources() for found in (*source.pairs, *source.groups) for text in found]
    assert len(set(texts)) == len(texts) == 2 * 48 + 90
    assert [text for text in texts if clean(text) != text] == []


def test_draws_are_of_the_generator_alone_and_without_repetition() -> None:
    for source in read_sources():
        drawn = source.draw(3, random.Random(5))
        assert drawn == source.draw(3, random.Random(5))
        assert len({given for given, _ in drawn}) == 3
        assert all(given != wanted for given, wanted in drawn)
        assert len({tuple(source.draw(3, random.Random(seed))) for seed in range(20)}) > 15
        assert source.size == len(source.draw(source.size, random.Random(0)))


def test_both_directions_of_a_group_are_drawn() -> None:
    source = Source(name="s", groups=(("a", "b"),))
    assert {source.draw(1, random.Random(seed))[0] for seed in range(20)} == {("a", "b"), ("b", "a")}


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"own": {"pairs": [["a cat", "one cat"]], "groups": [["x", "y", "z"]]}}))
    assert read_sources(str(path)) == [Source(name="own", pairs=(("a cat", "one cat"),), groups=(("x", "y", "z"),))]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "sources by name"),
        ("{}", "sources by name"),
        ('{"a": []}', "must hold pairs or groups"),
        ('{"a": {"pears": []}}', "must hold pairs or groups"),
        ('{"a": {"pairs": [["x"]]}}', r"pairs 0 is \['x'\]"),
        ('{"a": {"pairs": [["x", "y", "z"]]}}', "pairs 0"),
        ('{"a": {"groups": [["x", "y"], ["x", " "]]}}', "groups 1"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_sources(str(path))
    with pytest.raises(InputError, match="cannot be read"):
        read_sources(str(tmp_path / "gone.json"))
