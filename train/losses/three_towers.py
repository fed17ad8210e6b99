"""A frozen third tower beside both, Three Towers (Kossen et al. 2023, arXiv 2305.16999)."""

import torch
from torch import nn
from torch.nn import functional

from schemas.errors import InputError
from train.contrast import cross_entropies, pair_losses
from train.loss import Loss, Outputs
from train.request import Column, Shape, Text, View


class ThreeTowers(Loss):
    """The mean of three contrasts: of pictures and texts, of pictures and a pretrained tower's embeddings, and of texts and these.

    `embedding` is the column of that tower's stored embeddings of the pictures, of any width, such as `clip_embedding`'s or a
    classifier's; it neither runs nor learns here. The second contrast counts `image` times, the third `text` times as much as the first,
    and the sum is divided by that of all three; with both 0 this is InfoNCE. All three are InfoNCE in both directions at the model's own
    scale. The first compares the model's embeddings as they are. For the second and third each side has a linear map without bias into
    a space as wide as the model's (four maps: of pictures, of texts, and of the third tower for each of them), and is then made a unit
    vector. The maps are saved for going on, not in the model, which is the two towers alone.

    Of the paper the abstract was read, which says what is aligned with what; that maps are linear, one for each side, that one scale
    serves all and that the contrasts count alike is ours.
    """

    def __init__(self, *, embedding: str = "teacher_image_embedding", image: float = 1.0, text: float = 1.0) -> None:
        if min(image, text) < 0:
            raise InputError(f"three_towers: image and text are 0 or more, got {image} and {text}")
        column = Column(name=embedding, kind="vector")
        super().__init__((View(), Text(), *([column] * bool(image + text))))
        self.column = column
        self.weights = {"image": image, "text": text}

    def build(self, shape: Shape) -> None:
        """Make the maps of the contrasts that count."""
        sides = {name: request for name, request in (("image", View()), ("text", Text())) if self.weights[name]}
        self.sides = sides
        width = shape.widths[self.column.key] if sides else 0
        self.heads = nn.ModuleDict({name: nn.Linear(shape.embed_dim, shape.embed_dim, bias=False) for name in sides})
        self.third_heads = nn.ModuleDict({name: nn.Linear(width, shape.embed_dim, bias=False) for name in sides})

    def forward(self, outputs: Outputs) -> dict[str, torch.Tensor]:
        """Return each contrast that counts with its share."""
        whole = 1 + sum(self.weights.values())
        terms = {"three_towers": pair_losses(outputs).mean() / whole}
        for name, request in self.sides.items():
            # Mapped before they are exchanged: each process maps its own.
            own = functional.normalize(self.heads[name](outputs[request]), dim=1)
            third = functional.normalize(self.third_heads[name](outputs[self.column].detach()), dim=1)
            to_third = cross_entropies(outputs, own, outputs.world.gather(third))
            from_third = cross_entropies(outputs, third, outputs.world.gather(own))
            terms[f"three_towers_{name}"] = self.weights[name] / whole * (to_third + from_third).mean() / 2
        return terms
