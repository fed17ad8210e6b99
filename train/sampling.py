"""How the draws of a run depart from the dataset's weights: the settings, and what they ask of the dataset.

The columns they name are those of the dataset's sidecars (`build.columns` carries them there) or of the files in `train.columns`.
"""

from dataclasses import dataclass
from typing import Literal

from schemas.errors import InputError
from train.request import Column


@dataclass(frozen=True, kw_only=True)
class Curriculum:
    """Draw from a share of the samples, the best by a score, that grows or shrinks from epoch to epoch; the share is of those with a weight.

    Curriculum(by="b32.clip_score", start=1.0, end=0.3)       # all at first, the best 30 % at the end
    Curriculum(by="noise.difficulty", start=0.2, highest=False, epochs=8)    # the easiest fifth at first, all from epoch 8 on
    """

    by: str  # column of a score
    start: float = 1.0  # share in the first epoch, above 0 and at most 1
    end: float = 1.0  # share once `epochs` are over
    epochs: float = 0.0  # how long the share moves, linearly; 0: the whole run
    highest: bool = True  # the best are the highest scores; false: the lowest

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            if not 0 < getattr(self, name) <= 1:
                raise InputError(f"sampling.curriculum.{name} must be above 0 and at most 1, got {getattr(self, name)}")
        if self.epochs < 0:
            raise InputError(f"sampling.curriculum.epochs must not be negative, got {self.epochs}")


@dataclass(frozen=True, kw_only=True)
class Repetition:
    """Draw a sample less often the more often it was drawn, and never more than so many times in the run.

    Repetition(decay=0.8)          # every draw takes a fifth of a sample's weight
    Repetition(max_draws=4)        # repeats beyond about four teach little
    """

    decay: float = 1.0  # factor on the weight per draw so far, above 0 and at most 1
    max_draws: int = 0  # in the whole run; 0: any number

    def __post_init__(self) -> None:
        if not 0 < self.decay <= 1:
            raise InputError(f"sampling.repetition.decay must be above 0 and at most 1, got {self.decay}")
        if self.max_draws < 0:
            raise InputError(f"sampling.repetition.max_draws must not be negative, got {self.max_draws}")


@dataclass(frozen=True, kw_only=True)
class Balance:
    """Even out how often the values of a column are drawn: classes, sources, or a list of concepts per sample.

    A sample's weight is divided by the weight of all samples with its value, to a power: 1 draws every value equally often, 0.5 in
    proportion to the root, 1 - 1/T is a mixture of sources with temperature T. A sample with a list counts as its rarest value
    (repeat-factor sampling, Gupta et al. 2019, arXiv 1908.03195); those without any value make one group.
    """

    by: str  # column of labels, or of lists of them
    power: float = 1.0  # from 0 (as the weights say) to 1 (equally often)
    min_count: int = 1  # text values on fewer samples are left out

    def __post_init__(self) -> None:
        if not 0 <= self.power <= 1:
            raise InputError(f"sampling.balance.power must be from 0 to 1, got {self.power}")


@dataclass(frozen=True, kw_only=True)
class Batches:
    """What the samples of a batch have in common, for harder negatives: a value of a column, or their neighbourhood.

    Batches(by="source")                               # every batch from one source, or, by="clusters.cluster_id", from one cluster
    Batches(near="clip_embedding.image_embedding", size=8)     # every batch of batch_size / 8 neighbourhoods

    Values with fewer samples than a batch are put together, from the smallest up.
    """

    by: str = ""  # column of labels
    near: str = ""  # column of embeddings
    size: int = 8  # samples of a neighbourhood, with the one it is drawn around
    candidates: int = 32  # nearest neighbours that are looked at for it

    def __post_init__(self) -> None:
        if bool(self.by) == bool(self.near):
            raise InputError(f"sampling.batches takes one of by and near, got by {self.by!r} and near {self.near!r}")
        if self.size < 2 or self.candidates < self.size - 1:
            raise InputError(
                f"sampling.batches.size must be at least 2, and candidates at least size - 1, got {self.size} and {self.candidates}"
            )


@dataclass(frozen=True, kw_only=True)
class Feedback:
    """Weigh every epoch after the first by what the model has learned: each sample's mean loss so far, in this run.

    Feedback(prefer="hard")             # weight times (loss / mean loss) ^ power
    Feedback(prefer="easy", power=2)    # the inverse: pairs that stay hard are often wrong ones
    Feedback(prefer="clean")            # weight times the probability of the component of low loss, of a mixture of two Gaussians
    """

    prefer: Literal["hard", "easy", "clean"] = "hard"
    power: float = 1.0  # of "hard" and "easy"
    most: float = 10.0  # no weight changes by more than this factor, either way

    def __post_init__(self) -> None:
        if self.prefer not in {"hard", "easy", "clean"}:
            raise InputError(f"sampling.feedback.prefer must be hard, easy or clean, got {self.prefer!r}")
        if self.power <= 0 or self.most < 1:
            raise InputError(
                f"sampling.feedback: power is above 0 and most at least 1, got {self.power} and {self.most}"
            )


@dataclass(frozen=True, kw_only=True)
class Curation:
    """Curation in training (CiT, Xu et al. 2023, arXiv 2301.02241): train on what the text tower finds close to names of a task.

    Every `every` steps texts are drawn and encoded, before the projection, by the model as it is; those whose cosine to the nearest name
    is above `threshold` are kept, and at least the best `min_ratio` of each draw, until they fill the next `every` steps.
    """

    names: str  # text file with a class or concept per line
    threshold: float = 0.55  # of the cosine; the paper's for YFCC15M, 0.7 for YFCC100M
    min_ratio: float = 0.003  # the paper's for YFCC15M, 0.01 for YFCC100M
    every: int = 100  # steps, which are what an epoch of such a run is

    def __post_init__(self) -> None:
        if not 0 < self.min_ratio <= 1 or self.every < 1:
            raise InputError(
                f"sampling.curation: min_ratio is above 0 and at most 1, every at least 1, got {self.min_ratio} and {self.every}"
            )


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Which samples are drawn, how often and in whose company; all of it can be combined, but for `curation`, which chooses alone.

    SamplingConfig(balance=Balance(by="source", power=0.5), repetition=Repetition(max_draws=4))
    SamplingConfig(batches=Batches(by="clusters.cluster_id"))
    """

    curriculum: Curriculum | None = None  # the best share by a score, growing or shrinking
    repetition: Repetition | None = None  # less weight for every draw, and a cap
    balance: Balance | None = None  # classes, sources or concepts made more even
    batches: Batches | None = None  # batches of one source or cluster, or of neighbours
    feedback: Feedback | None = None  # weights from the losses so far
    curation: Curation | None = None  # CiT's loop
    report_by: str = ""  # column of labels whose shares of the draws are logged

    def __post_init__(self) -> None:
        others = [
            name for name in ("curriculum", "repetition", "balance", "batches", "feedback") if getattr(self, name)
        ]
        if self.curation and others:
            raise InputError(f"sampling.curation chooses alone; leave {', '.join(others)} out")

    def columns(self) -> dict[str, Column]:
        """Return the columns to open, by what they are for."""
        found: dict[str, Column] = {}
        if self.curriculum:
            found["curriculum"] = Column(name=self.curriculum.by)
        if self.balance:
            found["balance"] = Column(name=self.balance.by, kind="labels", min_count=self.balance.min_count)
        if self.batches and self.batches.by:
            found["batches"] = Column(name=self.batches.by, kind="label")
        if self.batches and self.batches.near:
            found["near"] = Column(name=self.batches.near, kind="vector")
        if self.report_by:
            found["report"] = Column(name=self.report_by, kind="label")
        return found
