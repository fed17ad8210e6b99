"""Distillation from stored embeddings, as MobileCLIP trains on a reinforced dataset (Vasu et al. 2023, arXiv 2311.17049)."""

import torch
from torch.nn import functional

from schemas.errors import InputError
from train.contrast import pair_losses, soft_cross_entropy
from train.loss import Loss, Outputs
from train.request import Column, Present, Shape, Text, View


class StoredDistillation(Loss):
    """Match the batch's similarities to those of teachers that ran once, before training; no teacher runs here.

    `image` and `text` are columns of embeddings, of `num_teachers` teachers of one width each, one after the other; their softmax of
    `teacher_scale` times the cosines is averaged over the teachers. `text` embeds `caption`, or where that is empty the dataset's only
    caption. `second_caption` and `second_text` add the same loss with another caption of each sample, where it has one.
    With `crops`, `image` holds embeddings of each stored crop of `train.crop_boxes`, one crop after the other, as `reinforce` writes them
    (of one teacher; of several, those of each crop side by side), and that of the crop which is shown is matched.
    Each loss is `clip` times InfoNCE plus `distill` times the cross-entropy with the teachers.
    """

    def __init__(
        self,
        *,
        image: str = "teacher_image_embedding",
        text: str = "teacher_text_embedding",
        caption: str = "",
        second_caption: str = "",
        second_text: str = "",
        num_teachers: int = 1,
        teacher_scale: float = 100.0,
        clip: float = 0.0,
        distill: float = 1.0,
        crops: bool = False,
    ) -> None:
        if bool(second_caption) != bool(second_text):
            raise InputError("distillation: second_caption and second_text belong together")
        columns = [Column(name=image, kind="vector", of_crop=crops)]
        columns += [Column(name=name, kind="vector") for name in (text, second_text) if name]
        captions = [Text(columns=(caption,) if caption else ())]
        captions += [Text(columns=(second_caption,))] if second_caption else []
        super().__init__((View(), *captions, *map(Present, captions[1:]), *columns))
        self.needs_one_caption = not caption
        self.image = columns[0]
        self.pairs = list(zip(captions, columns[1:], strict=True))
        self.num_teachers = num_teachers
        self.teacher_scale = teacher_scale
        self.clip = clip
        self.distill = distill

    def build(self, shape: Shape) -> None:
        """Check the widths of the stored embeddings."""
        widths = {column.name: shape.widths[column.key] for column in (self.image, *(pair[1] for pair in self.pairs))}
        if len(set(widths.values())) > 1 or next(iter(widths.values())) % self.num_teachers:
            raise InputError(
                f"distillation needs embeddings of one width, a multiple of num_teachers {self.num_teachers}, got {widths}"
            )

    def forward(self, outputs: Outputs) -> dict[str, torch.Tensor]:
        """Return both parts, added over the captions."""
        zero = outputs.logit_scale.new_zeros(())
        clip, distill = zero, zero
        for number, (text, column) in enumerate(self.pairs):
            present = outputs[Present(text)] if number else None
            all_present = outputs.all(Present(text)) if number else None
            distill = distill + self._distill(outputs, text, column, present, all_present)
            if self.clip:
                losses = pair_losses(outputs, text=text, present=all_present)
                clip = clip + (losses if present is None else losses * present).mean()
        return {
            "distillation": self.distill * distill,
            **({"distillation_clip": self.clip * clip} if self.clip else {}),
        }

    def _distill(
        self,
        outputs: Outputs,
        text: Text,
        column: Column,
        present: torch.Tensor | None,
        all_present: torch.Tensor | None,
    ) -> torch.Tensor:
        image_logits = outputs.logit_scale * outputs[View()] @ outputs.all(text).T
        text_logits = outputs.logit_scale * outputs[text] @ outputs.all(View()).T
        targets = (
            self._teach(outputs[self.image], outputs.all(column), all_present),
            self._teach(outputs[column], outputs.all(self.image), all_present),
        )
        if present is not None and all_present is not None:
            # A row or a column without a caption has no similarities to match.
            targets = (targets[0] * present[:, None], targets[1] * present[:, None])
            image_logits, text_logits = (
                logits.masked_fill(~all_present, torch.finfo(logits.dtype).min)
                for logits in (image_logits, text_logits)
            )
        return soft_cross_entropy((image_logits, text_logits), targets)

    def _teach(self, rows: torch.Tensor, columns: torch.Tensor, all_present: torch.Tensor | None) -> torch.Tensor:
        """Return the teachers' mean probabilities among the columns that are present."""
        teachers = zip(rows.chunk(self.num_teachers, dim=1), columns.chunk(self.num_teachers, dim=1), strict=True)
        probabilities = []
        for own, every in teachers:
            cosines = functional.normalize(own, dim=1) @ functional.normalize(every, dim=1).T
            if all_present is not None:
                cosines = cosines.masked_fill(~all_present, torch.finfo(cosines.dtype).min / self.teacher_scale)
            probabilities.append((self.teacher_scale * cosines).softmax(1))
        return torch.stack(probabilities).mean(0)
