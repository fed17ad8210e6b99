"""A captioning head beside the contrast, CoCa (Yu et al. 2022, arXiv 2205.01917)."""

import math

import torch
from torch import nn
from torch.nn import functional

from schemas.errors import InputError
from train.heads import num_heads, sum_token_losses
from train.loss import Loss, Outputs
from train.request import Ids, Patches, Shape, Tokens


class CoCa(Loss):
    """Cross-entropy of each next token of the text given the ones before it and the picture; use `{info_nce: 1, coca: 2}`.

    The causal text tower is the lower half of the decoder and sees no picture; `layers` more, with attention to `num_queries` summaries of
    the image tower's patches, belong to the loss, as does the output over the vocabulary. They are saved for going on, not in the model.
    Tokens get their outputs over the vocabulary `chunk` at a time and once more on the way back, padding gets none: memory is chunk x
    vocabulary however large the batch.

    `visual_weights`, two numbers, weighs the tokens by what the picture has to do with them, CAL (Xiao et al. 2024, arXiv 2405.17871, whose
    code has 1 and 5): how much the picture raises a token's own logit, but no less than the first number and no more than the second, and of
    that the mean with the tokens beside it. The loss is the weighted mean; weights have no gradients. It costs the layers once more, without
    attention to the picture and without a way back. Otherwise than in the authors' code: only the tokens of its own caption are beside a
    token, where theirs runs on into the batch's next one; without the picture means without the attention to it, where theirs hides the
    picture's tokens.
    """

    def __init__(
        self,
        *,
        layers: int = 6,
        num_queries: int = 256,
        chunk: int = 1024,
        visual_weights: tuple[float, ...] = (),
    ) -> None:
        super().__init__((Patches(), Tokens(), Ids()))
        if visual_weights and not (
            len(visual_weights) == 2 and 0 <= visual_weights[0] <= visual_weights[1] < math.inf and visual_weights[1]
        ):
            raise InputError(
                "coca: visual_weights are the least and the most that a token counts, two numbers of 0 or more like [1, 5], "
                f"got {list(visual_weights)}"
            )
        self.layers = layers
        self.num_queries = num_queries
        self.chunk = chunk
        self.visual_weights = visual_weights

    def build(self, shape: Shape) -> None:
        """Make the pooler, the upper half of the decoder and the output."""
        if not shape.is_text_causal:
            raise InputError(
                "coca needs a causal text tower, whose tokens do not see what they must predict; leave init out or use a CLIP"
            )
        width = shape.text_width
        self.queries = nn.Parameter(torch.randn(self.num_queries, width) * width**-0.5)
        self.image_map = nn.Linear(shape.image_width, width)
        self.image_norm = nn.LayerNorm(width)
        self.pool = nn.MultiheadAttention(width, num_heads(width), batch_first=True)
        layer = nn.TransformerDecoderLayer(
            width, num_heads(width), 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, self.layers, norm=nn.LayerNorm(width))
        self.vocabulary = nn.Linear(width, shape.vocab_size)

    def forward(self, outputs: Outputs) -> dict[str, torch.Tensor]:
        """Return the mean over the tokens of the whole batch."""
        tokens, ids = outputs[Tokens()][:, :-1], outputs[Ids()][:, 1:]
        causal = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], device=tokens.device)
        is_asked = ids >= 0
        with outputs.autocast():
            patches = self.image_norm(self.image_map(outputs[Patches()]))
            summaries, _ = self.pool(self.queries.expand(len(patches), -1, -1), patches, patches, need_weights=False)
            hidden = self.decoder(tokens, summaries, tgt_mask=causal, tgt_is_causal=True)
            if self.visual_weights:
                weights = self.weigh_tokens(hidden, self._decode_blindly(tokens, causal), ids)
                total = sum_token_losses(self.vocabulary, hidden[is_asked], ids[is_asked], self.chunk, weights)
                return {"coca": total / outputs.world.mean(weights.sum()).clamp_min(torch.finfo(weights.dtype).tiny)}
            total = sum_token_losses(self.vocabulary, hidden[is_asked], ids[is_asked], self.chunk)
        # Tokens per process in the mean, so that the mean over the processes is that over all tokens.
        return {"coca": total / outputs.world.mean(is_asked.sum().float()).clamp_min(1)}

    @torch.no_grad()
    def weigh_tokens(self, seeing: torch.Tensor, blind: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Return the weights of the tokens that are asked for (those of `ids` (n, length) from 0 up, in order).

        `seeing` and `blind` (n, length, width) are what the decoder makes with the picture and without it.
        """
        is_asked = ids >= 0
        change = (seeing[is_asked] - blind[is_asked]).float()
        # A token's own logit takes no outputs over the vocabulary, only its row; the bias is in both.
        parts = zip(torch.split(change, self.chunk), torch.split(ids[is_asked], self.chunk), strict=True)
        raised = [(part * self.vocabulary.weight[own].float()).sum(-1) for part, own in parts]
        clipped = torch.cat(raised).clamp(*self.visual_weights) if raised else change.new_zeros(0)
        spread = change.new_zeros(ids.shape).masked_scatter(is_asked, clipped)
        # With the neighbours: where one is missing, at either end, it is in neither mean.
        around, present = (functional.avg_pool1d(rows, 3, 1, 1) for rows in (spread, is_asked.to(spread.dtype)))
        return around[is_asked] / present[is_asked]

    @torch.no_grad()
    def _decode_blindly(self, tokens: torch.Tensor, causal: torch.Tensor) -> torch.Tensor:
        """Return what the decoder makes of the tokens where nothing comes from the picture."""
        hidden = tokens
        for layer in self.decoder.layers:
            assert isinstance(layer, nn.TransformerDecoderLayer)
            rows = layer.norm1(hidden)
            attended, _ = layer.self_attn(rows, rows, rows, attn_mask=causal, is_causal=True, need_weights=False)
            hidden = hidden + attended
            hidden = hidden + layer.linear2(functional.gelu(layer.linear1(layer.norm3(hidden))))
        assert self.decoder.norm is not None
        found: torch.Tensor = self.decoder.norm(hidden)
        return found
