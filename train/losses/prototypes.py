"""Balanced assignments to prototypes, swapped between views, SwAV (Caron et al. 2020, arXiv 2006.09882)."""

from itertools import count

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from schemas.errors import InputError
from train.heads import Projector
from train.loss import Loss, Outputs
from train.losses.otter import sinkhorn
from train.request import Pooled, Shape, View

# Views whose similarities with the prototypes are in memory at a time.
_CHUNK = 8192
_NUM_LARGE = 2


class Prototypes(Loss):
    """Each view of a picture predicts to which prototypes the picture's two large views were assigned; to be added to info_nce.

    Views are two crops of a share `large_scale` of the area and `num_local` of `local_scale`, of `local_size` pixels (0: the model's), all
    augmented. A projector (one hidden layer of `hidden` channels, batch normalisation over all processes) makes unit vectors of `width`
    numbers. A large view's assignment comes of its cosines with the `num_prototypes` by Sinkhorn's iterations over the whole batch,
    sharpened by `sharpness`, so that every prototype gets as much; all other views predict it, at `temperature`, on the mean. In the first
    `frozen_steps` the prototypes stay as they are. Every process balances the batch by itself: its size times the prototypes in memory.

    Numbers are those of the authors' code. Otherwise than there: AdamW in place of SGD with LARC; prototypes are scaled to length 1 where they are
    compared, not as they are stored; small batches have no queue to be balanced with, so take fewer prototypes than samples for them.
    """

    num_steps: torch.Tensor

    def __init__(
        self,
        *,
        num_prototypes: int = 3000,
        num_local: int = 6,
        large_scale: tuple[float, ...] = (0.14, 1.0),
        local_scale: tuple[float, ...] = (0.05, 0.14),
        local_size: int = 96,
        hidden: int = 2048,
        width: int = 128,
        temperature: float = 0.1,
        sharpness: float = 0.05,
        iterations: int = 3,
        frozen_steps: int = 313,
    ) -> None:
        if num_local < 0 or len(large_scale) != 2 or len(local_scale) != 2:
            raise InputError(
                f"prototypes: num_local is 0 or more, large_scale and local_scale two shares of the area each, got {num_local}, "
                f"{list(large_scale)}, {list(local_scale)}"
            )
        if temperature <= 0 or sharpness <= 0 or num_prototypes < 1 or iterations < 1:
            raise InputError(
                "prototypes: temperature and sharpness are above 0, num_prototypes and iterations 1 or more, got "
                f"{temperature}, {sharpness}, {num_prototypes}, {iterations}"
            )
        numbers = count(1)
        large = [View(number=next(numbers), scale=large_scale) for _ in range(_NUM_LARGE)]
        local = [View(number=next(numbers), scale=local_scale, size=local_size) for _ in range(num_local)]
        views = tuple(Pooled(view) for view in (*large, *local))
        super().__init__(views)
        self.views = views
        self.num_prototypes = num_prototypes
        self.widths = (hidden, width)
        self.temperature = temperature
        self.sharpness = sharpness
        self.iterations = iterations
        self.frozen_steps = frozen_steps

    def build(self, shape: Shape) -> None:
        """Make the projector and the prototypes."""
        self.projector = Projector((shape.image_width, *self.widths))
        self.prototypes = nn.Parameter(functional.normalize(torch.randn(self.num_prototypes, self.widths[1]), dim=1))
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.int64))

    def forward(self, outputs: Outputs) -> dict[str, torch.Tensor]:
        """Return the loss under its name."""
        rows = torch.cat([outputs[view] for view in self.views])
        with outputs.autocast():
            projected = self.projector(rows, outputs.world)
        features = functional.normalize(projected.float(), dim=1).reshape(len(self.views), -1, self.widths[1])
        directions = functional.normalize(self.prototypes, dim=1)
        if self.num_steps < self.frozen_steps:
            directions = directions.detach()
        self.num_steps += 1
        targets = self.assign(features[:_NUM_LARGE], directions, outputs)
        num_rows = features.shape[1]
        step = max(1, _CHUNK // len(self.views))
        total = features.new_zeros(())
        for start in range(0, num_rows, step):
            part = (features[:, start : start + step], targets[:, start : start + step], directions)
            if num_rows <= step:
                total = total + self._add_up(*part)
            else:
                total = total + checkpoint(self._add_up, *part, use_reentrant=False, preserve_rng_state=False)
        return {"prototypes": total / (_NUM_LARGE * (len(self.views) - 1) * num_rows)}

    @torch.no_grad()
    def assign(self, features: torch.Tensor, directions: torch.Tensor, outputs: Outputs) -> torch.Tensor:
        """Return own rows' shares of the prototypes (views, n, prototypes), balanced over each view's whole batch."""
        own = outputs.own_rows
        found = []
        for view in features:
            cosines = outputs.world.gather(view) @ directions.T
            found.append(sinkhorn(-cosines, self.sharpness, self.iterations)[own])
        return torch.stack(found)

    def _add_up(self, features: torch.Tensor, targets: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
        """Return the sum of the cross-entropies of each large view's assignment with all other views' predictions."""
        logits = features @ directions.T / self.temperature
        logarithms = logits.logsumexp(2).sum(0)
        total = logits.new_zeros(())
        for number, target in enumerate(targets):
            others = logits.sum(0) - logits[number]
            total = total + (logarithms - logits[number].logsumexp(1)).sum() - (target * others).sum()
        return total
