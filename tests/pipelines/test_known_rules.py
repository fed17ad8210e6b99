"""The field's known rules, each at its boundaries: what stays and what goes, ties included."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from PIL import Image

from curate.annotate import annotate, parse_operator
from curate.executor import Executor
from curate.operator import discover
from curate.select import select
from curate.selection import Selection
from curate.store import Pool
from pipelines.recipe import RecipeError, load_recipe, load_section
from schemas.errors import InputError
from tests.curate.pool_builder import annotate_shard
from tests.pool import Row, jpeg, write_shard

ENGLISH = "a photo of a brown dog running on the beach"
GERMAN = "ein Foto von einem braunen Hund am Strand"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A row: its size as downloaded (even numbers), its caption, made columns by operator, and whether it stays."""

    stays: bool
    size: tuple[int, int] = (400, 400)
    caption: str = ENGLISH
    columns: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def score(value: float | None, *, stays: bool, name: str = "clip_score", **other: Any) -> Case:
    return Case(stays=stays, columns={name: {name: value}}, **other)


BASIC = [
    Case(stays=True),
    Case(stays=True, size=(200, 200)),
    Case(stays=False, size=(198, 400)),
    Case(stays=True, size=(200, 600)),
    Case(stays=False, size=(200, 602)),
    Case(stays=False, size=(602, 200)),
    Case(stays=True, caption="the brown dog"),  # three words
    Case(stays=False, caption="brown dog"),  # two words
    Case(stays=True, caption="I am X"),  # three words, six characters
    Case(stays=False, caption="a b c"),  # three words, five characters
    Case(stays=False, caption=GERMAN),
    Case(stays=True, caption="a photo of\na brown dog on\nthe beach"),
    Case(stays=False, caption=""),
]
# Ten scores: int(10 * 0.3) = 3, so the threshold is the fourth score, and its ties stay with it.
CLIP30 = [
    *(score(value, stays=True) for value in (0.9, 0.8, 0.7, 0.6, 0.6)),
    *(score(value, stays=False) for value in (0.5999, 0.5, 0.4, -0.1, -0.2)),
    score(None, stays=False),  # does not count among the ten
]


def image(has_target: bool, **other: Any) -> Case:
    return Case(columns={"cluster": {"cluster_has_target": has_target}}, **other)


IMAGE = [
    image(True, stays=True),
    image(False, stays=False),
    image(True, caption="running dogs", stays=True),  # two words are enough here
    image(True, caption="dogs", stays=False),
    image(True, caption="dogs dogs\t ", stays=True),
    image(True, caption="the_dogs_of_the_beach ", stays=False),
    image(True, caption="dogs\u00a0running", stays=False),  # fastText knows no other blanks than ASCII's
    image(True, caption="running_dogs\n", stays=True),  # a line end is a word to it
    image(True, caption=GERMAN, stays=False),
    image(True, size=(20, 400), stays=True),  # no rule of size
]


def both(value: float, has_target: bool, *, stays: bool, caption: str = ENGLISH) -> Case:
    columns = {"clip_score": {"clip_score": value}, "cluster": {"cluster_has_target": has_target}}
    return Case(columns=columns, stays=stays, caption=caption)


# The score's threshold is that of the whole pool: rows which the other rules drop count in it. int(8 * 0.3) = 2, the third: 0.7.
IMAGE_AND_CLIP = [
    both(0.9, False, stays=False),
    both(0.8, True, stays=False, caption=GERMAN),
    both(0.7, True, stays=True),
    both(0.7, True, stays=True, caption="two dogs on the beach"),
    *(both(value, True, stays=False) for value in (0.69, 0.5, 0.4, 0.3)),
]
LAION = [
    score(0.28, stays=True),
    score(0.2799, stays=False),
    score(0.5, stays=False, caption=GERMAN),
    score(0.5, stays=False, caption="dogs"),  # four characters
    score(None, stays=False),
]


def cat(complexity: int, actions: int, matches: bool, *, stays: bool) -> Case:
    parsed = {"caption_complexity": complexity, "caption_num_actions": actions}
    columns = {"caption_complexity": parsed, "text_spotting": {"text_matches_caption": matches}}
    return Case(stays=stays, columns=columns)


def text(num_matches: int, **other: Any) -> Case:
    return Case(columns={"synset_match": {"synset_num_matches": num_matches}}, **other)


TEXT = [
    text(1, stays=True),
    text(0, stays=False),
    text(7, stays=True),
    text(1, stays=False, caption=GERMAN),
    text(1, stays=True, size=(20, 400)),  # no rule of size
    text(1, stays=True, caption="brown dogs"),  # nor of length
]
CAT = [
    cat(1, 1, False, stays=True),
    cat(0, 1, False, stays=False),
    cat(1, 0, False, stays=False),
    cat(9, 9, True, stays=False),
]
# Of six scores the threshold is the one at index int(6 * 0.5) = 3.
T_MARS = [
    *(score(value, stays=True, name="masked_clip_score") for value in (0.9, 0.8, 0.7, 0.6)),
    *(score(value, stays=False, name="masked_clip_score") for value in (0.5, 0.4)),
]
SEMDEDUP = [
    Case(stays=True, columns={"semantic_dedup": {"is_semantic_duplicate": False}}),
    Case(stays=False, columns={"semantic_dedup": {"is_semantic_duplicate": True}}),
    Case(stays=False, columns={"semantic_dedup": {"is_semantic_duplicate": None}}),  # no embedding
]


def metaclip(matches: int, kept: bool, *, stays: bool) -> Case:
    columns = {
        "metadata_match": {"metadata_num_matches": matches},
        "concept_balance": {"is_concept_balance_kept": kept},
    }
    return Case(stays=stays, columns=columns)


METACLIP = [metaclip(1, True, stays=True), metaclip(1, False, stays=False), metaclip(0, False, stays=False)]


def sane(
    *,
    stays: bool,
    size: tuple[int, int] = (400, 400),
    caption: str = ENGLISH,
    copy: bool = False,
    near: bool = False,
    ratio: float | None = 0.0,
    entropy: float = 7.0,
) -> Case:
    columns = {
        "image_stats": {"image_entropy_bits": entropy},
        "exact_dedup": {"is_pair_duplicate": copy},
        "near_dedup": {"is_near_duplicate": near},
        "text_spotting": {"text_caption_ratio": ratio},
    }
    return Case(stays=stays, size=size, caption=caption, columns=columns)


SANE = [
    sane(stays=True),
    sane(stays=True, size=(100, 300)),
    sane(stays=False, size=(98, 100)),
    sane(stays=False, size=(100, 302)),
    sane(stays=False, entropy=1.0),
    sane(stays=False, caption="IMG_2031.jpg"),
    sane(stays=False, caption="click here to enlarge the image"),
    sane(stays=False, caption="see more of it at https://example.com/dogs"),
    sane(stays=False, caption="brown dog"),
    sane(stays=False, caption="dog dog dog dog"),
    sane(stays=False, caption=GERMAN),
    sane(stays=False, copy=True),
    sane(stays=False, near=True),
    sane(stays=False, ratio=0.5),
    sane(stays=True, ratio=0.49),
    sane(stays=True, ratio=None),  # no word long enough to look for
]
TABLES: dict[str, list[Case]] = {
    "datacomp-basic": BASIC,
    "datacomp-clip30": CLIP30,
    "datacomp-image": IMAGE,
    "datacomp-image-and-clip": IMAGE_AND_CLIP,
    "datacomp-text": TEXT,
    "laion2b": LAION,
    "cat": CAT,
    "t-mars": T_MARS,
    "semdedup": SEMDEDUP,
    "metaclip": METACLIP,
    "sane": SANE,
}


def make_pool(root: Path, cases: Sequence[Case], executor: Executor) -> Pool:
    """Return a pool with a row per case, its captions measured and the other columns as the cases have them."""
    pool = Pool(str(root))
    rows = [
        Row(
            url=f"https://example.org/{number}.jpg",
            caption=case.caption,
            image=jpeg(Image.new("RGB", (case.size[0] // 2, case.size[1] // 2))),
        )
        for number, case in enumerate(cases)
    ]
    write_shard(pool, 0, rows)
    annotate(pool, [parse_operator("caption_stats"), parse_operator("language")], executor=executor)
    operators = discover()
    for name in sorted({name for case in cases for name in case.columns}):
        columns = {column for case in cases for column in case.columns.get(name, {})}
        schema = pa.schema([operators[name].writes.field(column) for column in sorted(columns)])
        values = {column: [case.columns.get(name, {}).get(column) for case in cases] for column in columns}
        annotate_shard(pool, 0, name, values, schema, operator=name)
    return pool


@pytest.fixture(scope="module")
def executor() -> Any:
    with Executor(num_workers=1) as executor:
        yield executor


@pytest.mark.parametrize("name", sorted(TABLES))
def test_boundaries(name: str, tmp_path: Path, executor: Executor) -> None:
    cases = TABLES[name]
    pool = make_pool(tmp_path / "pool", cases, executor)
    selection = load_section("select", name)
    assert isinstance(selection, Selection)
    report = select(pool, selection)
    rows = pool.read_table(f"{report.folder}/ledger.parquet").to_pylist()
    for case, row in zip(cases, rows, strict=True):
        assert row["kept"] is case.stays, f"{case} was {row['first_failing_rule'] or 'kept'}"
    assert any(case.stays for case in cases)
    assert not all(case.stays for case in cases)


@pytest.mark.parametrize("name", sorted(TABLES))
def test_a_recipe_says_which_operators_its_rules_need(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.select is not None
    columns = {column for call in recipe.annotate for column in discover()[call.name].writes.names}
    columns |= {"original_width", "original_height", "alt_text"}
    words = " ".join([*recipe.select.rules.values(), recipe.select.top.by if recipe.select.top else ""])
    used = {
        word.rpartition(".")[2]
        for word in words.replace("(", "( ").replace(")", " ").replace(",", " ").split()
        if "_" in word and not word.endswith("(")
    }
    assert used <= columns


def test_a_recipe_without_its_model_cannot_run_and_says_so(tmp_path: Path) -> None:
    recipe = load_recipe("datacomp-image")
    with pytest.raises(InputError, match=r"needs model, targets; give --set parameters\.model=VALUE"):
        recipe.check_parameters()
    given = load_recipe("datacomp-clip30", ["parameters.model=/models/l14"])
    given.check_parameters()
    assert given.annotate[0].build().model == "/models/l14"  # type: ignore[attr-defined]
    wrong = tmp_path / "r.yaml"
    wrong.write_text("parameters: {model: null}\nannotate: [{clip_score: {model: '${modle}'}}]")
    with pytest.raises(RecipeError, match=r"r\.yaml:2: \$\{modle\} names no parameter; did you mean 'model'"):
        load_recipe(wrong)


def test_later_bases_win(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("extends: [datacomp-basic, laion2b]\nname: both")
    recipe = load_recipe(path)
    assert recipe.select is not None
    assert [call.name for call in recipe.annotate] == ["caption_stats", "language", "clip_score"]
    assert list(recipe.select.rules) == ["english", "words", "characters", "size", "aspect", "agrees"]
    assert recipe.select.rules["characters"] == "caption_num_chars >= 5"


def test_the_documented_weights_can_be_computed() -> None:
    """Every operator over copies, clusters and balance has one, and each is a number made of its columns."""
    text = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| `(\w+)` \| `([^`]+)` \|", text.partition("## Weights")[2].partition("## Keys")[0], re.MULTILINE
    )
    operators = discover()
    copies = {"exact_dedup", "near_dedup", "caption_dedup", "semantic_dedup", "decontaminate"}
    assert (
        copies | {"cluster", "cluster_balance", "concept_balance", "clip_cov", "target_similarity"} <= dict(rows).keys()
    )
    for name, weight in rows:
        with duckdb.connect() as connection:
            empty = connection.from_arrow(operators[name].writes.empty_table())
            assert empty.query("columns", f"SELECT ({weight})::DOUBLE AS weight FROM columns").types == ["DOUBLE"], name
