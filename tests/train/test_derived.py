from weakref import WeakSet

import pytest
import torch
from torch.nn import functional

from train.derived import attach_slopes, sum_chunks


class Box:
    """A tensor that is kept for the way back, as long as it is."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def leaves(count: int = 7) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(shape, generator=generator, requires_grad=True) for shape in ((count, 3), (count, 3), (5, 3), ())
    ]


def compute(
    chunk: slice, one: torch.Tensor, two: torch.Tensor, columns: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    weights = torch.arange(100.0)[chunk][: len(one)]
    return (weights[:, None] * (scale * (one * two) @ columns.T).sin()).sum()


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_values_and_gradients_are_those_of_the_whole(size: int) -> None:
    expected, found = leaves(), leaves()
    whole = compute(slice(0, 7), *expected)
    (2 * whole).backward()
    parts = sum_chunks(compute, found[:2], found[2:], size)
    (2 * parts).backward()
    torch.testing.assert_close(parts, whole)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


def test_gradients_go_on_to_what_the_tensors_were_made_of() -> None:
    one, *others = leaves()
    sum_chunks(compute, (3 * one, others[0]), others[1:], 2).backward()
    same, *rest = leaves()
    compute(slice(0, 7), 3 * same, *rest).backward()
    torch.testing.assert_close(one.grad, same.grad)


def test_what_a_chunk_made_is_gone() -> None:
    kept = []
    for columns in (10, 10_000):
        boxes: WeakSet[Box] = WeakSet()

        def pack(tensor: torch.Tensor, boxes: WeakSet[Box] = boxes) -> Box:
            box = Box(tensor)
            boxes.add(box)
            return box

        rows, fixed = torch.randn(4, 3, requires_grad=True), torch.randn(columns, 3)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda box: box.tensor):
            total = sum_chunks(lambda _, part, fixed=fixed: (part @ fixed.T).exp().sum(), (rows,), (), 2)
        kept.append(sum(box.tensor.untyped_storage().nbytes() for box in boxes))
        total.backward()
    assert kept[1] == kept[0] > 0


def test_what_is_read_beside_may_change_afterwards() -> None:
    rows, fixed = torch.randn(4, 3, requires_grad=True), torch.randn(5, 3)
    before = fixed.clone()
    total = sum_chunks(lambda _, part: functional.relu(part @ fixed.T).sum(), (rows,), (), 4)
    fixed.zero_()
    total.backward()
    torch.testing.assert_close(rows.grad, ((rows @ before.T > 0).float() @ before).detach())


def test_without_gradients_there_is_the_value() -> None:
    tensors = [tensor.detach() for tensor in leaves()]
    with torch.no_grad():
        found = sum_chunks(compute, tensors[:2], tensors[2:], 3)
    torch.testing.assert_close(found, compute(slice(0, 7), *tensors))


def test_attached_slopes_are_the_gradients_of_each_row() -> None:
    rows = torch.randn(3, 4, requires_grad=True)
    slopes = torch.randn(3, 4)
    values = attach_slopes(torch.tensor([1.0, 2.0, 3.0]), (rows,), (slopes,), dim=1)
    assert values.tolist() == [1.0, 2.0, 3.0]
    values[1].backward()
    torch.testing.assert_close(rows.grad, slopes * torch.tensor([[0.0], [1.0], [0.0]]))
