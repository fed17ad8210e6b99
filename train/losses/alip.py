"""The gated two-path loss of ALIP (Yang et al. 2023, arXiv 2308.08428)."""

import torch

from train.contrast import pair_losses
from train.loss import Loss, Outputs
from train.request import Present, Text, View


class ALIP(Loss):
    """InfoNCE of the images with the drawn texts and with a second caption, each pair weighed by how well the three agree.

    Gates compare a sample's cosines with running means of the batches' (text and caption, image and text, image and caption), which start
    at 1 and are part of the checkpoint. A sample whose text agrees with its caption at least as well as the mean counts fully, on both
    paths; otherwise by exp(gamma times how far it is below). A sample without a caption takes part in the first path only, fully.
    """

    h_tc: torch.Tensor
    h_xt: torch.Tensor
    h_xc: torch.Tensor

    def __init__(self, *, caption: str = "recaption", gamma: float = 2.0, momentum: float = 0.99) -> None:
        captions = Text(columns=(caption,))
        super().__init__((View(), Text(), captions, Present(captions)))
        self.caption = captions
        self.gamma = gamma
        self.momentum = momentum
        for name in ("h_tc", "h_xt", "h_xc"):
            self.register_buffer(name, torch.tensor(1.0))

    def forward(self, outputs: Outputs) -> dict[str, torch.Tensor]:
        """Return the losses of both paths; the running means move first, as the authors' do."""
        present, all_present = outputs[Present(self.caption)], outputs.all(Present(self.caption))
        with torch.no_grad():
            cosines = _cosines(outputs.all(View()), outputs.all(Text()), outputs.all(self.caption))
            if all_present.any():
                self._follow(*(cosine[all_present] for cosine in cosines))
        w_s, w_t, w_c = self.gates(*_cosines(outputs[View()], outputs[Text()], outputs[self.caption]))
        ones = torch.ones_like(w_s)
        text_weights = torch.where(present, w_s * w_t, ones)
        caption_weights = torch.where(present, w_s * w_c, torch.zeros_like(w_s))
        return {
            "alip_text": (text_weights * pair_losses(outputs)).mean(),
            "alip_caption": (caption_weights * pair_losses(outputs, text=self.caption, present=all_present)).mean(),
        }

    def gates(self, s_tc: torch.Tensor, s_xt: torch.Tensor, s_xc: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return W_s, W_t and W_c for cosines of text and caption, image and text, image and caption."""
        raw = torch.exp(self.gamma * (s_tc - self.h_tc))
        w_t, w_c = torch.exp(self.gamma * (s_xt - self.h_xt)), torch.exp(self.gamma * (s_xc - self.h_xc))
        ones = torch.ones_like(raw)
        return raw.clamp_max(1), torch.where(raw < 1, w_t, ones), torch.where(raw < 1, w_c, ones)

    def _follow(self, s_tc: torch.Tensor, s_xt: torch.Tensor, s_xc: torch.Tensor) -> None:
        for mean, cosine in ((self.h_tc, s_tc), (self.h_xt, s_xt), (self.h_xc, s_xc)):
            mean.lerp_(cosine.mean(), 1 - self.momentum)


@torch.no_grad()
def _cosines(images: torch.Tensor, texts: torch.Tensor, captions: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (texts * captions).sum(1), (images * texts).sum(1), (images * captions).sum(1)
