"""A temperature that follows the alignment, MACL (Huang et al. 2022, arXiv 2207.07874)."""

import torch
from torch.nn import functional

from schemas.errors import InputError
from train.derived import sum_chunks
from train.loss import Loss, Outputs
from train.request import Text, View

# Own rows whose similarities exist at a time.
_CHUNK = 1024
# Of the temperature it starts from, how low it may fall: pairs that point away from each other would make it 0.
_LEAST_FACTOR = 0.01


class MACL(Loss):
    """InfoNCE whose temperature rises with the mean cosine A of the batch's pairs, and whose rows count more where little is left to learn.

    The temperature is `temperature` (1 + `slope` (A - `start`)): low while pairs are apart, so that hard negatives are pushed away, and
    higher once they are close, so that those that mean the same are borne. `temperature` 0 takes 1 over the model's learned scale, which
    otherwise is not trained. With `reweight` a row counts 1 / (1 - P) times, P the probability of its match, which undoes the fading of
    its gradients: they are those of log(sum of the negatives' exponentials) - the match. Neither the temperature nor the weights have
    gradients through A and P. With slope 0 and without `reweight` this is InfoNCE at that temperature.

    Defaults are those of the authors' code, where both directions are added up, not averaged; `start` is that of the published version.
    The factor on `temperature` is 0.01 or more. Similarities exist for 1,024 samples at a time.
    """

    def __init__(
        self, *, temperature: float = 0.1, slope: float = 1.0, start: float = 0.0, reweight: bool = True
    ) -> None:
        super().__init__()
        if temperature < 0 or not -1 <= start <= 1 or slope < 0:
            raise InputError(
                f"macl: temperature and slope are 0 or more and start is from -1 to 1, got {temperature}, {slope} and {start}"
            )
        self.temperature = temperature
        self.slope = slope
        self.start = start
        self.reweight = reweight

    def forward(self, outputs: Outputs) -> dict[str, torch.Tensor]:
        """Return the loss under its name."""
        if outputs.num_rows * outputs.world.size == 1:
            return {"macl": (0 * outputs[View()]).sum()}  # nothing to tell the match from
        alignment = outputs.world.mean((outputs[View()] * outputs[Text()]).sum(1).mean())
        factor = (1 + self.slope * (alignment - self.start)).clamp_min(_LEAST_FACTOR)
        scale = torch.full_like(factor, 1 / self.temperature) if self.temperature else outputs.logit_scale
        own = outputs.own_rows

        def compute(chunk: slice, rows: torch.Tensor, columns: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            logits = scale * rows @ columns.T
            is_own = torch.arange(len(columns), device=own.device) == own[chunk, None]
            # How far the negatives are above the match: its probability is sigmoid(-lead).
            lead = logits.masked_fill(is_own, -torch.inf).logsumexp(1) - logits.gather(1, own[chunk, None])[:, 0]
            return (_reweigh(lead) if self.reweight else functional.softplus(lead)).sum()

        pairs = ((outputs[View()], outputs.all(Text())), (outputs[Text()], outputs.all(View())))
        parts = [sum_chunks(compute, (rows,), (columns, scale / factor), _CHUNK) for rows, columns in pairs]
        return {"macl": (parts[0] + parts[1]) / (2 * outputs.num_rows)}


def _reweigh(lead: torch.Tensor) -> torch.Tensor:
    """Return softplus(lead) / sigmoid(lead), the lower part taken as fixed: its derivative is 1 wherever it is."""
    odds = lead.detach().exp()
    # Where the match is all but certain both parts are all but 0.
    value = torch.where(odds < 1e-3, 1 + odds / 2, functional.softplus(lead.detach()) * (1 + 1 / odds))
    return value + (lead - lead.detach())
