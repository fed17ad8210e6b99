from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from schemas.errors import InputError
from tests.train.losses.outputs import LENGTH, array, log_softmax, make_objective, make_outputs
from tests.train.losses.scenes import write_rich_scenes
from tests.train.processes import run_processes
from tests.train.training import TINY
from train.config import TrainConfig
from train.distributed import World
from train.losses.coca import CoCa
from train.metrics import read_metrics
from train.request import Ids, Patches, Shape, Tokens
from train.trainer import train

OPTIONS = {"layers": 1, "num_queries": 3}


def logits_of(loss, outputs, *, sees: bool = True, detach: bool = True):
    """Return what the head predicts, by the modules one after the other; float64 numbers, or tensors with gradients."""
    patches = loss.image_norm(loss.image_map(outputs[Patches()]))
    summaries = loss.pool(loss.queries.expand(len(patches), -1, -1), patches, patches)[0]
    hidden = outputs[Tokens()][:, :-1]
    mask = torch.triu(torch.full((LENGTH - 1, LENGTH - 1), -torch.inf), diagonal=1)
    for layer in loss.decoder.layers:
        rows = layer.norm1(hidden)
        hidden = hidden + layer.self_attn(rows, rows, rows, attn_mask=mask)[0]
        if sees:
            hidden = hidden + layer.multihead_attn(layer.norm2(hidden), summaries, summaries)[0]
        hidden = hidden + layer.linear2(torch.nn.functional.gelu(layer.linear1(layer.norm3(hidden))))
    logits = loss.vocabulary(loss.decoder.norm(hidden))
    return logits.detach().numpy().astype(np.float64) if detach else logits


@pytest.mark.parametrize("chunk", [3, 1024])
def test_reference(chunk: int) -> None:
    loss = make_objective({"coca": {**OPTIONS, "chunk": chunk}}).losses["coca"]
    outputs = make_outputs(loss.needs, 5)
    rows, ids = log_softmax(logits_of(loss, outputs)), array(outputs, Ids())[:, 1:]
    values = [-rows[i, k, ids[i, k]] for i in range(5) for k in range(LENGTH - 1) if ids[i, k] >= 0]
    assert len(values) < 5 * (LENGTH - 1)
    assert loss(outputs)["coca"].item() == pytest.approx(np.mean(values), rel=1e-4)


def gradients(chunk: int, autocast) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    loss = make_objective({"coca": {**OPTIONS, "chunk": chunk}}).losses["coca"]
    outputs = replace(make_outputs(loss.needs, 5), autocast=autocast)
    value = loss(outputs)["coca"]
    value.backward()
    leaves = {**dict(loss.named_parameters()), "tokens": outputs[Tokens()], "patches": outputs[Patches()]}
    return value, {name: leaf.grad for name, leaf in leaves.items()}


@pytest.mark.parametrize("autocast", [nullcontext, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_chunks_change_neither_value_nor_gradients(autocast) -> None:
    (whole, expected), (parts, found) = gradients(1024, autocast), gradients(3, autocast)
    assert parts.dtype == torch.float32
    torch.testing.assert_close(parts, whole)
    assert (whole.item() == gradients(1024, nullcontext)[0].item()) == (autocast is nullcontext)
    for name, value in expected.items():
        # In bfloat16 the chunks' shares of a gradient are rounded before they are added up.
        limit = 1e-5 if autocast is nullcontext else 2e-2
        torch.testing.assert_close(found[name], value, rtol=0, atol=limit * value.abs().max().item() + 1e-9)


def test_padding_has_no_outputs_and_a_chunk_is_a_chunk() -> None:
    loss = make_objective({"coca": {**OPTIONS, "chunk": 3}}).losses["coca"]
    outputs = make_outputs(loss.needs, 5)
    rows: list[int] = []
    loss.vocabulary.register_forward_hook(lambda _layer, _tokens, logits: rows.append(len(logits)))
    value = loss(outputs)["coca"]
    asked = int((outputs[Ids()][:, 1:] >= 0).sum())
    assert asked < 5 * (LENGTH - 1)
    assert sum(rows) == asked
    assert max(rows) == 3
    rows.clear()
    value.backward()
    assert sum(rows) == asked  # once more on the way back


def test_a_token_does_not_see_what_comes_after() -> None:
    loss = make_objective({"coca": OPTIONS}).losses["coca"]
    outputs = make_outputs(loss.needs, 5)
    ids = outputs[Ids()].clone()
    ids[:, 2:] = -1  # only the second token of each text is asked for
    outputs.tensors[Ids().key] = ids  # type: ignore[index]
    loss(outputs)["coca"].backward()
    gradient = outputs[Tokens()].grad
    assert gradient[:, :1].abs().max() > 0
    assert gradient[:, 1:].abs().max() == 0
    assert outputs[Patches()].grad.abs().max() > 0


def test_a_text_tower_that_looks_ahead_is_refused() -> None:
    with pytest.raises(InputError, match="coca needs a causal text tower"):
        CoCa().build(
            Shape(embed_dim=8, image_width=8, text_width=8, vocab_size=9, context_length=5, is_text_causal=False)
        )


LIMITS = (0.02, 0.09)  # what the picture raises a logit by in the smallest model lies on both sides of these


def weights_of(loss, outputs, limits=LIMITS) -> dict[tuple[int, int], float]:
    """Return the weight of each token that is asked for, by one token after the other."""
    ids = array(outputs, Ids())[:, 1:]
    seeing = logits_of(loss, outputs)
    blind = logits_of(loss, outputs, sees=False)
    asked = [(i, k) for i in range(len(ids)) for k in range(LENGTH - 1) if ids[i, k] >= 0]
    clipped = {
        (i, k): min(max(seeing[i, k, ids[i, k]] - blind[i, k, ids[i, k]], limits[0]), limits[1]) for i, k in asked
    }
    return {(i, k): float(np.mean([clipped[i, j] for j in (k - 1, k, k + 1) if (i, j) in clipped])) for i, k in asked}


def weighted(loss, outputs, weights: dict[tuple[int, int], float]) -> torch.Tensor:
    """Return the weighted mean of the tokens' losses with weights that are plain numbers."""
    rows, ids = logits_of(loss, outputs, detach=False).log_softmax(-1), outputs[Ids()][:, 1:]
    total = sum(weight * -rows[i, k, ids[i, k]] for (i, k), weight in weights.items())
    return total / sum(weights.values())


@pytest.mark.parametrize("chunk", [3, 1024])
def test_tokens_count_by_what_the_picture_does_to_them(chunk: int) -> None:
    loss = make_objective({"coca": {**OPTIONS, "chunk": chunk, "visual_weights": LIMITS}}).losses["coca"]
    outputs, other = make_outputs(loss.needs, 5), make_outputs(loss.needs, 5)
    weights = weights_of(loss, outputs)
    assert min(weights.values()) < 0.03
    assert max(weights.values()) > 0.06
    value, expected = loss(outputs)["coca"], weighted(loss, other, weights)
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)
    # Fixed numbers have no gradients: those of the weighted mean are all there are.
    value.backward()
    found = {name: parameter.grad.clone() for name, parameter in loss.named_parameters()}
    loss.zero_grad()
    expected.backward()
    for name, parameter in loss.named_parameters():
        torch.testing.assert_close(
            found[name], parameter.grad, rtol=1e-3, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )
    for request in (Tokens(), Patches()):
        torch.testing.assert_close(outputs[request].grad, other[request].grad, rtol=1e-3, atol=1e-7)


def measure_weighted(limits: tuple[float, ...], change=None) -> list[torch.Tensor]:
    loss = make_objective({"coca": {**OPTIONS, "visual_weights": limits}}).losses["coca"]
    if change is not None:
        change(loss)
    outputs = make_outputs(loss.needs, 5)
    value = loss(outputs)["coca"]
    value.backward()
    return [value.detach(), outputs[Tokens()].grad, outputs[Patches()].grad, *(p.grad for p in loss.parameters())]


def see_nothing(loss) -> None:
    """Let nothing of the picture into the decoder."""
    for layer in loss.decoder.layers:
        torch.nn.init.zeros_(layer.multihead_attn.out_proj.weight)


@pytest.mark.parametrize("limits", [(2.5, 2.5), (1.0, 1e6), (0.001, 0.5)])
def test_equal_weights_are_the_plain_mean(limits: tuple[float, float]) -> None:
    """Equal limits give equal weights, and so does a decoder that the picture means nothing to."""
    change = None if limits[0] == limits[1] else see_nothing
    for found, expected in zip(measure_weighted(limits, change), measure_weighted((), change), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_tokens_that_the_picture_does_not_matter_to_weigh_less() -> None:
    loss = make_objective({"coca": {**OPTIONS, "visual_weights": (1.0, 5.0)}}).losses["coca"]
    seeing, blind = torch.randn(2, 2, 4, loss.vocabulary.in_features, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[7, 7, 7, -1], [8, 8, 8, 8]])
    with torch.no_grad():
        loss.vocabulary.weight[7] = 100 * (seeing - blind)[0].mean(0)
        loss.vocabulary.weight[8] = 0
    assert loss.weigh_tokens(seeing, blind, ids).tolist() == pytest.approx([5.0] * 3 + [1.0] * 4)
    # What the picture speaks against counts least too, and neighbours share.
    with torch.no_grad():
        loss.vocabulary.weight[7] = -loss.vocabulary.weight[7]
        loss.vocabulary.weight[9] = 100 * (seeing - blind)[0, 1]
    assert loss.weigh_tokens(seeing[:1], blind[:1], torch.tensor([[8, 9, 8, -1]])).tolist() == pytest.approx([
        3,
        7 / 3,
        3,
    ])
    assert loss.weigh_tokens(seeing, blind, torch.full((2, 4), -1)).tolist() == []


@pytest.mark.parametrize("limits", [(), (1.0, 5.0)])
def test_weights_cost_one_blind_pass_and_no_outputs(limits: tuple[float, ...]) -> None:
    loss = make_objective({"coca": {**OPTIONS, "visual_weights": limits}}).losses["coca"]
    outputs = make_outputs(loss.needs, 5)
    calls: list[str] = []
    rows: list[int] = []
    (layer,) = loss.decoder.layers
    layer.self_attn.register_forward_hook(lambda *_: calls.append("text"))
    layer.multihead_attn.register_forward_hook(lambda *_: calls.append("picture"))
    loss.vocabulary.register_forward_hook(lambda _layer, _tokens, logits: rows.append(len(logits)))
    loss(outputs)
    assert calls == ["text", "picture"] + ["text"] * bool(limits)
    assert sum(rows) == int((outputs[Ids()][:, 1:] >= 0).sum())


def measure_shared(world: World) -> dict[str, torch.Tensor]:
    loss = make_objective({"coca": {**OPTIONS, "chunk": 3, "visual_weights": LIMITS}}).losses["coca"]
    outputs = make_outputs(loss.needs, 8, world)
    value = loss(outputs)["coca"]
    value.backward()
    found = {"value": world.mean(value), **{name: world.mean(p.grad) for name, p in loss.named_parameters()}}
    return found | {request.key: world.gather(outputs[request].grad / world.size) for request in (Tokens(), Patches())}


@pytest.mark.parametrize("size", [2, 4])
def test_weighted_tokens_are_the_same_on_several_processes(size: int, tmp_path: Path) -> None:
    alone = measure_shared(World())
    for found in run_processes(size, tmp_path, measure_shared):
        for name, value in alone.items():
            torch.testing.assert_close(
                found[name], value, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.parametrize("limits", [(1.0,), (5.0, 1.0), (-1.0, 1.0), (0.0, 0.0), (1.0, float("inf"))])
def test_wrong_visual_weights(limits: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="visual_weights are the least and the most that a token counts, two numbers"):
        CoCa(visual_weights=limits)


def test_a_run_weighs_tokens_and_its_loss_falls(tmp_path: Path) -> None:
    losses = {"info_nce": 1.0, "coca": {"weight": 2.0, **OPTIONS, "visual_weights": [0.5, 5]}}
    before = torch.get_num_threads()
    config = TrainConfig(**{**TINY, "losses": losses, "samples_seen": 16 * 12})
    train(str(write_rich_scenes(tmp_path)), str(tmp_path / "run"), config)
    torch.set_num_threads(before)
    found = [record["coca"] for record in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert np.mean(found[-3:]) < 0.9 * np.mean(found[:3])
