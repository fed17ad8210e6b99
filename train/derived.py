"""Losses whose gradients are computed at once, chunk by chunk, so that what a chunk needs is gone before the next."""

from collections.abc import Callable, Sequence

import torch


def sum_chunks(
    compute: Callable[..., torch.Tensor], rows: Sequence[torch.Tensor], shared: Sequence[torch.Tensor], size: int
) -> torch.Tensor:
    """Return the sum of `compute(chunk, *rows, *shared)` over chunks of `size` rows, with its gradients.

    `rows` are alike in length and come chunk by chunk, `shared` whole; `chunk` is the slice. All must be used. What is kept for the way back
    is as large as they are, whatever `compute` makes; nothing is computed twice, and what `compute` reads beside them may change
    afterwards. Gradients of gradients are 0.
    """
    tensors = (*rows, *shared)
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    slopes = [torch.zeros_like(tensor) for tensor in leaves]
    total = torch.zeros((), dtype=leaves[0].dtype, device=leaves[0].device)
    for start in range(0, len(leaves[0]), size):
        chunk = slice(start, start + size)
        with torch.enable_grad():
            parts = [leaf[chunk] for leaf in leaves[: len(rows)]]
            value = compute(chunk, *parts, *leaves[len(rows) :])
        found = torch.autograd.grad(value, [*parts, *leaves[len(rows) :]])
        total += value.detach()
        for number, slope in enumerate(found):
            (slopes[number][chunk] if number < len(rows) else slopes[number]).add_(slope)
    return attach_slopes(total, tensors, slopes)


def attach_slopes(
    value: torch.Tensor, tensors: Sequence[torch.Tensor], slopes: Sequence[torch.Tensor], dim: int | None = None
) -> torch.Tensor:
    """Return the value with these as its gradients by the tensors; with `dim`, each row of values with its row of slopes."""
    products = [tensor * slope.detach() for tensor, slope in zip(tensors, slopes, strict=True)]
    linear = torch.stack([part.sum() if dim is None else part.sum(dim) for part in products]).sum(0)
    return value.detach() + (linear - linear.detach())  # 0, and these gradients
