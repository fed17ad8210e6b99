"""Three more supervisions of one pair, DeCLIP (Li et al. 2021, arXiv 2110.05208)."""

import torch
from torch import nn
from torch.nn import functional

from train.contrast import cross_entropies, pair_losses
from train.distributed import World
from train.heads import Projector, sum_token_losses
from train.loss import Loss, Outputs
from train.request import Ids, Pooled, Shape, Text, Tokens, View

_AUGMENTED, _MASKED, _VIEW = Text(variant="augmented"), Text(variant="masked"), View(number=1)
# Masked tokens that get their outputs over the vocabulary at a time.
_CHUNK = 1024


class DeCLIP(Loss):
    """InfoNCE of two views with two forms of the text, InfoNCE with each text's nearest neighbour, SimSiam, and masked words.

    The neighbour is the closest of the last `bank_size` texts that earlier batches showed, so never the text itself; the bank is part of
    the checkpoint. Masked words are predicted from the text tower's tokens, which in a causal tower see only what comes before.

    Otherwise than the authors' code: the scale is not kept within exp(3) and exp(6); augmented texts have words swapped or left out, none
    replaced by synonyms; only plain texts have neighbours and are remembered, where theirs are augmented ones too; and neighbours look for
    images as well as images for neighbours. SimSiam reads the image tower's output before the projection, theirs after it.
    """

    bank: torch.Tensor
    num_seen: torch.Tensor

    def __init__(
        self,
        *,
        multi_view: float = 0.4,
        neighbour: float = 0.2,
        self_supervised: float = 0.2,
        masked: float = 0.2,
        bank_size: int = 65_536,
        hidden: int = 1024,
    ) -> None:
        super().__init__((
            View(),
            _VIEW,
            Text(),
            _AUGMENTED,
            Tokens(_MASKED),
            Ids(_MASKED),
            Pooled(View()),
            Pooled(_VIEW),
        ))
        self.weights = {"multi_view": multi_view, "neighbour": neighbour, "self": self_supervised, "masked": masked}
        self.bank_size = bank_size
        self.hidden = hidden

    def build(self, shape: Shape) -> None:
        """Make the projector, the predictor, the output over the vocabulary, and the empty bank."""
        self.projector = Projector((shape.image_width, self.hidden, self.hidden, self.hidden), is_last_normalised=True)
        self.predictor = Projector((self.hidden, max(1, self.hidden // 2), self.hidden))
        self.vocabulary = nn.Linear(shape.text_width, shape.vocab_size)
        self.register_buffer("bank", torch.zeros(self.bank_size, shape.embed_dim))
        self.register_buffer("num_seen", torch.zeros((), dtype=torch.int64))

    def forward(self, outputs: Outputs) -> dict[str, torch.Tensor]:
        """Return the four parts, weighted."""
        pairs = [(view, text) for view in (View(), _VIEW) for text in (Text(), _AUGMENTED)]
        parts = {
            "multi_view": torch.stack([pair_losses(outputs, *pair).mean() for pair in pairs]).mean(),
            "neighbour": self._neighbour(outputs),
            "self": self._self(outputs),
            "masked": self._masked(outputs),
        }
        self._remember(outputs.all(Text()))
        return {f"declip_{name}": self.weights[name] * value for name, value in parts.items()}

    def _neighbour(self, outputs: Outputs) -> torch.Tensor:
        filled = self.bank[: min(int(self.num_seen), self.bank_size)]
        if not len(filled):
            return outputs.logit_scale * 0.0
        with torch.no_grad():
            nearest = filled[(outputs[Text()] @ filled.T).argmax(1)]
            every_nearest = outputs.world.gather(nearest)
        losses = []
        for view in (View(), _VIEW):
            losses.append(cross_entropies(outputs, outputs[view], every_nearest))
            losses.append(cross_entropies(outputs, nearest, outputs.all(view)))
        return torch.stack(losses).mean()

    def _self(self, outputs: Outputs) -> torch.Tensor:
        targets = [self.projector(outputs[Pooled(view)], outputs.world) for view in (View(), _VIEW)]
        guesses = [self.predictor(target, outputs.world) for target in targets]
        cosines = [
            functional.cosine_similarity(guess, target.detach(), dim=1).mean()
            for guess, target in zip(guesses, targets[::-1], strict=True)
        ]
        return -(cosines[0] + cosines[1]) / 2

    def _masked(self, outputs: Outputs) -> torch.Tensor:
        ids, tokens = outputs[Ids(_MASKED)], outputs[Tokens(_MASKED)]
        is_masked = ids >= 0
        with outputs.autocast():
            total = sum_token_losses(self.vocabulary, tokens[is_masked], ids[is_masked], _CHUNK)
        return total / _mean_count(is_masked, outputs.world)

    @torch.no_grad()
    def _remember(self, texts: torch.Tensor) -> None:
        """Put a batch's texts in the places of the oldest."""
        texts = texts[-self.bank_size :]
        places = (self.num_seen + torch.arange(len(texts), device=texts.device)) % self.bank_size
        self.bank[places] = texts.detach()
        self.num_seen += len(texts)


def _mean_count(is_masked: torch.Tensor, world: World) -> torch.Tensor:
    return world.mean(is_masked.sum().float()).clamp_min(1)
