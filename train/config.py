"""The settings of a training run, the named models, and the words for what is wrong with them.

Defaults are open_clip's for a ViT: AdamW betas 0.9 and 0.98, eps 1e-6, weight decay 0.2, peak learning rate 5e-4, linear warm-up, cosine to 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from typing import Any, Literal

from schemas.errors import InputError
from train.sampling import SamplingConfig
from train.tower_config import TowerConfig

Precision = Literal["auto", "fp32", "bf16"]
Decode = Literal["cpu", "gpu"]
LossOption = float | bool | str | tuple[str, ...] | tuple[float, ...]
LossSetting = float | Mapping[str, LossOption]
ModelOption = int | str | tuple[int, ...]

# Settings of the machine and of the output: a run may go on under other values of these, every other key is part of its identity.
FREE_KEYS = frozenset([
    "grad_accumulation",
    "sharding",
    "gradient_checkpointing",
    "compile",
    "num_workers",
    "num_threads",
    "log_every",
    "save_every",
    "keep_last",
    "keep_every",
    "eval_data",
    "eval_every",
    # What is in these files is part of the dataset's fingerprint.
    "weights",
    "columns",
])
# Settings that came after runs had been named by their settings: at their default they are no part of a run's name.
LATER_KEYS = frozenset(["crop_boxes"])


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of a model; widths and sizes in channels and pixels.

    ModelConfig(image_size=64, patch_size=8, image_width=128)      # a ViT
    ModelConfig(image_tower="convnext", image_depths=(3, 3, 9, 3), image_widths=(96, 192, 384, 768), patch_size=4)
    ModelConfig(image_tower="navit", patch_size=16)      # pictures of any aspect, up to 196 patches each
    """

    image_tower: Literal["vit", "convnext", "resnet", "navit"] = "vit"
    image_size: int = 224  # NaViT: pictures keep their aspect and have as many pixels as this square at most
    patch_size: int = 32
    image_width: int = 768  # ViT, NaViT
    image_layers: int = 12  # ViT, NaViT
    image_heads: int = 12  # ViT, NaViT
    image_depths: tuple[int, ...] = ()  # ConvNeXt, ResNet: blocks per stage
    image_widths: tuple[int, ...] = ()  # ConvNeXt, ResNet: channels per stage
    text_width: int = 512
    text_layers: int = 12
    text_heads: int = 8
    context_length: int = 77  # tokens, begin and end marks included
    vocab_size: int = 49_408  # the most a tokenizer trained on the captions may have
    embed_dim: int = 512

    def __post_init__(self) -> None:
        _check_tower(self)
        if self.text_width % self.text_heads:
            raise InputError(f"text_width {self.text_width} is not a multiple of text_heads {self.text_heads}")
        if self.context_length < 3:
            raise InputError(f"context_length must be at least 3 (begin, one token, end), got {self.context_length}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides a run besides its dataset.

    TrainConfig(model="vit-tiny", epochs=10, batch_size=256)
    TrainConfig(model="vit-tiny", model_options={"patch_size": 16}, samples_seen=100_000)
    TrainConfig(init="openai/clip-vit-base-patch32", init_revision="3d74acf...", lr=1e-5)
    """

    # What is trained.
    model: str = "vit-b-32"  # a name of MODELS
    model_options: Mapping[str, ModelOption] = field(default_factory=dict)  # fields of ModelConfig to change
    init: str = ""  # a folder or hub id of a CLIP to start from, in place of `model`; "": random weights
    init_revision: str = ""  # the commit of a hub id
    tokenizer: str = ""  # a folder or hub id; "": train one on the dataset's captions
    tokenizer_revision: str = ""
    towers: TowerConfig | None = None  # what the towers start from, and how they are trained
    losses: Mapping[str, LossSetting] = field(
        default_factory=lambda: {"info_nce": 1.0}
    )  # weight, or weight and options

    # How long, and how large a step.
    epochs: float = 32.0
    samples_seen: int = 0  # in place of `epochs`: stop after so many samples (rounded up to whole steps)
    epoch_samples: int = 0  # draws per epoch; 0: as many as the dataset has samples of positive weight
    batch_size: int = 256  # samples per step over all processes: the pool of negatives
    grad_accumulation: int = (
        1  # parts a process splits its share of the batch into; the gradient is that of the whole batch
    )

    # Optimizer: AdamW.
    lr: float = 5e-4  # peak
    warmup_steps: int = 10_000  # linear; never more than a quarter of the run
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-6
    weight_decay: float = 0.2  # not on biases, norms and scalars
    grad_clip: float = 0.0  # largest gradient norm; 0: off

    # Data.
    captions: Mapping[str, float] = field(
        default_factory=dict
    )  # caption column -> probability; empty: as the dataset was built
    weights: str = ""  # a Parquet file (uid, weight) in place of the dataset's own weights
    columns: tuple[str, ...] = ()  # Parquet files, or folders of them, with a uid and what losses read besides captions
    sampling: SamplingConfig | None = None  # how draws depart from the weights
    replacement: bool = True  # draw each sample as often as its weight says; False: never twice in an epoch
    crop_scale: tuple[float, float] = (0.9, 1.0)  # share of the image's area a random crop keeps
    crop_boxes: str = (
        ""  # a column of stored crops, such as reinforce.crop_boxes, one of which is shown in place of a random one
    )
    decode: Decode = (
        "cpu"  # gpu: nvJPEG decodes JPEGs on the GPU, which needs torchvision; pixels differ a little from the CPU's
    )
    seed: int = 0

    # Machine.
    sharding: bool = False  # cut weights, gradients and moments over the processes (FSDP2) instead of a copy on each
    gradient_checkpointing: bool = False  # compute activations twice instead of keeping them
    compile: bool = False  # compile the towers: by the block, whole where blocks differ; the first steps take longer
    precision: Precision = "auto"  # bf16 autocast where the GPU has it, otherwise fp32
    # loader processes per training process; null: on a GPU its share of the CPUs less two, without one 2; 0: decode in the training process
    num_workers: int | None = None
    num_threads: int = 0  # torch threads per process; 0: the CPUs shared among the processes of this host

    # Output, in steps.
    log_every: int = 10
    save_every: int = 1_000
    keep_last: int = 2  # newest checkpoints kept
    keep_every: int = 0  # and every checkpoint at a multiple of this; 0: none
    eval_data: tuple[str, ...] = ()  # datasets or folders evaluated on the way
    eval_every: int = 0  # 0: never
    sample_losses: bool = False  # write sample_losses.parquet: each sample's mean contrastive loss over its draws

    def __post_init__(self) -> None:
        _check_model(self)
        _check_numbers(self)
        for kind, name, revision in (
            ("init", self.init, self.init_revision),
            ("tokenizer", self.tokenizer, self.tokenizer_revision),
        ):
            if revision and not name:
                raise InputError(f"{kind}_revision {revision!r} is given without {kind}")

    def model_config(self) -> ModelConfig:
        """Return the shape of the model: the named one with `model_options` applied."""
        return _with_options(MODELS[self.model], self.model_options)

    def num_steps(self, steps_per_epoch: int) -> int:
        """Return the steps of the whole run."""
        if self.samples_seen:
            return -(-self.samples_seen // self.batch_size)
        return max(1, round(self.epochs * steps_per_epoch))

    def num_warmup_steps(self, num_steps: int) -> int:
        """Return the length of the warm-up in a run of `num_steps`."""
        return min(self.warmup_steps, num_steps // 4)

    def to_dict(self) -> dict[str, object]:
        """Return every setting as JSON and YAML hold it (lists for tuples)."""
        return {key: _plain(value) for key, value in asdict(replace(self, losses=dict(self.losses))).items()}


def first_difference(before: Mapping[str, object], now: TrainConfig) -> str:
    """Return the first key that decides the result and differs, with both values; empty where the run may go on."""
    # A key that the run was begun without has meant its default.
    before, after = TrainConfig().to_dict() | dict(before), now.to_dict()
    for item in fields(now):
        if item.name in FREE_KEYS:
            continue
        if before[item.name] != after[item.name]:
            return f"{item.name} was {before[item.name]!r} and is now {after[item.name]!r}"
    return ""


def _check_tower(model: ModelConfig) -> None:
    if model.image_tower in {"vit", "navit"}:
        if model.image_width % model.image_heads:
            raise InputError(f"image_width {model.image_width} is not a multiple of image_heads {model.image_heads}")
        if model.image_size % model.patch_size:
            raise InputError(f"image_size {model.image_size} is not a multiple of patch_size {model.patch_size}")
    elif model.image_tower in {"convnext", "resnet"}:
        if not model.image_depths or len(model.image_depths) != len(model.image_widths):
            raise InputError(
                f"a {'ConvNeXt' if model.image_tower == 'convnext' else 'ResNet'} needs one depth and one width per stage, got image_depths {model.image_depths} "
                f"and image_widths {model.image_widths}"
            )
    else:
        raise InputError(f"image_tower must be 'vit', 'convnext', 'navit' or 'resnet', got {model.image_tower!r}")


def _check_model(config: TrainConfig) -> None:
    if config.model not in MODELS:
        raise InputError(_unknown("model", config.model, MODELS))
    if config.init and config.model_options:
        raise InputError(
            f"init {config.init!r} brings its own shape; remove model_options {dict(config.model_options)}"
        )
    if config.init and config.towers and (config.towers.image or config.towers.text):
        raise InputError(f"init {config.init!r} brings both towers; leave towers.image and towers.text out, or init")
    if config.towers and config.towers.text and "context_length" in config.model_options:
        raise InputError(
            f"towers.text {config.towers.text!r} brings its own length; give towers.context_length in place of "
            "model_options.context_length"
        )
    config.model_config()
    if not config.losses:
        raise InputError("losses is empty; give at least one, such as {info_nce: 1.0}")


def _check_numbers(config: TrainConfig) -> None:
    positive = ("batch_size", "grad_accumulation", "lr", "log_every", "save_every", "keep_last")
    for name in positive:
        if getattr(config, name) <= 0:
            raise InputError(f"{name} must be above 0, got {getattr(config, name)}")
    not_negative = ("samples_seen", "epoch_samples", "warmup_steps", "weight_decay", "grad_clip")
    for name in (*not_negative, "num_threads", "keep_every", "eval_every", "seed"):
        if getattr(config, name) < 0:
            raise InputError(f"{name} must not be negative, got {getattr(config, name)}")
    if config.num_workers is not None and config.num_workers < 0:
        raise InputError(f"num_workers must not be negative, got {config.num_workers}")
    if config.epochs <= 0 and not config.samples_seen:
        raise InputError(f"epochs must be above 0 unless samples_seen is given, got {config.epochs}")
    for name in ("beta1", "beta2"):
        if not 0 <= getattr(config, name) < 1:
            raise InputError(f"{name} must be in [0, 1), got {getattr(config, name)}")
    if bool(config.eval_every) != bool(config.eval_data):
        raise InputError(
            f"eval_data and eval_every belong together, got {list(config.eval_data)} and {config.eval_every}"
        )
    if config.precision not in {"auto", "fp32", "bf16"}:
        raise InputError(f"precision must be auto, fp32 or bf16, got {config.precision!r}")
    if config.decode not in {"cpu", "gpu"}:
        raise InputError(f"decode must be cpu or gpu, got {config.decode!r}")
    low, high = config.crop_scale
    if not 0 < low <= high <= 1:
        raise InputError(f"crop_scale must be two shares 0 < low <= high <= 1, got {config.crop_scale}")


def _with_options(model: ModelConfig, options: Mapping[str, ModelOption]) -> ModelConfig:
    known = [item.name for item in fields(ModelConfig)]
    changes: dict[str, Any] = {}
    for name, value in options.items():
        if name not in known:
            raise InputError(_unknown("model option", name, known))
        # YAML and the command line bring lists where the shape holds tuples.
        changes[name] = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
        kind = type(getattr(model, name))
        if type(changes[name]) is not kind:
            raise InputError(f"model option {name} must be of type {kind.__name__}, got {value!r}")
    return replace(model, **changes)


def _plain(value: object) -> object:
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return value


def _unknown(kind: str, name: str, known: Mapping[str, object] | list[str]) -> str:
    near = get_close_matches(name, list(known), n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"unknown {kind} {name!r}{hint}; known: {', '.join(known)}"


_LAPTOP_TEXT = ModelConfig(
    image_size=64,
    patch_size=8,
    image_width=128,
    image_layers=4,
    image_heads=4,
    text_width=128,
    text_layers=4,
    text_heads=4,
    context_length=32,
    vocab_size=8_192,
    embed_dim=128,
)
# ResNets have no patches; the number is that of pixels that one place of the last map stands for.
_RESNET = ModelConfig(
    image_tower="resnet", patch_size=32, image_depths=(3, 4, 6, 3), image_widths=(256, 512, 1024, 2048), embed_dim=1024
)
_CONVNEXT = ModelConfig(
    image_tower="convnext", patch_size=4, image_depths=(3, 3, 9, 3), image_widths=(96, 192, 384, 768)
)

# Shapes follow open_clip's model files of the same names; `vit-tiny` and `convnext-nano` train on a laptop's CPU.
MODELS: Mapping[str, ModelConfig] = {
    "vit-tiny": _LAPTOP_TEXT,
    "vit-s-32": ModelConfig(image_width=384, image_heads=6, text_width=384, text_heads=6, embed_dim=384),
    "vit-s-16": ModelConfig(patch_size=16, image_width=384, image_heads=6, text_width=384, text_heads=6, embed_dim=384),
    "vit-b-32": ModelConfig(),
    "vit-b-16": ModelConfig(patch_size=16),
    "vit-l-14": ModelConfig(
        patch_size=14, image_width=1024, image_layers=24, image_heads=16, text_width=768, text_heads=12, embed_dim=768
    ),
    "navit-tiny": replace(_LAPTOP_TEXT, image_tower="navit"),
    "navit-b-16": ModelConfig(image_tower="navit", patch_size=16),
    "resnet-nano": replace(
        _LAPTOP_TEXT,
        image_tower="resnet",
        patch_size=32,
        image_depths=(1, 1, 1, 1),
        image_widths=(32, 64, 128, 256),
    ),
    "resnet-50": _RESNET,
    "resnet-101": replace(_RESNET, image_depths=(3, 4, 23, 3), embed_dim=512),
    "convnext-nano": replace(
        _LAPTOP_TEXT,
        image_tower="convnext",
        patch_size=4,
        image_depths=(1, 1, 3, 1),
        image_widths=(32, 64, 128, 256),
    ),
    "convnext-tiny": replace(_CONVNEXT, embed_dim=1024),
    "convnext-small": replace(_CONVNEXT, image_depths=(3, 3, 27, 3)),
    "convnext-base": replace(_CONVNEXT, image_depths=(3, 3, 27, 3), image_widths=(128, 256, 512, 1024)),
}
