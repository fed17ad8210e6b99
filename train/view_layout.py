"""Views of several sizes: where they lie in a batch's memory, and how an image tower takes smaller ones."""

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from schemas.errors import InputError
from train.request import View
from train.workers import Pixels

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class ViewLayout:
    """Where the views of a sample lie in its stretch of a batch's memory, which is cut into slots of one whole picture each.

    Whole pictures come first, a slot each, in the order of the views; smaller ones follow one after the other, whatever slot that is.
    """

    views: Sequence[View]
    image_size: int

    @property
    def whole(self) -> list[View]:
        """The views as large as the model's pictures, in the order of their slots."""
        return [view for view in self.views if not view.size]

    @property
    def num_slots(self) -> int:
        """Whole pictures that a sample's views have room in."""
        return -(-self._end // self._slot_bytes)

    def pictures(self, images: Pixels, view: View) -> Pixels:
        """Return a view's pictures (rows, size, size, 3) in the memory (rows x slots, S, S, 3); what is written there is written in it."""
        stretches = images.reshape(-1, self.num_slots * self._slot_bytes)
        start, size = self._start(view), view.size or self.image_size
        found: Pixels = stretches[:, start : start + 3 * size * size].reshape(-1, size, size, 3)
        return found

    def clear_rest(self, images: Pixels) -> None:
        """Blacken what no view has: the same batch is the same bytes."""
        images.reshape(-1, self.num_slots * self._slot_bytes)[:, self._end :] = 0

    def take(self, pictures: "torch.Tensor", view: View) -> "torch.Tensor":
        """Return a view's pictures (rows, 3, size, size) of a batch's (rows, slots, 3, S, S)."""
        if not view.size:
            return pictures[:, self.whole.index(view)]
        first, start = divmod(self._start(view), self._slot_bytes)
        behind = pictures[:, first:].permute(0, 1, 3, 4, 2).flatten(1)
        own = behind[:, start : start + 3 * view.size * view.size]
        return own.reshape(-1, view.size, view.size, 3).permute(0, 3, 1, 2)

    @property
    def _slot_bytes(self) -> int:
        return 3 * self.image_size * self.image_size

    @property
    def _end(self) -> int:
        return len(self.whole) * self._slot_bytes + sum(3 * view.size * view.size for view in self.views)

    def _start(self, view: View) -> int:
        if not view.size:
            return self.whole.index(view) * self._slot_bytes
        before = self.views[: list(self.views).index(view)]
        return len(self.whole) * self._slot_bytes + sum(3 * other.size * other.size for other in before)


def group_by_size(views: Iterable[View]) -> dict[int, list[View]]:
    """Return the views of each size, which an image tower takes together."""
    found: dict[int, list[View]] = {}
    for view in views:
        found.setdefault(view.size, []).append(view)
    return found


def size_options(tower: "nn.Module") -> dict[str, bool]:
    """Return what makes an image tower take pictures of another size than its own: a ViT's positions are interpolated."""
    from torch import nn  # loaders' workers, which lay views out, need no torch

    if "interpolate_pos_encoding" in inspect.signature(tower.forward).parameters:
        return {"interpolate_pos_encoding": True}
    if any(isinstance(part, nn.Embedding) for part in tower.modules()):
        raise InputError(
            f"{type(tower).__name__} takes pictures of one size only, and a loss asks for smaller views; give its option local_size 0"
        )
    return {}


def check_views(views: Sequence[View], image_size: int) -> None:
    """Raise where a view of its own scale or size cannot be made."""
    for view in views:
        if view.scale and not (len(view.scale) == 2 and 0 < view.scale[0] <= view.scale[1] <= 1):
            raise InputError(
                f"the scale of a view is two shares of the area with 0 < low <= high <= 1, got {view.scale}"
            )
        if not 0 <= view.size <= image_size:
            raise InputError(
                f"a loss asks for views of {view.size} pixels, and the model's pictures have {image_size}; give its option local_size "
                "less, or 0 for as many"
            )
