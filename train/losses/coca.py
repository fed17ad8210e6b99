"""A captioning head beside the contrast, CoCa (Yu et al. 2022, arXiv 2205.01917)."""

import torch
from torch import nn

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
    """

    def __init__(self, *, layers: int = 6, num_queries: int = 256, chunk: int = 1024) -> None:
        super().__init__((Patches(), Tokens(), Ids()))
        self.layers = layers
        self.num_queries = num_queries
        self.chunk = chunk

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
        with outputs.autocast():
            patches = self.image_norm(self.image_map(outputs[Patches()]))
            summaries, _ = self.pool(self.queries.expand(len(patches), -1, -1), patches, patches, need_weights=False)
            hidden = self.decoder(tokens, summaries, tgt_mask=causal, tgt_is_causal=True)
            is_asked = ids >= 0
            total = sum_token_losses(self.vocabulary, hidden[is_asked], ids[is_asked], self.chunk)
        # Tokens per process in the mean, so that the mean over the processes is that over all tokens.
        return {"coca": total / outputs.world.mean(is_asked.sum().float()).clamp_min(1)}
