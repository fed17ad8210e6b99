"""Answers to a loss's requests made of random numbers, and what several processes see of them."""

import zlib
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch.nn import functional

from train.distributed import World
from train.loss import Objective, Outputs
from train.request import Column, Ids, Patches, Pooled, Present, Rate, Request, Row, Shape, Teacher, Text, Tokens, View

WIDTH, IMAGE_WIDTH, TEXT_WIDTH = 8, 12, 10
POSITIONS, LENGTH, VOCABULARY, LABELS, LIST = 5, 6, 20, 4, 3
SCALE = 7.0


def make_tensor(request: Request, count: int) -> torch.Tensor:
    """Return an answer for `count` samples; the same for the same request."""
    generator = torch.Generator().manual_seed(zlib.crc32(request.key.encode()))

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    def texts(text: Text) -> tuple[int, ...]:
        return (count,) if text.count == 1 else (count, text.count)

    match request:
        case View():
            return functional.normalize(normal(count, WIDTH), dim=-1)
        case Text():
            return functional.normalize(normal(*texts(request), WIDTH), dim=-1)
        case Teacher(Pooled()):
            return normal(count, IMAGE_WIDTH)
        case Teacher():
            return functional.normalize(normal(count, WIDTH), dim=-1)
        case Pooled():
            return normal(count, IMAGE_WIDTH)
        case Patches():
            return normal(count, POSITIONS, IMAGE_WIDTH)
        case Tokens():
            return normal(*texts(request.text), LENGTH, TEXT_WIDTH)
        case Ids():
            ids = torch.randint(3, VOCABULARY, (count, LENGTH), generator=generator)
            ends = torch.randint(3, LENGTH + 1, (count, 1), generator=generator)
            return ids.masked_fill(torch.arange(LENGTH) >= ends, -1)
        case Present():
            return torch.rand(*texts(request.text), generator=generator) < 0.8
        case Rate():
            return 0.05 + 2 * torch.rand(count, generator=generator)
        case Row():
            return torch.randperm(10 * count, generator=generator)[:count]  # each another sample
        case Column():
            return _column(request, count, generator)


def _column(column: Column, count: int, generator: torch.Generator) -> torch.Tensor:
    match column.kind:
        case "number":
            return torch.rand(count, generator=generator)
        case "numbers":
            return functional.normalize(torch.rand(count, LIST, generator=generator), p=1, dim=-1)
        case "vector":
            return torch.randn(count, WIDTH, generator=generator)
        case "label":
            return torch.randint(-1, LABELS, (count,), generator=generator)
        case "labels":
            # Different labels in a row, some of them missing at the end.
            rows = torch.stack([torch.randperm(LABELS, generator=generator)[:LIST] for _ in range(count)])
            return rows.masked_fill(
                torch.arange(LIST) >= torch.randint(0, LIST + 1, (count, 1), generator=generator), -1
            )
        case "uid":
            return torch.randint(-1, 30, (count,), generator=generator)


def make_objective(losses: Mapping[str, object]) -> Objective:
    """Return an objective whose layers are always the same."""
    objective = Objective(losses)
    columns = [request for request in objective.needs if isinstance(request, Column)]
    shape = Shape(
        embed_dim=WIDTH,
        image_width=IMAGE_WIDTH,
        text_width=TEXT_WIDTH,
        vocab_size=VOCABULARY,
        context_length=LENGTH,
        is_text_causal=True,
        num_labels={column.key: LABELS for column in columns},
        widths={column.key: WIDTH for column in columns},
    )
    torch.manual_seed(0)
    objective.build(shape, lambda: torch.nn.Linear(1, 1))
    return objective


def make_outputs(
    needs: tuple[Request, ...],
    count: int,
    world: World | None = None,
    changed: Mapping[Request, torch.Tensor] | None = None,
) -> Outputs:
    """Return this process's share of the answers for a batch of `count`; those with gradients are leaves."""
    world = world or World()
    rows = slice(world.rank * count // world.size, (world.rank + 1) * count // world.size)
    tensors = {request.key: make_tensor(request, count) for request in needs}
    tensors |= {request.key: value for request, value in (changed or {}).items()}
    own = {key: value[rows].clone() for key, value in tensors.items()}
    for request in needs:
        if isinstance(request, View | Text | Pooled | Patches | Tokens):
            own[request.key].requires_grad_()
    return Outputs(tensors=own, logit_scale=torch.tensor(SCALE, requires_grad=True), world=world)


def pair_outputs(similarities: object, scale: float = 10.0, **further: torch.Tensor) -> Outputs:
    """Return outputs whose cosines are this matrix, rows images: the texts are unit vectors and the images its rows."""
    matrix = torch.as_tensor(np.asarray(similarities), dtype=torch.float32)
    tensors = {View().key: matrix, Text().key: torch.eye(len(matrix)), **further}
    return Outputs(tensors=tensors, logit_scale=torch.tensor(scale))


# ---- The reference: plain numpy, one process, the whole batch -----------------------------------------------------------


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return log softmax over the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def clip_reference(logits: np.ndarray) -> float:
    """Return CLIP's loss of a matrix of logits."""
    rows, columns = -np.diag(log_softmax(logits)), -np.diag(log_softmax(logits.T))
    return float((rows + columns).mean() / 2)


def array(outputs: Outputs, request: Request) -> np.ndarray:
    """Return an answer as float64 numbers."""
    value = outputs[request].detach().numpy()
    return value.astype(np.float64) if value.dtype == np.float32 else value


def slopes(function: Callable[[np.ndarray], float], point: np.ndarray) -> np.ndarray:
    """Return the gradient of a function of float64 numbers by differences: what it takes as fixed has none."""
    found = np.empty_like(point)
    for place in np.ndindex(point.shape):
        step = np.zeros_like(point)
        step[place] = 1e-5
        found[place] = (function(point + step) - function(point - step)) / 2e-5
    return found


def assert_gradient(found: torch.Tensor | None, expected: np.ndarray) -> None:
    """Compare a gradient with one by differences, whose largest number must be worth comparing."""
    assert found is not None
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-3, atol=2e-4 * np.abs(expected).max())
