"""Measures one task with one model: encodes what the task holds and asks its metric."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, singledispatchmethod

import torch

from schemas.progress import Progress
from train.evaluate.association import make_prompt, measure_associations
from train.evaluate.attack import find_target, measure_attack, stamp_all
from train.evaluate.composition import measure_composition
from train.evaluate.embedding import measure_embedding
from train.evaluate.features import Encoder, encode_images, encode_texts, project_images
from train.evaluate.few_shot import measure_near_shots
from train.evaluate.probe import measure_few_shot, measure_probe
from train.evaluate.relevance import measure_relevance
from train.evaluate.retrieval import UniqueTexts, measure_retrieval
from train.evaluate.task import AssociationTask, CompositionTask, ImageSet, ProbeTask, RetrievalTask, Task, ZeroShotTask
from train.evaluate.zeroshot import encode_classes, measure_zeroshot
from train.evaluation import EvaluationOptions, Perturb


@dataclass(frozen=True)
class Measure:
    """A model, and how it is to be measured; call it with a task. `start` is told how many images come and returns where to report them."""

    model: Encoder
    options: EvaluationOptions
    batch_size: int
    num_workers: int
    perturb: Perturb | None
    start: Callable[[int], Progress]

    @singledispatchmethod
    def __call__(self, task: Task) -> dict[str, float]:
        """Return the metrics of a task."""
        raise TypeError(f"no metric for a {type(task).__name__}")

    @__call__.register
    def _(self, task: RetrievalTask) -> dict[str, float]:
        images = self._images(task.images)
        texts = UniqueTexts.of(task.captions)
        features = self._texts(texts.texts)
        metrics = measure_retrieval(images, features, texts, task.groups)
        if task.grades:
            metrics |= measure_relevance(images, features, texts.texts, task.grades)
        if self.options.embedding:
            metrics |= measure_embedding(images, features, texts.of_image)
        if self.options.compositional and self.perturb is not None:
            captions = [own[0] for own in task.captions]
            negatives = [self.perturb(caption) for caption in captions]
            metrics |= measure_composition(images, self._texts, captions, negatives)
        return metrics

    @__call__.register
    def _(self, task: ZeroShotTask) -> dict[str, float]:
        images = self._images(task.images)
        classes = encode_classes(self._texts, task.classnames, task.templates)
        metrics = measure_zeroshot(images, classes, task.labels, task.groups)
        target = find_target(task.classnames, self.options.target) if self.options.trigger else -1
        if target >= 0:
            change = partial(stamp_all, trigger=self.options.trigger, place=self.options.trigger_place)
            stamped = self._images(task.images, change=change)
            metrics |= measure_attack(images, stamped, classes, task.labels, target)
        return metrics

    @__call__.register
    def _(self, task: ProbeTask) -> dict[str, float]:
        # Fitting is the work here: it goes where the model is.
        device = getattr(self.model, "device", torch.device("cpu"))
        training = self._images(task.images, before_projection=True).to(device)
        tests = self._images(task.test_images, before_projection=True).to(device)
        own = (training, task.labels, tests, task.test_labels, len(task.classnames))
        metrics = measure_probe(*own) if self.options.probe else {}
        if not self.options.shots:
            return metrics
        metrics |= measure_few_shot(*own, shots=self.options.shots, num_seeds=self.options.num_seeds)
        classes = encode_classes(self._texts, task.classnames, task.templates).to(device)
        shared = (
            project_images(self.model, training),
            task.labels,
            project_images(self.model, tests),
            task.test_labels,
        )
        return metrics | measure_near_shots(
            *shared, classes, shots=self.options.shots, num_seeds=self.options.num_seeds
        )

    @__call__.register
    def _(self, task: CompositionTask) -> dict[str, float]:
        images, positions = task.images.unique()
        features = self._images(images)[torch.from_numpy(positions)]
        return measure_composition(features, self._texts, task.captions, task.negatives)

    @__call__.register
    def _(self, task: AssociationTask) -> dict[str, float]:
        cues = self._texts([make_prompt(game.cue) for game in task.instances])
        return measure_associations(self._images(task.images), cues, task.instances)

    def _images(
        self,
        images: ImageSet,
        *,
        change: Callable[[torch.Tensor], torch.Tensor] | None = None,
        before_projection: bool = False,
    ) -> torch.Tensor:
        bar = self.start(len(images))
        try:
            return encode_images(
                self.model,
                images,
                batch_size=self.batch_size,
                num_workers=self.num_workers,
                progress=bar,
                change=change,
                before_projection=before_projection,
            )
        finally:
            bar.close()

    def _texts(self, texts: Sequence[str]) -> torch.Tensor:
        return encode_texts(self.model, texts, batch_size=self.batch_size)
