"""What is sent to vLLM and read back, Ray Data's own settings of its stage, and a dataset that stays up. vLLM itself needs a GPU."""

import threading
from pathlib import Path
from typing import Any

import pytest

from curate.executor import Executor
from curate.executor_llm import vllm_config, vllm_processor
from curate.models.engine import Message, Request, Sampling
from curate.models.engine_vllm import VllmEngine, engine_settings, read_row, request_row
from schemas.errors import InputError
from tests.language_model import make_language_model

DRAWN = Sampling(temperature=0.7, top_p=0.9, max_new_tokens=4, stop=("\n",), log_probabilities=True)


def ask(text: str, seed: int = 0) -> Request:
    return Request(messages=(Message(role="user", text=text),), seed=seed)


def test_a_request_has_vllms_names_for_how_to_sample() -> None:
    request = Request(
        messages=(Message(role="system", text="s"), Message(role="user", text="u")), image=b"\xff\xd8", seed=7
    )
    row = request_row(request, DRAWN)
    assert row["sampling_params"] == {
        **{"max_tokens": 4, "temperature": 0.7, "seed": 7, "top_p": 0.9, "top_k": -1},
        **{"stop": ["\n"], "logprobs": 0},
    }
    assert row["messages"][0] == {"role": "system", "content": "s"}
    assert row["messages"][1]["content"][0]["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert request_row(ask("u"), Sampling())["sampling_params"] == {"max_tokens": 77, "temperature": 0.0}


def test_rays_stage_takes_these_settings() -> None:
    config = vllm_config("a/b", engine_settings("0" * 40), num_at_once=48, num_replicas=2)
    assert (config.model_source, config.batch_size, config.max_concurrent_batches) == ("a/b", 1, 48)
    assert config.engine_kwargs["revision"] == config.engine_kwargs["tokenizer_revision"] == "0" * 40
    assert config.engine_kwargs["generation_config"] == "vllm"
    assert config.should_continue_on_error


def test_without_vllm_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"engine=vllm needs vLLM on every machine of the cluster: pip install 'winnow\[vllm\]'"
    ):
        vllm_processor("a/b", {}, num_at_once=1, num_replicas=1)


@pytest.mark.parametrize(
    ("logprobs", "expected"),
    [
        ([{5: {"logprob": -1.0}}, {6: {"logprob": -0.5}}], -0.75),
        # As Arrow returns a mapping: pairs.
        ([[(5, {"logprob": -1.0})], [(6, {"logprob": -0.5})]], -0.75),
        ([{5: {"logprob": -1.0}}, {7: {"logprob": -0.5}}], None),
        (None, None),
    ],
)
def test_an_answer_is_read(logprobs: Any, expected: float | None) -> None:
    row = {
        **{"generated_text": " a dog ", "generated_tokens": [5, 6], "logprobs": logprobs},
        **{"num_input_tokens": 9, "num_generated_tokens": 2, "__inference_error__": ""},
    }
    answer = read_row(row, DRAWN)
    assert (answer.text, answer.finish_reason, answer.num_prompt_tokens) == ("a dog", "stop", 9)
    assert answer.log_probability == expected
    assert read_row({**row, "num_generated_tokens": 4}, DRAWN).finish_reason == "length"
    assert read_row({"__inference_error__": "too\nlong"}, DRAWN).error == "too long"


def answer_row(row: dict[str, Any]) -> dict[str, Any]:
    text = row["messages"][-1]["content"]
    if text == "end":
        raise RuntimeError("the engine died")
    made = {"generated_text": text.upper(), "num_input_tokens": 1, "num_generated_tokens": 1}
    return {"request_number": row["request_number"], **made, "__inference_error__": ""}


def open_stage(model: str, settings: dict[str, Any], *, num_at_once: int, num_replicas: int) -> Any:
    return lambda dataset: dataset.map(answer_row)


def test_one_dataset_answers_many_batches_and_its_end_is_everybodys_error(
    ray_session: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = VllmEngine(str(make_language_model(tmp_path)), open_stage=open_stage)
    assert [a.text for a in engine.generate([ask("a")], DRAWN)] == ["A"]
    found: dict[int, list[str | None]] = {}

    def work(start: int) -> None:
        found[start] = [a.text for a in engine.generate([ask(f"q{n}") for n in range(start, start + 4)], DRAWN)]

    threads = [threading.Thread(target=work, args=(start,)) for start in (0, 10, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {start: [f"Q{n}" for n in range(start, start + 4)] for start in (0, 10, 20)}
    with pytest.raises(InputError, match=r"the language model stage on the Ray cluster ended: .*the engine died"):
        engine.generate([ask("end")], DRAWN)
    with pytest.raises(InputError, match="the language model stage on the Ray cluster ended"):
        engine.generate([ask("a")], DRAWN)
    engine.close()
