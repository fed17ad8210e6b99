"""What operators that ask have in common: identity, seeds, pictures made ready, and a whole annotation through a server."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from curate.annotate import annotate
from curate.executor import Executor
from curate.fingerprint import fingerprint
from curate.images import decode, to_column
from curate.models.answer_cache import FILE_NAME, AnswerCache, engine_digest
from curate.models.engine import Answer, Message, Request, failed
from curate.models.generation import NO_CACHE, prompt_digest, provenance_fields
from curate.parse import make_operator
from curate.store import Pool
from schemas.errors import InputError
from tests.asking import Asking
from tests.llm_server import LlmServer
from tests.pool import CORRUPT_ROW, FAILED_ROWS, NULL_CAPTION_ROW

URL = "http://127.0.0.1:1/v1"
SERVED = Asking(model="tiny", engine="openai", url=URL)
ASKING = str(Path(__file__).parents[2] / "asking.py")


@pytest.mark.parametrize(
    "change",
    [
        {"url": "http://elsewhere:8000/v1"},
        {"cache": "/tmp/x", "key_variable": "OTHER"},
        {"concurrency": 1, "request_seconds": 3.0},
        {"budget_tokens": 5},
        {"budget_money": 5.0, "price_new": 1.0},
        {"label": "other"},
    ],
)
def test_how_requests_travel_and_what_they_cost_is_no_part_of_the_identity(change: dict[str, object]) -> None:
    assert fingerprint(replace(SERVED, **change), {}) == fingerprint(SERVED, {})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        *({"model": "other"}, {"revision": "2026-11"}, {"temperature": 0.5}, {"top_p": 0.5}, {"top_k": 3}, {"seed": 1}),
        *({"max_new_tokens": 5}, {"image_size": 100}),
        {"engine": "transformers", "url": "", "model": "a/b", "revision": "0" * 40},
    ],
)
def test_what_changes_an_answer_is_part_of_the_identity(change: dict[str, object]) -> None:
    assert fingerprint(replace(SERVED, **change), {}) != fingerprint(SERVED, {})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "magic"}, "engine is 'magic'; it is one of transformers, openai, vllm"),
        ({"engine": "openai"}, "needs url=http://HOST:PORT/v1, got ''"),
        ({"url": URL}, "is for engine=openai; the transformers engine loads the model itself"),
        ({"engine": "openai", "url": URL, "num_beams": 4}, "num_beams=4 needs engine=transformers"),
        ({"num_beams": 4, "temperature": 1.0}, "num_beams=4 looks for the likeliest answer, temperature=1 draws one"),
        ({"engine": "openai", "url": URL, "budget_money": 1.0}, "budget_money=1 needs price_prompt= and price_new="),
        ({"engine": "openai", "url": "http://me:secret@host/v1"}, "url= holds a name or a password"),
        ({"max_new_tokens": -1}, "max_new_tokens is -1"),
        ({"top_p": 0.0}, "top_p is 0"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"concurrency": 0}, "concurrency is 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make_operator(ASKING, {"model": "tiny", **settings})
    assert "secret" not in str(caught.value)


def test_seeds_depend_on_sample_and_number_only() -> None:
    seeds = {SERVED.request_seed(uid, number) for uid in ("a", "b", "c") for number in range(4)}
    assert len(seeds) == 12
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert replace(SERVED, seed=1).request_seed("a") != SERVED.request_seed("a")


def test_pictures_are_reduced_and_encoded_ahead() -> None:
    import pyarrow as pa

    prepare = replace(SERVED, image_size=64).prepare()
    assert prepare is not None
    pictures = [np.full(shape, 200, dtype=np.uint8) for shape in ((300, 100, 3), (20, 30, 3))]
    ready = prepare(pa.table({"uid": ["a", "b"], "image": to_column(pictures), "alt_text": ["x", "y"]}))
    assert [decode(data).shape for data in ready["image"].to_pylist()] == [(64, 21, 3), (20, 30, 3)]
    assert ready["alt_text"].to_pylist() == ["x", "y"]


def test_a_failed_answer_has_no_provenance() -> None:
    request = Request(messages=(Message(role="user", text="a"),))
    made = Answer(text="b", finish_reason="length", log_probability=-0.5)
    columns = SERVED.provenance("x", [request, request], [made, failed("HTTP 400")])
    assert list(columns) == [field.name for field in provenance_fields("x")]
    assert [values[1] for values in columns.values()] == [None] * 6
    assert [values[0] for values in columns.values()] == [
        *("tiny", "", prompt_digest(request), '{"max_new_tokens":77,"temperature":0.0}', "length", -0.5)
    ]


def test_answers_are_kept_in_the_pool_unless_told_otherwise() -> None:
    assert SERVED.placed("/pool").cache == "/pool/cache/answers"
    assert replace(SERVED, cache="/elsewhere").placed("/pool").cache == "/elsewhere"
    assert SERVED.placed("").cache == NO_CACHE


def test_a_pool_is_annotated_through_a_server_and_nothing_is_asked_twice(
    ray_session: Executor, tiny_pool: Pool, tmp_path: Path
) -> None:
    """Also: what is committed does not depend on whether it came from the server or the cache."""

    def files() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in Path(tiny_pool.root, "annotations").rglob("*.parquet")}

    with LlmServer(tmp_path) as server:
        operator = make_operator(ASKING, {"model": "tiny", "engine": "openai", "url": server.url, "max_new_tokens": 60})
        annotate(tiny_pool, [operator], executor=ray_session)
        asked, first = server.asked(), files()
        (table,) = [
            tiny_pool.read_table(str(Path(path).relative_to(tiny_pool.root))) for path in first if "00000" in path
        ]
        wrong = {*FAILED_ROWS, CORRUPT_ROW, NULL_CAPTION_ROW}
        assert [row for row, text in enumerate(table["asking"].to_pylist()) if text is None] == sorted(wrong)
        # Row 6 has the picture and the caption of row 0, and a greedy answer does not depend on the uid.
        assert table["asking"][6] == table["asking"][0]
        assert set(table["asking_log_probability"].to_pylist()) == {-0.25, None}
        assert asked.total() == 2 * (12 - len(wrong) - 1)
        for path in first:
            Path(path).unlink()
        annotate(tiny_pool, [operator], executor=ray_session)
        assert server.asked() == asked
        assert files() == first
    assert Path(tiny_pool.root, "cache/answers", FILE_NAME).exists()


def test_a_spent_budget_ends_annotation_with_the_remedy_and_keeps_the_answers(
    ray_session: Executor, tiny_pool: Pool, tmp_path: Path
) -> None:
    settings: dict[str, object] = {"model": "tiny", "engine": "openai", "max_new_tokens": 9}
    with LlmServer(tmp_path) as server:
        given: dict[str, object] = {**settings, "url": server.url, "concurrency": 2}
        operator = make_operator(ASKING, {**given, "budget_tokens": 1000})
        with pytest.raises(InputError, match=r"budget_tokens=1000 does not allow another request: .* raise the budget"):
            annotate(tiny_pool, [operator], executor=ray_session)
        num_asked = server.asked().total()
        assert 5 <= num_asked < 14
        # What is on disk is what was answered.
        cache = AnswerCache(Path(tiny_pool.root, "cache/answers"))
        assert 0 < sum(cache.spent(engine_digest(SERVED.engine_identity()))) <= 1000
        annotate(tiny_pool, [make_operator(ASKING, given)], executor=ray_session)
        assert server.asked().total() > num_asked
        assert set(server.asked().values()) == {1}
