"""Filters in a process of their own: right for every row, stopped when slow, started again when ended."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from curate.catalog import Catalog
from curate.store import Pool
from pipelines.browse.evaluator import Evaluator, evaluate_filter
from schemas.errors import InputError
from tests.curate.pool_builder import annotated_pool

# Minutes of one call that DuckDB cannot interrupt.
ENDLESS = "levenshtein(repeat('a', 300000), repeat('b', 300000)) > 1"


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return annotated_pool(tmp_path_factory.mktemp("evaluator") / "pool")


@pytest.fixture
def evaluator(pool: Pool, tmp_path: Path) -> Iterator[Evaluator]:
    made = Evaluator(pool, 36, str(tmp_path), seconds=5.0)
    yield made
    made.close()


def test_a_mask_has_every_row_in_pool_order(pool: Pool, evaluator: Evaluator) -> None:
    conditions = [
        "b32.clip_score > 1.05",
        "caption_num_words % 5 = 3 OR alt_text IS NULL",
        "status = 'success'",
        "NULL",
    ]
    with Catalog(pool) as catalog:
        for text in conditions:
            expected = [
                bool(value) for (value,) in catalog.sql(f"SELECT {text} FROM pool ORDER BY shard, row").fetchall()
            ]
            assert evaluator.evaluate(text).tolist() == expected
    assert not evaluator.evaluate("NULL").any()


def test_a_slow_filter_is_ended_and_the_next_is_answered(evaluator: Evaluator) -> None:
    with pytest.raises(InputError, match="took longer than 5 s and was stopped"):
        evaluator.evaluate(ENDLESS)
    assert evaluator.evaluate("true").all()


def test_a_process_that_died_is_told_and_replaced(evaluator: Evaluator) -> None:
    evaluator.evaluate("true")
    assert evaluator._process is not None
    evaluator._process.kill()
    evaluator._process.join()
    assert evaluator.evaluate("true").all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clip_scor > 1", "did you mean clip_score or b32.clip_score"),
        ("clip_score > 1", "say b32.clip_score or siglip.clip_score"),
        ("url", "the filter is VARCHAR, not a condition; compare it with something"),
        ("sum(caption_num_words) > 1", r"put sum\(\), count\(\) and unnest\(\) into a subquery"),
        ("url::INTEGER = 1", "Could not convert string"),
        ("EXISTS (SELECT * FROM read_text('/etc/passwd'))", r"not read_text\(...\)"),
        ("ATTACH 'x.db'", "ATTACH"),  # a text of the type ATTACH, which there is not
        (" ", "not a condition"),
        ("-- nothing", "not a condition"),
        ("b32.nothing = 1", "b32 has no column 'nothing'"),
        ("length(repeat('abcdefghij', 2000000000)) > 1", "maximum supported string size|memory"),
    ],
)
def test_errors_say_what_to_do(pool: Pool, text: str, message: str) -> None:
    with Catalog(pool, sandboxed=True) as catalog, pytest.raises(InputError, match=message):
        evaluate_filter(catalog, text)


def test_messages_are_bounded(evaluator: Evaluator) -> None:
    with pytest.raises(InputError) as caught:
        evaluator.evaluate(f"'{'x' * 3000}'::INTEGER = width")
    assert len(str(caught.value)) <= 600


def test_the_sandbox_itself_reads_no_other_file(pool: Pool, tmp_path: Path) -> None:
    """Should something pass the guard, DuckDB refuses it too."""
    secret = tmp_path / "secret.csv"
    secret.write_text("a\n1\n")
    with Catalog(pool, sandboxed=True) as catalog:
        with pytest.raises(InputError, match=r"disabled|not allowed|Permission|cannot"):
            catalog.sql(f"SELECT * FROM read_csv('{secret}')").fetchall()
        assert np.asarray(evaluate_filter(catalog, "true")).all()
