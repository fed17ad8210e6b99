"""YAML with positions."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.yaml_file import Place, dump, merge, read_tree, set_value
from schemas.errors import RecipeError

TEXT = """\
name: x
train:
  model: vit_tiny   # a comment
  lr: 1e-3
rules: [a, b]
"""


def test_values_and_places() -> None:
    tree = read_tree(TEXT, "r.yaml")
    assert tree.value == {"name": "x", "train": {"model": "vit_tiny", "lr": 0.001}, "rules": ["a", "b"]}
    assert str(tree.place(("train", "lr"))) == "r.yaml:4"
    assert str(tree.place(("rules", 1))) == "r.yaml:5"
    assert str(tree.place(("train", "absent"))) == "r.yaml:2"
    assert str(tree.place(("absent",))) == "r.yaml:1"
    assert read_tree("", "empty.yaml").value == {}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("1e-3", 0.001),
        ("-2", -2),
        (".5", 0.5),
        ("010", 10),
        ("'1'", "1"),
        ("", None),
        ("~", None),
        ("2020-01-01", "2020-01-01"),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("$HOME", "$HOME"),
    ],
)
def test_plain_values_are_read_without_surprises(text: str, value: object) -> None:
    found = read_tree(f"a: {text}", "r.yaml").value["a"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "r.yaml:3: key 'a' is written twice; the first is in line 1"),
        ("b:\n  a: !x 1", "r.yaml:2: tag '!x' is not supported"),
        ("a: !!python/object/apply:os.system ['true']", "r.yaml:1: tag '!!python/object/apply:os.system' is not"),
        ("a: &x 1\nb: *x", "aliases"),
        ("a: [", "r.yaml:1: not YAML: "),
        ("a: 1\n  b: 2", "r.yaml:2: not YAML: "),
        ("- 1", "r.yaml:1: expected `key: value` lines, found a list"),
        ("3", "found the value '3'"),
        ("[a]: 2", "r.yaml:1: a key must be a plain word"),
        ("a: " + "[" * 5000, "r.yaml:1: not YAML"),
        ("a: 1\n---\nb: 2", "not YAML"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read_tree(text, "r.yaml")
    assert message in str(caught.value)


def test_merge_replaces_lists_and_keeps_the_place_of_each_key() -> None:
    base = read_tree("a: {x: 1, y: 2}\nl: [1, 2, 3]\nk: {z: 1}", "base.yaml")
    child = read_tree("\na:\n  y: 3\nl: [9]\nk: 5", "child.yaml")
    merged = merge(base, child)
    assert merged.value == {"a": {"x": 1, "y": 3}, "l": [9], "k": 5}
    assert str(merged.place(("a", "x"))) == "base.yaml:1"
    assert str(merged.place(("a", "y"))) == "child.yaml:3"
    assert str(merged.place(("l", 0))) == "child.yaml:4"
    assert ("l", 1) not in merged.places
    assert ("k", "z") not in merged.places
    assert base.value["l"] == [1, 2, 3]


def test_set_value() -> None:
    tree = read_tree(TEXT, "r.yaml")
    assert set_value(tree, "train.lr=5e-4").value["train"] == {"model": "vit_tiny", "lr": 0.0005}
    assert set_value(tree, "rules.1=z").value["rules"] == ["a", "z"]
    assert set_value(tree, "new.deep=[1, {b: c}]").value["new"] == {"deep": [1, {"b": "c"}]}
    assert set_value(tree, "train=").value["train"] is None
    assert set_value(tree, "name=a=b").value["name"] == "a=b"
    changed = set_value(tree, "train.lr=5e-4")
    assert changed.place(("train", "lr")) == Place("--set train.lr=5e-4", 0)
    assert str(changed.place(("train", "lr"))) == "--set train.lr=5e-4"
    assert str(changed.place(("train", "model"))) == "r.yaml:3"
    assert tree.value["train"] == {"model": "vit_tiny", "lr": 0.001}


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("train.lr", "--set train.lr: expected KEY=VALUE"),
        ("a..b=1", "expected KEY=VALUE"),
        ("rules.7=x", "'7' is not an item of a list of 2"),
        ("name.x=1", "'x' is inside a plain value ('x')"),
        ("name=[", "is not a YAML value"),
    ],
)
def test_wrong_assignments(assignment: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        set_value(read_tree(TEXT, "r.yaml"), assignment)
    assert message in str(caught.value)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8"))
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.from_regex(r"[a-z]{1,8}", fullmatch=True), inner, max_size=3)
    ),
)


@given(st.dictionaries(st.from_regex(r"[a-z]{1,8}", fullmatch=True), VALUES, max_size=4))
def test_what_is_dumped_reads_back_equal(content: dict[str, object]) -> None:
    assert read_tree(dump(content), "dump.yaml").value == content
