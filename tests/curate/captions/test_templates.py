"""Templates: articles, hostile labels, files of one's own."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.captions.templates import fill, join_labels, needs_modality, read_templates, with_article
from schemas.errors import InputError


@pytest.mark.parametrize("name", ["photo", "medical", "satellite", "art"])
def test_shipped_sets_are_sound(name: str) -> None:
    templates = read_templates(name)
    assert len(set(templates)) == len(templates) >= 8
    assert needs_modality(templates) == (name == "medical")


@pytest.mark.parametrize(
    ("label", "text"),
    [
        ("dog", "a dog"),
        ("apple", "an apple"),
        ("unicorn", "a unicorn"),
        ("hourglass", "an hourglass"),
        ("MRI", "an MRI"),
        ("CT scan", "a CT scan"),
        ("x-ray", "an x-ray"),
        ("Eiffel Tower", "Eiffel Tower"),
        ("the sea", "the sea"),
        ("two dogs", "two dogs"),
        ("", ""),
    ],
)
def test_articles(label: str, text: str) -> None:
    assert with_article(label) == text


def test_labels_are_joined() -> None:
    assert [join_labels(labels) for labels in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == [
        "",
        "a",
        "a and b",
        "a, b and c",
    ]


@given(st.text())
def test_a_label_is_text_and_no_place(label: str) -> None:
    assert fill("see {label} in {modality}", label, "MRI") == f"see {label} in MRI"


def test_files_of_ones_own(tmp_path: Path) -> None:
    lines, listed = tmp_path / "t.txt", tmp_path / "t.json"
    lines.write_text("a drawing of {label}\n\nthe {label}\n")
    listed.write_text(json.dumps(["a drawing of {label}", "the {label}"]))
    assert read_templates(str(lines)) == read_templates(str(listed)) == ["a drawing of {label}", "the {label}"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.txt", "a photo", "has no place for the label"),
        ("t.txt", "a {labl}", r"has the place \{labl\}; there are"),
        ("t.txt", "\n", "at least one"),
        ("t.json", "{", "is no JSON"),
        ("t.json", "[1]", "entry 1 is 1, not text"),
        ("t.json", '{"a": 1}', "a list of sentences"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        read_templates(str(tmp_path / name))


def test_an_unknown_set_is_refused() -> None:
    with pytest.raises(InputError, match="neither a file nor one of photo, medical"):
        read_templates("photos")
