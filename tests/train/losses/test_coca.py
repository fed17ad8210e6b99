from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch

from schemas.errors import InputError
from tests.train.losses.outputs import LENGTH, array, log_softmax, make_objective, make_outputs
from train.losses.coca import CoCa
from train.request import Ids, Patches, Shape, Tokens

OPTIONS = {"layers": 1, "num_queries": 3}


def logits_of(loss, outputs) -> np.ndarray:
    """Return what the head predicts, by the modules one after the other."""
    patches = loss.image_norm(loss.image_map(outputs[Patches()]))
    summaries = loss.pool(loss.queries.expand(len(patches), -1, -1), patches, patches)[0]
    hidden = outputs[Tokens()][:, :-1]
    mask = torch.triu(torch.full((LENGTH - 1, LENGTH - 1), -torch.inf), diagonal=1)
    for layer in loss.decoder.layers:
        rows = layer.norm1(hidden)
        hidden = hidden + layer.self_attn(rows, rows, rows, attn_mask=mask)[0]
        hidden = hidden + layer.multihead_attn(layer.norm2(hidden), summaries, summaries)[0]
        hidden = hidden + layer.linear2(torch.nn.functional.gelu(layer.linear1(layer.norm3(hidden))))
    return loss.vocabulary(loss.decoder.norm(hidden)).detach().numpy().astype(np.float64)


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
