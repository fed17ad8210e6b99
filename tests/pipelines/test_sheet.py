"""Contact sheets of extremes: the right pictures, and a picture file a person can open."""

import io
from pathlib import Path

import pytest
from PIL import Image

from curate.annotate import annotate, parse_operator
from curate.executor import Executor
from curate.store import Pool
from pipelines.sheet import draw, find_contaminated, find_extremes
from schemas.errors import InputError
from tests.pool import CORRUPT_ROW, make_pool


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    made = make_pool(tmp_path_factory.mktemp("sheet") / "pool", num_shards=2)
    with Executor(num_workers=1) as executor:
        annotate(made, [parse_operator("caption_stats")], executor=executor)
    return made


def test_extremes_are_the_highest_and_the_lowest(pool: Pool) -> None:
    sections = find_extremes(pool, "caption_num_chars", 3)
    assert list(sections) == ["highest caption_num_chars", "lowest caption_num_chars"]
    highest, lowest = ([int(example.note) for example in examples] for examples in sections.values())
    assert highest == sorted(highest, reverse=True)
    assert lowest == sorted(lowest)
    assert lowest[0] == 0  # the missing caption
    assert min(highest) >= max(lowest)
    assert (
        len(find_extremes(pool, "caption_num_chars", 3, where="shard = 1 AND row = 0")["highest caption_num_chars"])
        == 1
    )


def test_a_sheet_is_a_picture_with_every_tile(pool: Pool) -> None:
    sections = find_extremes(pool, "row", 12)
    assert any(example.note == str(CORRUPT_ROW) for example in sections["lowest row"])  # grey, not an error
    with Image.open(io.BytesIO(draw(sections, per_row=6))) as sheet:
        assert sheet.format == "PNG"
        assert sheet.width > 6 * 132
        assert sheet.height > 4 * 132


def test_a_value_that_no_row_has_is_named(pool: Pool) -> None:
    with pytest.raises(InputError, match="no row with a picture has a value of 'NULL::INT'"):
        find_extremes(pool, "NULL::INT", 3)


def test_contaminated_pictures_lie_beside_their_references(pool: Pool, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from pipelines.cli import app

    references = make_pool(tmp_path / "eval", num_shards=1, shard_size=3)
    with Executor(num_workers=1) as executor:
        annotate(references, [parse_operator(name) for name in ("perceptual_hash", "colour_layout")], executor=executor)
        annotate(pool, [parse_operator(f"decontaminate:against={references.root}")], executor=executor)
    sections = find_contaminated(pool, references, 10, label="decontaminate")
    (pairs,) = sections.values()
    assert [(example.pool.root, example.note) for example in pairs[:2]] == [
        (pool.root, "0 bits"),
        (references.root, f"reference {pairs[1].key}"),
    ]
    assert [example.caption for example in pairs[::2]] == [example.caption for example in pairs[1::2]]
    out = tmp_path / "pairs.png"
    arguments = ["contamination", "--pool", pool.root, "--against", references.root, "--out", str(out)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert Image.open(out).format == "PNG"
    empty = make_pool(tmp_path / "other", num_shards=1, shard_size=3, seed=5)
    with pytest.raises(InputError, match=r"has no row \w+, which decontaminate found"):
        find_contaminated(pool, empty, 10, label="decontaminate")


def test_the_command_writes_the_file(pool: Pool, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from pipelines.cli import app

    out = tmp_path / "x.png"
    result = CliRunner().invoke(
        app, ["extremes", "caption_num_words", "--pool", pool.root, "--out", str(out), "-n", "2"]
    )
    assert result.exit_code == 0, result.output
    assert result.output.strip() == str(out)
    assert Image.open(out).size[0] > 1000
