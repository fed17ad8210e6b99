"""Operators from text and from a recipe's mapping."""

from pathlib import Path

import pytest

from curate.operator import Operator
from curate.operators.caption_stats import CaptionStats
from curate.operators.clip_score import ClipScore
from curate.parse import is_from_file, make_operator, parse_operator
from schemas.errors import InputError

SOURCE = """
from dataclasses import dataclass
import pyarrow as pa
from curate.operator import ShardOperator

@dataclass(frozen=True, kw_only=True)
class Own(ShardOperator):
    "A file of the user's."

    name = "own"
    version = 1
    reads = ("alt_text",)
    writes = pa.schema([("own_x", pa.int32())])

    count: int = 3
    ratio: float = 0.5
    is_strict: bool = False
    title: str = "a"

    def load(self):
        return lambda batch: {"own_x": [0] * batch.num_rows}
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / "own.py").write_text(SOURCE)
    return str(tmp_path / "own.py")


def values(operator: Operator) -> dict[str, object]:
    return dict(operator.identity())


def test_names_parameters_labels_and_bindings() -> None:
    assert parse_operator("caption_stats") == CaptionStats()
    operator = parse_operator("clip_score:model=org/name,revision=abc,label=b32,bind.alt_text=recap.recaption")
    assert operator == ClipScore(model="org/name", revision="abc", label="b32", bind={"alt_text": "recap.recaption"})


def test_a_recipe_gives_the_same() -> None:
    mapping = {"model": "org/name", "label": "b32", "bind": {"alt_text": "recap.recaption"}}
    text = "clip_score:model=org/name,label=b32,bind.alt_text=recap.recaption"
    assert make_operator("clip_score", mapping) == parse_operator(text)


def test_text_is_read_as_the_parameters_type(own: str) -> None:
    operator = parse_operator(f"{own}:count=7,ratio=1,is_strict=yes,title=5")
    assert values(operator) == {"count": 7, "ratio": 1.0, "is_strict": True, "title": "5"}
    assert is_from_file(operator)
    assert not is_from_file(CaptionStats())
    assert values(make_operator(own, {"ratio": 2, "is_strict": True})) == {
        "count": 3,
        "ratio": 2.0,
        "is_strict": True,
        "title": "a",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("caption_stat", r"no operator is called 'caption_stat' \(did you mean 'caption_stats'\?\)"),
        ("nothing_like_it", "no operator is called 'nothing_like_it'; `winnow operators` lists them"),
        ("clip_score", "operator 'clip_score' needs model; write clip_score:model=..."),
        ("clip_score:modle=x", r"has no parameter 'modle' \(did you mean 'model'\?\); it has label, model, revision"),
        ("clip_score:model", "'model' is not key=value"),
        ("clip_score:model=a,model=b", "sets 'model' twice"),
        ("gone.py", "operator file 'gone.py' does not exist"),
    ],
)
def test_mistakes_are_named(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_operator(text)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("count=many", "count is 'many'; it takes int"),
        ("is_strict=maybe", "takes true or false"),
        ("ratio=x", "takes float"),
    ],
)
def test_values_of_the_wrong_type_are_named(own: str, part: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_operator(f"{own}:{part}")
    with pytest.raises(InputError, match=r"count is 1\.5; it takes int"):
        make_operator(own, {"count": 1.5})


def test_an_edited_file_is_another_operator(own: str) -> None:
    before = parse_operator(own)
    Path(own).write_text(SOURCE.replace("count: int = 3", "count: int = 4"))
    after = parse_operator(own)
    assert (values(before)["count"], values(after)["count"]) == (3, 4)
    assert type(before).__module__ != type(after).__module__


def test_what_text_cannot_say_is_built_in_python() -> None:
    from curate.parse import _convert

    with pytest.raises(InputError, match="build the operator in Python"):
        _convert("a", tuple[str, ...], "odd: words")
