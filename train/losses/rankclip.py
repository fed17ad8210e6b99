"""Consistent rankings within and across modalities, RankCLIP (Zhang et al. 2024, arXiv 2404.09387), to be added to a contrastive loss."""

import torch

from schemas.errors import InputError
from train.derived import attach_slopes, sum_chunks
from train.loss import Loss, Outputs
from train.request import Text, View

# Own rows whose rankings exist at a time.
_CHUNK = 1024


class RankCLIP(Loss):
    """How unlikely the order of one row of similarities is under another (Plackett and Luce's model), per sample of the list.

    Similarities are the model's scale times the cosines; s of a row of n samples, in the order that the other row ranks them from the
    largest on, has the loss of sum over k (log(sum over j >= k of exp(s_j)) - s_k) / n. The order is taken as it is; gradients are those
    of s. `in_modal` weighs the mean, over the samples, of that of a picture's similarities to all pictures in the order of its text's
    to all texts, and the reverse; `cross_modal` the same of the picture's to all texts and the text's to all pictures. A sample itself is
    in every list; what ranks alike keeps the batch's order. Rankings exist for 1,024 samples at a time.

    Both weights are those of the authors' code, 1/16. Otherwise than there: it multiplies them by a factor that rises over the epochs,
    from 0 to 2 at two thirds of the run, here they stay; it breaks ties by chance; and it adds 1e-10 to a sum before its logarithm, which
    at large scales changes the losses of what is unlikely, where here sums are kept as logarithms.
    """

    def __init__(self, *, in_modal: float = 0.0625, cross_modal: float = 0.0625) -> None:
        super().__init__()
        if min(in_modal, cross_modal) < 0 or not in_modal + cross_modal:
            raise InputError(
                f"rankclip: in_modal and cross_modal are 0 or more, and one of them above, got {in_modal} and {cross_modal}"
            )
        self.in_modal = in_modal
        self.cross_modal = cross_modal

    def forward(self, outputs: Outputs) -> dict[str, torch.Tensor]:
        """Return each part that has a weight, weighted."""
        images, texts = outputs[View()], outputs[Text()]
        all_images, all_texts = outputs.all(View()), outputs.all(Text())
        terms = {}
        if self.in_modal:
            terms["rankclip_in_modal"] = self.in_modal * _mean(outputs, (images, all_images), (texts, all_texts))
        if self.cross_modal:
            terms["rankclip_cross_modal"] = self.cross_modal * _mean(outputs, (images, all_texts), (texts, all_images))
        return terms


_Sides = tuple[torch.Tensor, torch.Tensor]  # own rows, and what they are compared with


def _mean(outputs: Outputs, one: _Sides, other: _Sides) -> torch.Tensor:
    """Return the mean of both directions over own rows, per sample of the list."""
    rows, shared = (one[0], other[0]), (one[1], other[1], outputs.logit_scale)
    return sum_chunks(_sum_directions, rows, shared, _CHUNK) / (2 * len(one[0]) * len(one[1]))


def _sum_directions(
    _: slice,
    rows: torch.Tensor,
    other_rows: torch.Tensor,
    columns: torch.Tensor,
    other_columns: torch.Tensor,
    scale: torch.Tensor,
) -> torch.Tensor:
    one, other = scale * rows @ columns.T, scale * other_rows @ other_columns.T
    return (plackett_luce(one, other) + plackett_luce(other, one)).sum()


@torch.no_grad()
def _order(ranking: torch.Tensor) -> torch.Tensor:
    """Return the places of each row from the last in the ranking to the first; of equals the later comes first."""
    return ranking.flip(1).sort(dim=1, stable=True).indices.neg_().add_(ranking.shape[1] - 1)


def plackett_luce(scores: torch.Tensor, ranking: torch.Tensor) -> torch.Tensor:
    """Return how unlikely each row of scores (n, m) makes the order of `ranking`, largest first: minus the logarithm of its probability (n,)."""
    with torch.no_grad():
        order = _order(ranking)
        ordered = scores.gather(1, order)
        # From the last to the first, what is still to choose from is a running sum.
        sums = ordered.logcumsumexp(1)
        values = (sums - ordered).sum(1)
        # A score has its share of each choice up to its own; torch's own derivative of the sums takes three times as long.
        shares = (ordered + (-sums).flip(1).logcumsumexp(1).flip(1)).exp()
        slopes = torch.empty_like(scores).scatter_(1, order, shares - 1)
    return attach_slopes(values, (scores,), (slopes,), dim=1)
