"""The settings of an evaluation: what is measured beyond retrieval and zero-shot classification."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from schemas.errors import InputError
from train.trigger import check_trigger

# Raised where the same model, data and settings give other numbers, so that no older evaluation passes for a new one.
# 2: the pixels of CLIP's own preprocessing; ARO's boxes.
VERSION = 2

# Makes wrong captions of a caption, by kind: "order" -> the texts in which the order of the words is another.
Perturb = Callable[[str], Mapping[str, Sequence[str]]]


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """What to measure, and how.

    EvaluationOptions(label_column="kind", templates=("a photo of a {c}.",))     # classify Winnow datasets too
    EvaluationOptions(group_column="source")                                     # every metric per source, and the worst
    EvaluationOptions(relevance_column="relevance")                              # NDCG@10 of images found by captions
    EvaluationOptions(probe=True, shots=(1, 4, 16))                              # linear probe, few-shot probes
    EvaluationOptions(trigger="patch", target="banana")                          # attack success rate
    """

    label_column: str = ""  # classify Winnow datasets too, by this column of their JSON
    templates: tuple[str, ...] = ()  # prompts with {c} for the class; empty: those of the data
    group_column: str = ""  # metrics per value of this column of Winnow datasets' JSON
    relevance_column: str = ""  # a number of Winnow datasets' pairs, how relevant the image is to its caption: NDCG
    negatives: tuple[str, ...] = ()  # text columns of Winnow datasets that hold wrong captions; a kind each
    probe: bool = False  # fit a linear classifier on the images' features
    shots: tuple[int, ...] = ()  # fit it on so many images of each class
    num_seeds: int = 3  # draws of those images
    compositional: bool = False  # wrong captions made of the captions: attribution, relation, order of the words
    embedding: bool = False  # modality gap, alignment, uniformity, effective rank
    trigger: str = ""  # measure the success of a backdoor with this trigger
    target: str = ""  # the class it leads to
    trigger_place: str = "corner"  # corner, or random: a place of its own on each picture, for patch and yellow

    def __post_init__(self) -> None:
        if bool(self.trigger) != bool(self.target):
            raise InputError(
                f"a backdoor has a trigger and a target class, got trigger {self.trigger!r} and target {self.target!r}"
            )
        if self.trigger:
            check_trigger(self.trigger, self.trigger_place)
        if any(count < 1 for count in self.shots) or self.num_seeds < 1:
            raise InputError(f"shots and num_seeds must be at least 1, got {list(self.shots)} and {self.num_seeds}")

    @property
    def needs_training_images(self) -> bool:
        """Whether a classifier is fitted."""
        return self.probe or bool(self.shots)
