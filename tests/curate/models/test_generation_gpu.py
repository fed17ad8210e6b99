"""Models that read and write captions, on a GPU: in single precision what a CPU gives, in bfloat16 the same twice."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from curate.models.captioner import _load_captioner, load_captioner
from curate.models.engine import Request, Sampling
from curate.models.engine_transformers import TransformersEngine
from tests.captioner import KINDS, make_captioner
from tests.curate.models.test_captioner import CAPTIONS, PROMPT, encode, make_pictures
from tests.curate.models.test_engine_transformers import DRAWN, GREEDY, questions, texts
from tests.curate.models.test_engine_transformers import picture as make_jpeg
from tests.language_model import make_language_model

pytestmark = pytest.mark.gpu
# In some releases of transformers GIT's generation looks beyond its positions, which on a GPU takes all later tests along.
WRITERS = ("llama", *(kind for kind in KINDS if kind != "git"))
BEAMED = Sampling(max_new_tokens=6, num_beams=3, log_probabilities=True)


@pytest.fixture(autouse=True)
def exact_convolutions() -> Iterator[None]:
    """Keep TF32 out of what is compared with a CPU."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield
    torch.backends.cudnn.allow_tf32 = before


def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    num_threads = torch.get_num_threads()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: num_threads)


def load_engine(kind: str, folder: Path) -> TransformersEngine:
    if not folder.exists():
        make_language_model(folder) if kind == "llama" else make_captioner(folder, kind)
    return TransformersEngine(str(folder))


def ask(kind: str) -> list[Request]:
    if kind == "llama":
        return questions(40)
    return [
        Request(messages=request.messages[:1], image=make_jpeg(number), seed=number)
        for number, request in enumerate(questions(9))
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_captions_are_scored_as_on_a_cpu(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(make_captioner(tmp_path / kind, kind))
    gpu = load_captioner(folder, prompt=PROMPT)
    assert (gpu.network.device.type, gpu.network.dtype) == ("cuda", torch.bfloat16)
    captions, pictures = gpu.tokenize(CAPTIONS, 20), make_pictures()
    half = gpu.score(encode(folder, gpu, pictures), captions)
    np.testing.assert_array_equal(gpu.score(encode(folder, gpu, pictures), captions), half)
    gpu.network.float()
    single = gpu.score(encode(folder, gpu, pictures), captions)
    shared = gpu.score(encode(folder, gpu, pictures[:1]), captions)
    on_the_cpu(monkeypatch)
    cpu = _load_captioner.__wrapped__(folder, "", PROMPT)
    assert cpu.network.device.type == "cpu"
    expected = cpu.score(encode(folder, cpu, pictures), captions)
    np.testing.assert_allclose(single, expected, atol=2e-3)
    np.testing.assert_allclose(shared, cpu.score(encode(folder, cpu, pictures[:1]), captions), atol=2e-3)
    lengths = np.array([len(caption.ids) for caption in captions])
    np.testing.assert_allclose(half / lengths, expected / lengths, atol=0.05)


@pytest.mark.parametrize("kind", WRITERS)
def test_texts_are_those_of_a_cpu(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests, engine = ask(kind), load_engine(kind, tmp_path / kind)
    assert (engine._reader.network.device.type, engine._reader.network.dtype) == ("cuda", torch.bfloat16)
    engine._reader.network.float()
    greedy, beamed = (engine.generate(requests, sampling) for sampling in (GREEDY, BEAMED))
    on_the_cpu(monkeypatch)
    other = load_engine(kind, tmp_path / kind)
    for found, sampling in ((greedy, GREEDY), (beamed, BEAMED)):
        expected = other.generate(requests, sampling)
        assert [answer.error for answer in found] == [""] * len(requests)
        assert texts(found) == texts(expected)
        for mine, theirs in zip(found, expected, strict=True):
            # The weights were rounded to bfloat16 when they were loaded.
            assert mine.log_probability == pytest.approx(theirs.log_probability, abs=2e-2)


@pytest.mark.parametrize("kind", WRITERS)
def test_drawn_texts_are_the_same_twice(kind: str, tmp_path: Path) -> None:
    requests, engine = ask(kind), load_engine(kind, tmp_path / kind)
    stopped = Sampling(temperature=0.8, top_p=0.9, top_k=20, max_new_tokens=6, stop=("word3",))
    for sampling in (GREEDY, DRAWN, stopped):
        first, second = (engine.generate(requests, sampling) for _ in range(2))
        assert texts(first) == texts(second)
        assert [answer.error for answer in first] == [""] * len(requests)
        assert all((answer.num_new_tokens or 0) <= 6 for answer in first)
    assert len(set(texts(engine.generate(requests, DRAWN)))) > 1
