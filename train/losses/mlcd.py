"""Multi-label cluster discrimination, MLCD (An et al. 2024, arXiv 2407.17331)."""

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from schemas.errors import InputError
from train.contrast import own_share
from train.loss import Loss, Outputs
from train.request import Column, Shape, View

# Pictures whose cosines with the classes are in memory at a time.
_CHUNK = 512
# As good as minus infinity among logits, without its gradients, which are no numbers.
_NEVER = -1e4


class MLCD(Loss):
    """A picture is close to the prototypes of its own classes and far from those of others; the text tower neither runs nor learns.

    `labels` is a column of lists of class numbers, such as `cluster_ids` of `cluster` with `num_nearest: 8`, of which the first
    `num_labels` count (0: all). With s the cosine of picture and prototype times `scale`, the loss is log(1 + sum over the others of
    exp(s)) + log(1 + sum over the own of exp(-s)), each part logged; `separate: false` keeps them together, log(1 + the product of both
    sums), which with one label is the softmax's cross-entropy. A picture without labels takes no part.

    A step compares with the classes of its whole batch and others drawn at random, in all `share` of the classes; 1 is all of them. So
    time and memory go with these. The prototypes are parameters of all classes, as wide as the embedding, on every process: a million at
    width 512 take 2 GB, 8 GB with gradients and AdamW's moments, 6 GB more while several processes average them, 6 GB in a checkpoint.

    Of the paper the abstract was read, which separates the losses of positive and negative classes: the formula is our reading of it. Otherwise
    than in the authors' code for one label (UNICOM; that for several is not public), no margin is added to the cosines.
    """

    seed: torch.Tensor
    num_steps: torch.Tensor

    def __init__(
        self,
        *,
        labels: str = "cluster_ids",
        num_labels: int = 0,
        share: float = 0.1,
        scale: float = 64.0,
        separate: bool = True,
    ) -> None:
        if not 0 < share <= 1 or scale <= 0 or num_labels < 0:
            raise InputError(
                f"mlcd: share is above 0 and at most 1, scale above 0, num_labels 0 or more, got {share}, {scale}, {num_labels}"
            )
        column = Column(name=labels, kind="labels")
        super().__init__((View(), column))
        self.labels = column
        self.num_labels = num_labels
        self.share = share
        self.scale = scale
        self.separate = separate

    def build(self, shape: Shape) -> None:
        """Make the prototypes, one for each class, and what the classes of a step are drawn from."""
        num_classes = shape.num_labels[self.labels.key]
        if not num_classes:
            raise InputError(f"mlcd: no sample has a label in column {self.labels.name!r}; name another in labels")
        self.prototypes = nn.Parameter(0.01 * torch.randn(num_classes, shape.embed_dim))
        self.register_buffer("seed", torch.randint(2**31, ()))
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.int64))

    def forward(self, outputs: Outputs) -> dict[str, torch.Tensor]:
        """Return both parts, or the one that holds them."""
        own, everyone = (
            labels[:, : self.num_labels or None] for labels in (outputs[self.labels], outputs.all(self.labels))
        )
        classes = self._choose_classes(everyone)
        places = torch.searchsorted(classes, own.contiguous()).masked_fill(own < 0, -1)
        chosen = self.prototypes if len(classes) == len(self.prototypes) else self.prototypes[classes]
        prototypes = functional.normalize(chosen, dim=1)
        parts = self._compare(outputs[View()], prototypes, places)
        shares = own_share((own >= 0).any(1), (everyone >= 0).any(1))
        values = (parts * shares).mean(1)
        return {"mlcd_negative": values[0], "mlcd_positive": values[1]} if self.separate else {"mlcd": values[0]}

    @torch.no_grad()
    def _choose_classes(self, labels: torch.Tensor) -> torch.Tensor:
        """Return the classes of this step in ascending order: a function of the labels of all processes, the seed and the step."""
        self.num_steps += 1
        count = len(self.prototypes)
        positives: torch.Tensor = torch.unique(labels[labels >= 0])
        num_others = math.ceil(self.share * count) - len(positives)
        if self.share == 1:
            return torch.arange(count, device=labels.device)
        if num_others <= 0:
            return positives
        generator = np.random.default_rng([int(self.seed), int(self.num_steps)])
        drawn = generator.choice(count - len(positives), num_others, replace=False, shuffle=False)
        others = torch.from_numpy(np.sort(drawn)).to(labels.device)
        # The k-th class that is not among the positives: k, and as many more as positives lie below it.
        others += torch.searchsorted(positives - torch.arange(len(positives), device=labels.device), others, right=True)
        return torch.cat([positives, others]).sort().values

    def _compare(self, pictures: torch.Tensor, prototypes: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Return the parts of each picture's loss, (parts, n); with many, their cosines are computed once more on the way back."""
        if len(pictures) <= _CHUNK:
            return self._compare_few(pictures, prototypes, places)
        found = [
            checkpoint(self._compare_few, part, prototypes, own, use_reentrant=False, preserve_rng_state=False)
            for part, own in zip(torch.split(pictures, _CHUNK), torch.split(places, _CHUNK), strict=True)
        ]
        return torch.cat(found, dim=1)

    def _compare_few(self, pictures: torch.Tensor, prototypes: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        logits = self.scale * pictures @ prototypes.T
        # Past the end of a list its first place stands, or any where the list is empty.
        filled = torch.where(places < 0, places[:, :1], places).clamp_min(0)
        own = logits.gather(1, filled)
        positive = torch.where(places < 0, _NEVER, -own).logsumexp(1)
        negative = logits.scatter(1, filled, _NEVER).logsumexp(1)
        if self.separate:
            return functional.softplus(torch.stack([negative, positive]))
        return functional.softplus(negative + positive)[None]
