"""Pictures of an evaluation set in the pool: copies are found, others are not."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from curate.annotate import annotate, parse_operator
from curate.catalog import Catalog
from curate.columns import Input
from curate.executor import Executor
from curate.images import decode
from curate.operators.colour_layout import ColourLayout
from curate.operators.decontaminate import Decontaminate
from curate.operators.perceptual_hash import PerceptualHash
from curate.store import Pool
from schemas.errors import InputError
from tests.contract import check_operator, make_inputs, run
from tests.model import make_checkpoint
from tests.pool import CORRUPT_ROW, Row, jpeg, make_rows, write_shard

FINGERPRINT = "ea8a8ceeaa3c5a209293a566301b0730997106f3bf8d5bb6b0afa6ed4be335c0"
# Rows of `tests.pool` that are whole pictures.
COPIED, MIRRORED, RECOLOURED, SAME = 12, 14, 16, 20


def to_row(picture: np.ndarray, name: str) -> Row:
    return Row(url=f"https://example.org/{name}", caption=name, image=jpeg(Image.fromarray(picture), quality=70))


@pytest.fixture(scope="module")
def executor() -> Iterator[Executor]:
    with Executor(num_workers=1) as made:
        yield made


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory, executor: Executor) -> Pool:
    """Return an annotated pool: a smaller copy of a row, a mirrored one, one in other colours, one as it is, two of its own, one broken."""
    rows = make_rows(23)
    pictures = {row: decode(image) for row in (COPIED, MIRRORED, RECOLOURED) if (image := rows[row].image)}
    others = [row for row in make_rows(40, seed=9)[30:32]]
    references = [
        to_row(cv2.resize(pictures[COPIED], (90, 66), interpolation=cv2.INTER_AREA), "smaller"),
        to_row(pictures[MIRRORED][:, ::-1].copy(), "mirrored"),
        to_row(pictures[RECOLOURED][:, :, ::-1].copy(), "recoloured"),
        *others,
        replace(rows[SAME], url="https://example.org/same"),
        replace(others[0], url="https://example.org/broken", image=make_rows(23)[CORRUPT_ROW].image),
    ]
    pool = Pool(tmp_path_factory.mktemp("eval") / "pool")
    write_shard(pool, 0, references)
    annotate(pool, [parse_operator(name) for name in ("perceptual_hash", "colour_layout")], executor=executor)
    return pool


def hash_inputs() -> dict[str, Input]:
    found = {}
    for operator in (PerceptualHash(), ColourLayout()):
        inputs = make_inputs(operator)
        output = run(operator, inputs, 23)
        name = operator.writes.names[0]
        values = output.columns[name]
        found[name] = Input.from_errors(values.drop_null(), output.errors)
    return found


def rows_by_url(pool: Pool) -> dict[str, str]:
    with Catalog(pool) as catalog:
        return dict(catalog.sql("SELECT url, uid FROM pool").fetchall())


def test_contract_and_values(evaluation: Pool) -> None:
    operator = Decontaminate(against=str(evaluation.root))
    output = check_operator(operator, fingerprint=FINGERPRINT, inputs=hash_inputs())
    uids = rows_by_url(evaluation)
    found = {
        row: reference
        for row, reference in enumerate(output.columns["contamination_reference"].to_pylist())
        if reference
    }
    assert found == {
        COPIED: uids["https://example.org/smaller"],
        MIRRORED: uids["https://example.org/mirrored"],
        SAME: uids["https://example.org/same"],
    }
    flags = output.columns["is_contaminated"].to_pylist()
    assert [row for row, flag in enumerate(flags) if flag] == [COPIED, MIRRORED, SAME]
    distances = output.columns["contamination_hash_distance"].to_pylist()
    assert all((value is not None and value <= 6) == bool(flag) for value, flag in zip(distances, flags, strict=True))
    assert not any(output.columns["contamination_cosine"].to_pylist())


def test_colours_may_be_left_out(evaluation: Pool) -> None:
    output = run(Decontaminate(against=str(evaluation.root), max_colour_distance=255), hash_inputs(), 23)
    assert output.columns["is_contaminated"].to_pylist()[RECOLOURED]


def test_by_embedding_too(evaluation: Pool, executor: Executor, tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model")
    pool = Pool(tmp_path / "pool")
    write_shard(pool, 0, make_rows(23))
    operator = parse_operator(f"decontaminate:against={evaluation.root},model={model},min_cosine=0.999,max_distance=0")
    with pytest.raises(InputError, match=f"lack clip_embedding .* clip_embedding:model={model}"):
        annotate(pool, [operator], executor=executor)
    annotate(evaluation, [parse_operator(f"clip_embedding:model={model}")], executor=executor)
    annotate(pool, [operator], executor=executor)
    with Catalog(pool) as catalog:
        rows = catalog.sql(
            "SELECT row, is_contaminated, contamination_cosine, contamination_reference FROM pool WHERE is_contaminated ORDER BY row"
        ).fetchall()
        cosines = [value for (value,) in catalog.sql("SELECT contamination_cosine FROM pool").fetchall()]
    assert SAME in {row[0] for row in rows}
    assert all(reference for *_, reference in rows)
    assert max(value for value in cosines if value is not None) > 0.999
    assert sum(value is None for value in cosines) == 3  # two failed downloads, a corrupt file


def test_a_pool_that_is_not_ready_is_named(tmp_path: Path) -> None:
    pool = Pool(tmp_path / "empty")
    write_shard(pool, 0, make_rows(4))
    with pytest.raises(InputError, match="lack perceptual_hash as the pool has it; run `winnow annotate"):
        Decontaminate(against=str(pool.root)).load()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [({"max_distance": 20}, "max_distance is 20"), ({"min_cosine": 3}, "min_cosine is 3")],
)
def test_wrong_parameters(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Decontaminate(against="x", **parameters)
