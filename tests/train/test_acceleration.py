"""What saves memory or time must not change what is learned."""

import shutil
from dataclasses import replace

import pytest
import torch
from torch._dynamo.utils import counters

from schemas.errors import InputError
from tests.train.test_curation import SHAPE, TEXTS
from train.acceleration import compile_towers, compiled_parts, recompute_activations
from train.config import MODELS
from train.distributed import World
from train.model import ImageTextModel, build_model
from train.tokenizer import train_tokenizer


def tiny_model(layers: int = 1) -> ImageTextModel:
    shape = replace(SHAPE, image_layers=layers, text_layers=layers)
    return build_model(shape, train_tokenizer(TEXTS, 600, 12), seed=0).train()


def gradients(model: ImageTextModel) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(1)
    images = model.encode_image(torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8))
    texts = model.encode_text(TEXTS[:6])
    loss = torch.nn.functional.cross_entropy(model.logit_scale.exp() * images @ texts.T, torch.arange(6))
    model.zero_grad()
    loss.backward()
    return loss.detach(), {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def test_recomputed_activations_give_the_same_gradients_and_are_not_kept() -> None:
    model = tiny_model()
    loss, plain = gradients(model)
    kept = count_saved(model)
    recompute_activations(model)
    again, recomputed = gradients(model)
    assert torch.equal(loss, again)
    assert plain.keys() == recomputed.keys()
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)
    assert count_saved(model) < 0.7 * kept


def count_saved(model: ImageTextModel) -> int:
    """Return the numbers that the graph of the image tower keeps for the backward pass."""
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    weights = {value.untyped_storage().data_ptr() for value in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        features = model.encode_image(torch.zeros(6, 3, 16, 16))
    assert features.requires_grad
    return sum(count for place, count in saved.items() if place not in weights)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_compiled_towers_lose_the_same() -> None:
    model = tiny_model(layers=2)
    names = list(model.network.state_dict())
    loss, plain = gradients(model)
    compile_towers(model, World())
    again, compiled = gradients(model)
    torch.testing.assert_close(again, loss, atol=1e-5, rtol=0)
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, atol=1e-5, rtol=1e-3)
    assert list(model.network.state_dict()) == names


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_one_program_serves_all_blocks_of_a_tower() -> None:
    torch.compiler.reset()
    counters.clear()
    model = tiny_model(layers=3)
    compile_towers(model, World())
    for texts in (TEXTS[:6], [text[:4] for text in TEXTS[:6]]):
        model.encode_image(torch.zeros(6, 3, 16, 16)).sum().backward()
        model.encode_text(texts).sum().backward()
    assert counters["stats"]["unique_graphs"] == 2  # one of a picture's block, one of a text's of any length
    assert not counters["graph_break"]


def test_stacks_of_like_blocks_are_compiled_by_the_block() -> None:
    network = tiny_model(layers=3).network
    assert compiled_parts(network.vision_model) == list(network.vision_model.encoder.layers)
    assert compiled_parts(network.text_model) == list(network.text_model.encoder.layers)
    for name in ("convnext-nano", "resnet-nano"):
        tower = build_model(MODELS[name], train_tokenizer(TEXTS, 600, 12), seed=0).network.vision_model
        assert compiled_parts(tower) == [tower]


def test_compiling_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(InputError, match=r"needs a C\+\+ compiler on a CPU"):
        compile_towers(tiny_model(), World())


def test_towers_use_fused_attention() -> None:
    network = tiny_model().network
    assert network.vision_model.config._attn_implementation == "sdpa"
    assert network.text_model.config._attn_implementation == "sdpa"
