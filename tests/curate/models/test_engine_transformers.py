"""Every kind of model that writes text: rows side by side answer as each alone, whatever company they have."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from curate.images import encode
from curate.models.engine import Answer, Message, Request, Sampling
from curate.models.engine_transformers import TransformersEngine
from tests.captioner import KINDS, make_captioner
from tests.language_model import WORDS, make_language_model
from tests.model import CAPTIONS

DRAWN = Sampling(temperature=1.0, max_new_tokens=6, log_probabilities=True)
GREEDY = Sampling(max_new_tokens=6, log_probabilities=True)


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> TransformersEngine:
    return TransformersEngine(str(make_language_model(tmp_path_factory.mktemp("language"))))


def picture(seed: int) -> bytes:
    return encode(np.random.default_rng(seed).integers(0, 256, (40, 48, 3), dtype=np.uint8), "jpg", 95)


def questions(num: int) -> list[Request]:
    """Return prompts of many lengths."""
    random = np.random.default_rng(0)
    return [
        Request(messages=(Message(role="user", text=" ".join(random.choice(WORDS, 1 + number % 7))),), seed=number)
        for number in range(num)
    ]


def texts(answers: Sequence[Answer]) -> list[str | None]:
    return [answer.text for answer in answers]


def assert_alike(one: Sequence[Answer], other: Sequence[Answer]) -> None:
    assert texts(one) == texts(other)
    assert [a.finish_reason for a in one] == [a.finish_reason for a in other]
    for mine, theirs in zip(one, other, strict=True):
        assert mine.log_probability == pytest.approx(theirs.log_probability, abs=1e-4)


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN, Sampling(temperature=0.8, top_p=0.8, top_k=10, max_new_tokens=6)])
def test_an_answer_does_not_depend_on_its_company(language_model: TransformersEngine, sampling: Sampling) -> None:
    requests = questions(40)
    together = language_model.generate(requests, sampling)
    alone = [language_model.generate([request], sampling)[0] for request in requests]
    backwards = language_model.generate(requests[::-1], sampling)[::-1]
    for other in (alone, backwards):
        assert texts(other) == texts(together)
    assert len(set(texts(together))) > 20


def test_seeds_decide_what_is_drawn(language_model: TransformersEngine) -> None:
    (request,) = questions(1)
    same = [Request(messages=request.messages, seed=7)] * 3
    assert len(set(texts(language_model.generate(same, DRAWN)))) == 1
    others = [Request(messages=request.messages, seed=seed) for seed in range(30)]
    assert len(set(texts(language_model.generate(others, DRAWN)))) > 15
    assert len(set(texts(language_model.generate(others, GREEDY)))) == 1


def test_log_probabilities_are_the_models_own(language_model: TransformersEngine) -> None:
    """Compare with one pass over prompt and answer."""
    network, tokenizer = language_model._reader.network, language_model._reader.tokenizer
    for request, answer in zip(questions(8), language_model.generate(questions(8), DRAWN), strict=True):
        assert answer.text is not None
        prompt = tokenizer(f"user {request.messages[0].text} <end> assistant ", add_special_tokens=False)["input_ids"]
        ids = tokenizer(answer.text, add_special_tokens=False)["input_ids"]
        ids += [tokenizer.eos_token_id] * (answer.finish_reason == "stop")
        if len(ids) != answer.num_new_tokens:  # a mark was drawn, which the text leaves out
            continue
        with torch.inference_mode():
            logits = network(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        expected = torch.log_softmax(logits, -1)[range(len(ids)), ids].mean()
        assert answer.log_probability == pytest.approx(float(expected), abs=1e-4)
        assert answer.num_prompt_tokens == len(prompt)


def test_greedy_is_what_transformers_does_and_the_makers_taste_is_left_out(language_model: TransformersEngine) -> None:
    network, tokenizer = language_model._reader.network, language_model._reader.tokenizer
    for request, answer in zip(questions(5), language_model.generate(questions(5), GREEDY), strict=True):
        ids = tokenizer(
            f"user {request.messages[0].text} <end> assistant ", return_tensors="pt", add_special_tokens=False
        )
        with torch.inference_mode():
            found = network.generate(**ids, do_sample=False, max_new_tokens=6)[0, ids["input_ids"].shape[1] :]
        assert answer.text == tokenizer.decode(found, skip_special_tokens=True).strip()


def test_beams_find_likelier_answers(language_model: TransformersEngine) -> None:
    wide = Sampling(max_new_tokens=6, num_beams=4, log_probabilities=True)
    requests = questions(20)
    greedy, beamed = (language_model.generate(requests, sampling) for sampling in (GREEDY, wide))
    gains = [b.log_probability - g.log_probability for b, g in zip(beamed, greedy, strict=True)]  # type: ignore[operator]
    assert np.mean(gains) > 0
    assert texts(beamed) == [language_model.generate([request], wide)[0].text for request in requests]


def test_stop_texts_end_an_answer(language_model: TransformersEngine) -> None:
    (free,) = language_model.generate(questions(1), GREEDY)
    assert free.text is not None
    words = free.text.split()
    (cut,) = language_model.generate(questions(1), Sampling(max_new_tokens=6, stop=(words[2],)))
    assert (cut.text or "").split() == words[: words.index(words[2])]
    assert cut.finish_reason == "stop"


def test_what_a_model_cannot_take_is_the_requests_error(tmp_path: Path) -> None:
    engine = TransformersEngine(str(make_language_model(tmp_path, context=16)))
    long = Request(messages=(Message(role="user", text="word1 " * 20),))
    near = Request(messages=(Message(role="user", text="word1 " * 10),))
    seeing = Request(messages=near.messages, image=picture(0))
    first, second, third = engine.generate([long, near, seeing], Sampling(max_new_tokens=50))
    assert first.error == "the prompt has 23 tokens and the model holds 16"
    assert second.text is not None
    assert second.num_new_tokens <= 3
    assert third.error == "the model takes no pictures"


def test_a_model_without_a_template_reads_the_messages_in_turn(tmp_path: Path) -> None:
    engine = TransformersEngine(str(make_language_model(tmp_path, has_template=False)))
    messages = (Message(role="system", text="word1 word2"), Message(role="user", text="word3"))
    (answer,) = engine.generate([Request(messages=messages)], GREEDY)
    assert answer.num_prompt_tokens == 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sampling", [GREEDY, DRAWN])
def test_models_that_see_answer_about_their_own_picture(tmp_path: Path, kind: str, sampling: Sampling) -> None:
    engine = TransformersEngine(str(make_captioner(tmp_path, kind)))
    begin = CAPTIONS[0].split()[0]
    requests = [
        Request(messages=(Message(role="user", text=begin),), image=picture(number), seed=number) for number in range(9)
    ]
    together = engine.generate(requests, sampling)
    assert [answer.error for answer in together] == [""] * 9
    assert_alike(together, [engine.generate([request], sampling)[0] for request in requests])
    assert_alike(together, engine.generate(requests[::-1], sampling)[::-1])
    if kind != "llava":
        # A captioner goes on with the beginning it is given, and a blank one is no beginning.
        assert all((answer.text or "").startswith(begin) for answer in together)
        bare = Request(messages=(Message(role="user", text=""),), image=picture(0))
        assert engine.generate([bare], sampling)[0].num_prompt_tokens == 1
    broken = Request(messages=requests[0].messages, image=picture(0)[:100])
    assert engine.generate([broken], sampling)[0].error.startswith("Image decoding error")
