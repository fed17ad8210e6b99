"""Local-to-global self-distillation, SILC (Naeem et al. 2023, arXiv 2310.13355), by DINO's loss (Caron et al. 2021, arXiv 2104.14294)."""

from copy import deepcopy

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from schemas.errors import InputError
from train.distributed import World
from train.loss import Loss, Outputs
from train.request import Pooled, Shape, Teacher, View

# Views whose outputs are in memory at a time.
_CHUNK = 2048
_INIT_STD = 0.02


class SILC(Loss):
    """What the model makes of small crops is to be what a slowly following teacher makes of the whole picture; to be added to info_nce.

    A head (three layers, `hidden` and `bottleneck` channels) turns the image tower's output into a choice among `num_outputs`; the loss is
    the cross-entropy of the teacher's choice for the training crop and the model's for each of `num_local` crops of a share `local_scale`
    of the area, augmented, of `local_size` pixels (0: the model's). A ViT's positions are interpolated to fewer pixels. The teacher's
    outputs are centred by their running mean, which keeps `centre_momentum` of itself, and sharpened by `teacher_temperature` below
    `student_temperature`, so that they neither are all alike nor say nothing. Centre, teacher and both heads are in the checkpoint.
    With `global_scale` the teacher sees an augmented crop of that share of the area instead, which no text is compared with.
    Eight crops of 96 pixels beside 224 make a step of a ViT three times as long, eight of 224 eleven times.

    The paper has two large views, of 0.4 to 1 of the area, each beside the text; here is one, the training crop: `crop_scale: [0.4, 1]`.
    Its teacher keeps the same share of itself all along, as here. SILC's own code is not public: head, temperatures and centre are
    DINO's, without its warm-up of the last layer, `momentum` is where DINO's begins, and crops are augmented as SimCLR's views are.
    """

    centre: torch.Tensor

    def __init__(
        self,
        *,
        num_local: int = 8,
        local_scale: tuple[float, ...] = (0.05, 0.4),
        local_size: int = 96,
        global_scale: tuple[float, ...] = (),
        num_outputs: int = 65_536,
        hidden: int = 2048,
        bottleneck: int = 256,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        momentum: float = 0.996,
        centre_momentum: float = 0.9,
    ) -> None:
        if num_local < 1 or len(local_scale) != 2 or len(global_scale) not in {0, 2}:
            raise InputError(
                f"silc: num_local is 1 or more, local_scale two shares of the area, global_scale two or none, got {num_local}, "
                f"{list(local_scale)}, {list(global_scale)}"
            )
        if not 0 <= momentum <= 1 or not 0 <= centre_momentum <= 1:
            raise InputError(
                f"silc: momentum and centre_momentum are from 0 to 1, got {momentum} and {centre_momentum}"
            )
        if student_temperature <= 0 or teacher_temperature <= 0:
            raise InputError(f"silc: temperatures are above 0, got {student_temperature} and {teacher_temperature}")
        local = tuple(
            Pooled(View(number=number, scale=local_scale, size=local_size)) for number in range(1, num_local + 1)
        )
        whole = Teacher(Pooled(View(number=num_local + 1, scale=global_scale) if global_scale else View()))
        super().__init__((*local, whole))
        self.local = local
        self.whole = whole
        self.widths = (hidden, bottleneck, num_outputs)
        self.student_temperature = student_temperature
        self.teacher_temperature = teacher_temperature
        self.teacher_momentum = momentum
        self.centre_momentum = centre_momentum

    def build(self, shape: Shape) -> None:
        """Make the head, the teacher's, which begins as it, and the centre, which begins at 0."""
        self.head = _Head(shape.image_width, *self.widths)
        self.teacher_head = deepcopy(self.head).requires_grad_(False)
        self.register_buffer("centre", torch.zeros(self.widths[-1]))

    def forward(self, outputs: Outputs) -> dict[str, torch.Tensor]:
        """Return the loss under its name, and move the centre."""
        with outputs.autocast():
            local = self.head(torch.stack([outputs[view] for view in self.local])).float()
            with torch.no_grad():
                whole = self.teacher_head(outputs[self.whole]).float()
        total = local.new_zeros(())
        directions = self.head.directions
        centre = self.centre.clone()  # what is computed again on the way back has this step's
        step = max(1, _CHUNK // len(self.local))
        for start in range(0, local.shape[1], step):
            part = (local[:, start : start + step], whole[start : start + step], directions, centre)
            if local.shape[1] <= step:
                total = total + self._add_up(*part)
            else:
                total = total + checkpoint(self._add_up, *part, use_reentrant=False, preserve_rng_state=False)
        self._move_centre(whole, outputs.world)
        return {"silc": total / (len(self.local) * local.shape[1])}

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """Move the teacher's head towards the model's."""
        for slow, fast in zip(self.teacher_head.parameters(), self.head.parameters(), strict=True):
            slow.lerp_(fast, 1 - momentum)

    def _add_up(
        self, local: torch.Tensor, whole: torch.Tensor, directions: torch.Tensor, centre: torch.Tensor
    ) -> torch.Tensor:
        """Return the sum of the cross-entropies of views (views, n, width) with their pictures (n, width)."""
        with torch.no_grad():
            scores = (whole @ self.teacher_head.directions.T - centre) / self.teacher_temperature
            targets = scores.softmax(1)
        logits = local @ directions.T / self.student_temperature
        # Targets add up to 1, so -sum(target x log softmax) is the logarithm less the mean under the target.
        return logits.logsumexp(2).sum() - (targets * logits.sum(0)).sum()

    @torch.no_grad()
    def _move_centre(self, whole: torch.Tensor, world: World) -> None:
        """Let the centre follow the mean output, which is that of the mean input of all processes: the last layer has no bias."""
        mean = self.teacher_head.directions @ world.mean(whole.mean(0))
        self.centre.lerp_(mean, 1 - self.centre_momentum)


class _Head(nn.Module):
    """Three layers to a unit vector, and the directions of the outputs, whose cosines with it are theirs."""

    def __init__(self, width: int, hidden: int, bottleneck: int, num_outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=_INIT_STD)
                nn.init.zeros_(layer.bias)
        self.outputs = nn.Parameter(_INIT_STD * torch.randn(num_outputs, bottleneck))

    @property
    def directions(self) -> torch.Tensor:
        """Unit vectors (outputs, bottleneck): their lengths are not learned, which DINO found steadier."""
        return functional.normalize(self.outputs, dim=1)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return unit vectors (..., bottleneck)."""
        return functional.normalize(self.layers(rows), dim=-1)
