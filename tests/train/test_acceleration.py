"""What saves memory or time must not change what is learned."""

import shutil

import pytest
import torch

from schemas.errors import InputError
from tests.train.test_curation import SHAPE, TEXTS
from train.acceleration import compile_towers, recompute_activations
from train.distributed import World
from train.model import ImageTextModel, build_model
from train.tokenizer import train_tokenizer


def tiny_model() -> ImageTextModel:
    return build_model(SHAPE, train_tokenizer(TEXTS, 600, 12), seed=0).train()


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
    model = tiny_model()
    names = list(model.network.state_dict())
    loss, plain = gradients(model)
    compile_towers(model, World())
    again, compiled = gradients(model)
    torch.testing.assert_close(again, loss, atol=1e-5, rtol=0)
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, atol=1e-5, rtol=1e-3)
    assert list(model.network.state_dict()) == names


def test_compiling_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(InputError, match=r"needs a C\+\+ compiler on a CPU"):
        compile_towers(tiny_model(), World())


def test_towers_use_fused_attention() -> None:
    network = tiny_model().network
    assert network.vision_model.config._attn_implementation == "sdpa"
    assert network.text_model.config._attn_implementation == "sdpa"
