"""The self-supervised term of SLIP (Mu et al. 2021, arXiv 2112.12750): SimCLR's (Chen et al. 2020, arXiv 2002.05709)."""

import torch
from torch.nn import functional

from train.heads import Projector
from train.loss import Loss, Outputs
from train.request import Pooled, Shape, View


class SimCLR(Loss):
    """Each of two augmented views finds the other among both views of the whole batch, through a projector; to be added to info_nce.

    The projector has two hidden layers of `hidden` channels with batch normalisation over all processes, and `width` outputs.
    """

    def __init__(self, *, temperature: float = 0.1, hidden: int = 4096, width: int = 256) -> None:
        views = (Pooled(View(number=1)), Pooled(View(number=2)))
        super().__init__(views)
        self.views = views
        self.temperature = temperature
        self.hidden = hidden
        self.width = width

    def build(self, shape: Shape) -> None:
        """Make the projector."""
        self.projector = Projector((shape.image_width, self.hidden, self.hidden, self.width))

    def forward(self, outputs: Outputs) -> dict[str, torch.Tensor]:
        """Return the loss under its name."""
        world, own = outputs.world, outputs.own_rows
        first, second = (functional.normalize(self.projector(outputs[view], world), dim=1) for view in self.views)
        everyone = world.gather(first), world.gather(second)
        is_self = torch.arange(len(everyone[0]), device=own.device) == own[:, None]
        losses = []
        for rows, same, other in ((first, *everyone), (second, *everyone[::-1])):
            logits = torch.cat([rows @ other.T, (rows @ same.T).masked_fill(is_self, -torch.inf)], dim=1)
            losses.append(functional.cross_entropy(logits / self.temperature, own))
        return {"simclr": (losses[0] + losses[1]) / 2}
