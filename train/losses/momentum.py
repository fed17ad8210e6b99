"""Negatives from queues of momentum towers' features, BriVL (Huo et al. 2021, arXiv 2103.06561), the hard ones of them (arXiv 2501.16360)."""

from dataclasses import dataclass

import torch
from torch.nn import functional

from schemas.errors import InputError
from train.derived import sum_chunks
from train.loss import Loss, Outputs
from train.request import Request, Row, Shape, Teacher, Text, View

# Of own rows to everything that they choose among, how many exist at a time.
_SIMILARITIES = 2**24


class Momentum(Loss):
    """InfoNCE whose images choose among features that a slowly following copy of the towers makes of texts, and texts among its images'.

    They choose among the batch's (without `in_batch` their own only) and those of the last `queue_size` samples of earlier batches; a
    queue that is not full yet has as many as it has seen. What stands for a row's own sample is never its negative, be it in the queue or
    in another place of the batch because the pair was drawn twice. `cap`, below 1, leaves out of the queue what is more similar than that
    to the row's own match, which is of the same modality: a suspected match. `hardest`, above 0, keeps so many of the rest, those of the
    largest cosines with the row. The copies keep the share `momentum` of themselves at each step, or the most that another loss with a
    teacher asks for; neither they nor the queues get gradients. The queues hold all processes' samples and are part of the checkpoint.
    Memory is for 2 ** 24 similarities, however large batch and queue; the copies cost one more forward pass of both towers.

    With `queue_size` 0 and `momentum` 0 the value is InfoNCE's where no sample is in the batch twice; gradients move only the side that
    chooses, as anywhere here. Without `in_batch` this is BriVL's loss, by half, with queues that start empty, theirs full of noise, and
    with the model's learned scale, theirs 1 / 0.07; size and momentum are those of their published configuration. Of the second paper,
    which takes the hardest of a queue by their cosines, only the abstract was read; `cap` is ours.
    """

    image_queue: torch.Tensor
    text_queue: torch.Tensor
    queue_rows: torch.Tensor
    num_seen: torch.Tensor

    def __init__(
        self,
        *,
        queue_size: int = 9600,
        momentum: float = 0.99,
        hardest: int = 0,
        cap: float = 1.0,
        in_batch: bool = True,
    ) -> None:
        super().__init__((View(), Text(), Teacher(View()), Teacher(Text()), Row()))
        if queue_size < 0 or hardest < 0:
            raise InputError(f"momentum: queue_size and hardest are 0 or more, got {queue_size} and {hardest}")
        if not queue_size and not in_batch:
            raise InputError("momentum: with queue_size 0 and in_batch false there are no negatives")
        if not 0 <= momentum <= 1 or not -1 < cap <= 1:
            raise InputError(f"momentum: momentum is from 0 to 1 and cap above -1, at most 1, got {momentum} and {cap}")
        self.queue_size = queue_size
        self.teacher_momentum = momentum
        self.hardest = hardest
        self.cap = cap
        self.in_batch = in_batch

    def build(self, shape: Shape) -> None:
        """Make the empty queues."""
        self.register_buffer("image_queue", torch.zeros(self.queue_size, shape.embed_dim))
        self.register_buffer("text_queue", torch.zeros(self.queue_size, shape.embed_dim))
        self.register_buffer("queue_rows", torch.full((self.queue_size,), -1))
        self.register_buffer("num_seen", torch.zeros((), dtype=torch.int64))

    def forward(self, outputs: Outputs) -> dict[str, torch.Tensor]:
        """Return the loss under its name, and let the batch into the queues."""
        with torch.no_grad():
            images, texts = outputs.all(Teacher(View())).detach(), outputs.all(Teacher(Text())).detach()
        rows = outputs.all(Row())
        to_texts = self._contrast(outputs, View(), _Keys(texts, rows, self._filled(self.text_queue)))
        to_images = self._contrast(outputs, Text(), _Keys(images, rows, self._filled(self.image_queue)))
        self._remember(images, texts, rows)
        return {"momentum": (to_texts + to_images) / 2}

    def _contrast(self, outputs: Outputs, queries: Request, keys: "_Keys") -> torch.Tensor:
        """Return the mean cross-entropy of own rows."""

        def compute(chunk: slice, part: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            return self._sum_losses(part, scale, keys, outputs.own_rows[chunk])

        size = max(1, _SIMILARITIES // (len(keys.rows) + len(keys.queue)))
        return sum_chunks(compute, (outputs[queries],), (outputs.logit_scale,), size) / outputs.num_rows

    def _sum_losses(self, part: torch.Tensor, scale: torch.Tensor, keys: "_Keys", own: torch.Tensor) -> torch.Tensor:
        matches, own_samples = keys.features[own], keys.rows[own, None]
        if self.in_batch:
            logits = scale * part @ keys.features.T
            is_own = torch.arange(len(keys.rows), device=own.device) == own[:, None]
            logits = logits.masked_fill((keys.rows == own_samples) & ~is_own, -torch.inf)
        else:
            logits, own = scale * (part * matches).sum(1, keepdim=True), torch.zeros_like(own)
        queued = scale * part @ keys.queue.T
        is_left_out = self.queue_rows[: len(keys.queue)] == own_samples
        if self.cap < 1:
            is_left_out |= matches @ keys.queue.T > self.cap
        queued = queued.masked_fill(is_left_out, -torch.inf)
        if 0 < self.hardest < len(keys.queue):
            queued = queued.topk(self.hardest, dim=1, sorted=False).values
        return functional.cross_entropy(torch.cat([logits, queued], dim=1), own, reduction="sum")

    def _filled(self, queue: torch.Tensor) -> torch.Tensor:
        return queue[: min(int(self.num_seen), self.queue_size)]

    @torch.no_grad()
    def _remember(self, images: torch.Tensor, texts: torch.Tensor, rows: torch.Tensor) -> None:
        """Put a batch in the places of the oldest; of one larger than the queue its end."""
        if not self.queue_size:
            return
        kept = slice(-self.queue_size, None)
        count = len(rows[kept])
        places = (self.num_seen + torch.arange(count, device=rows.device)) % self.queue_size
        self.image_queue[places] = images[kept]
        self.text_queue[places] = texts[kept]
        self.queue_rows[places] = rows[kept]
        self.num_seen += count


@dataclass(frozen=True)
class _Keys:
    """What rows of one modality choose among: the other's features."""

    features: torch.Tensor  # of the whole batch
    rows: torch.Tensor  # the samples that they are of
    queue: torch.Tensor  # of earlier batches
