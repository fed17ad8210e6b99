"""An image tower and a text tower, as `transformers` saves and loads them, behind one small face.

A ViT becomes a `CLIPModel`, a ConvNeXt and a NaViT (which is SigLIP 2's vision tower) a `VisionTextDualEncoderModel` with CLIP's text
tower: all load with `AutoModel` and no code of ours. Any CLIP, SigLIP or dual-encoder folder or hub id can be loaded here too, to start from or to evaluate.
"""

import copy
import json
import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from schemas.errors import InputError
from schemas.model_layout import conversion_hint
from train.batch_tokenizer import BatchTokenizer
from train.config import ModelConfig
from train.packing import NATIVE_TOWER, encode_packed, grid_key, square_patches
from train.request import Patches, Pooled, Request, Shape, Text, Tokens, wanted_texts, wanted_views
from train.tokenizer import load_tokenizer, require_revision
from train.view_layout import group_by_size, size_options

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from train.towers import PatchDropper

# OpenAI's CLIP statistics, in RGB order and units of full intensity.
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)

LOGIT_SCALE_INIT = math.log(1 / 0.07)
LOGIT_SCALE_MAX = math.log(100)

_WEIGHTS_FILE = "model.safetensors"
# The key of the patches that a step's pictures keep, where some are dropped.
KEPT_PATCHES = "kept_patches"
_BICUBIC = 3  # PIL's number, as preprocessor_config.json holds it


class ImageTextModel(nn.Module):
    """The two towers with everything needed to feed them; features are unit vectors in float32.

    Its `network` is a plain `transformers` model.
    """

    _mean: torch.Tensor
    _std: torch.Tensor

    def __init__(
        self,
        network: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        *,
        image_size: int,
        mean: Sequence[float] = IMAGE_MEAN,
        std: Sequence[float] = IMAGE_STD,
    ) -> None:
        super().__init__()
        self.network = network
        self.tokenizer = tokenizer
        self.image_size = image_size
        self.mean = tuple(mean)
        self.std = tuple(std)
        if hasattr(network, "logit_bias"):
            # SigLIP's, on the similarities themselves; no feature depends on it, and processes would wait for its gradient for ever.
            network.logit_bias.requires_grad_(False)
        # A checkpoint that was trained beyond CLIP's largest scale starts from where it is.
        self._largest_scale = max(LOGIT_SCALE_MAX, network.logit_scale.item())
        text_config = network.config.text_config
        self.context_length = int(text_config.max_position_embeddings) - num_unused_positions(network.text_model)
        # A causal text tower never looks at what follows the end mark; SigLIP was trained without a mask on full-length padding.
        self._is_causal = text_config.model_type == "clip_text_model"
        self._is_padded = text_config.model_type.startswith("siglip")
        self.patch_dropper: PatchDropper | None = None
        vision = network.config.vision_config
        # Above 0: pictures come as patches of so many pixels with the grid that they make, packed into rows of `row_patches`.
        self.patch_size = int(vision.patch_size) if vision.model_type == NATIVE_TOWER else 0
        self.row_patches = 0
        # A fast tokenizer is not safe to share between threads, and training tokenizes one batch ahead in another.
        self._tokenizer_lock = threading.Lock()
        self._batch_tokenizer: BatchTokenizer | None = None
        self.register_buffer("_mean", torch.tensor(self.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(self.std).view(1, 3, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.logit_scale.device

    @property
    def logit_scale(self) -> nn.Parameter:
        """The logarithm of the factor on cosine similarities."""
        scale: nn.Parameter = self.network.logit_scale
        return scale

    @property
    def logit_bias(self) -> float | None:
        """What a sigmoid loss adds to the scaled cosines, as it was last kept; None where none was ever learned."""
        own = getattr(self.network, "logit_bias", None)
        value = getattr(self.network.config, "logit_bias", None) if own is None else own
        return None if value is None else float(value)

    def state_with(self, logit_bias: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """Make the bias that a loss learned, where one did, the model's own, and return the network's tensors.

        SigLIP has a parameter for it; elsewhere it goes into `config.json` at the next `save`.
        """
        if logit_bias is not None and hasattr(self.network, "logit_bias"):
            self.network.logit_bias.data.fill_(logit_bias.item())
        elif logit_bias is not None:
            self.network.config.logit_bias = logit_bias.item()
        return dict(self.network.state_dict())

    @property
    def embed_dim(self) -> int:
        """The length of a feature vector."""
        return int(getattr(self.network.config, "projection_dim", 0) or self.network.config.text_config.hidden_size)

    @property
    def shape(self) -> Shape:
        """What losses with layers of their own must know."""
        config = self.network.config
        vision = config.vision_config
        return Shape(
            embed_dim=self.embed_dim,
            image_width=int(vision.hidden_sizes[-1] if hasattr(vision, "hidden_sizes") else vision.hidden_size),
            text_width=int(config.text_config.hidden_size),
            vocab_size=len(self.tokenizer),
            context_length=self.context_length,
            is_text_causal=self._is_causal,
        )

    def forward(self, inputs: Mapping[str, torch.Tensor], requests: Sequence[Request]) -> dict[str, torch.Tensor]:
        """Return what the requests ask the towers for, by key, and the factor on cosines as `logit_scale`.

        `inputs` holds each view's pictures (n, 3, size, size) under its key, and each text's ids and attention mask, (n, length) or
        (n, count, length), under its key with `.ids` and `.mask`. Each tower runs once, on everything, the image tower once for each size of
        pictures; one that nobody asks does not run.
        """
        # SigLIP's has the shape (1,).
        found = {"logit_scale": self.logit_scale.exp().reshape(())}
        views = wanted_views(requests)
        for size, alike in group_by_size(views).items():
            if self.patch_dropper is not None:  # smaller views are seen whole
                self.patch_dropper.use(None if size else inputs.get(KEPT_PATCHES))
            grids = torch.cat([inputs[grid_key(view)] for view in alike]) if self.patch_size else None
            answer = self._run_images(torch.cat([inputs[view.key] for view in alike]), requests, grids)
            for view, features, pooled, patches in zip(alike, *answer.chunk(len(alike)), strict=True):
                found |= {view.key: features, Pooled(view).key: pooled, Patches(view).key: patches}
        texts = wanted_texts(requests)
        if texts:
            parts = [(text, inputs[f"{text.key}.ids"], inputs[f"{text.key}.mask"]) for text in texts]
            found |= self._run_texts(parts, requests)
        # Features nobody asks for go along: processes wait for the gradient of each parameter, which is then zero.
        asked = {request.key for request in (*requests, *views, *texts)} | {"logit_scale"}
        return {key: value for key, value in found.items() if key in asked}

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        """Return (n, embed_dim) unit features of images (n, 3, size, size): uint8 RGB, or floats normalised already."""
        if self.patch_size:
            return _unit(self._project(self._pool_packed(*square_patches(images, self.patch_size))))
        return _unit(self.network.get_image_features(pixel_values=self._normalise(images)))

    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        """Return (n, embed_dim) unit features of texts, cut to the context length."""
        return self.encode_ids(*self.tokenize(texts))

    def encode_ids(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return (n, embed_dim) unit features of what `tokenize` returned."""
        mask = {} if self._is_causal or self._is_padded else {"attention_mask": attention_mask.to(self.device)}
        return _unit(self.network.get_text_features(input_ids=input_ids.to(self.device), **mask))

    def freeze(self, *, images: bool, texts: bool) -> None:
        """Keep a tower as it is from now on, and out of the optimizer and of the exchange between processes."""
        for is_frozen, names in (
            (images, ("vision_model", "visual_projection")),
            (texts, ("text_model", "text_projection")),
        ):
            for name in names:
                if is_frozen and hasattr(self.network, name):
                    getattr(self.network, name).requires_grad_(False)

    def copy(self) -> "ImageTextModel":
        """Return a model with weights of its own and the same tokenizer."""
        network = copy.deepcopy(self.network)
        return ImageTextModel(network, self.tokenizer, image_size=self.image_size, mean=self.mean, std=self.std)

    def tokenize(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ids and attention mask (n, length) of texts; safe to call from a thread beside the training."""
        with self._tokenizer_lock:
            found = self._batch_tokenizer
            if found is None or found.tokenizer is not self.tokenizer or found.context_length != self.context_length:
                found = BatchTokenizer(self.tokenizer, self.context_length, trim=not self._is_padded)
                self._batch_tokenizer = found
            return found(texts)

    def _pool_packed(self, patches: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
        """Return what the tower pools of pictures that come as patches (n, most, patch * patch * 3)."""
        patches = patches.to(self.device)
        if patches.dtype == torch.uint8:
            colours = patches.reshape(*patches.shape[:2], -1, 3).float() / 255
            patches = ((colours - self._mean.view(3)) / self._std.view(3)).flatten(2)
        return encode_packed(self.network.vision_model, patches, grids, row_length=self.row_patches)

    def _normalise(self, images: torch.Tensor) -> torch.Tensor:
        if images.dtype == torch.uint8:
            images = (images.to(self.device).float() / 255 - self._mean) / self._std
        return images.to(self.device)

    def _run_images(
        self, images: torch.Tensor, requests: Iterable[Request], grids: torch.Tensor | None
    ) -> "_ImageAnswer":
        if grids is not None:
            pooled = self._pool_packed(images, grids)
            return _ImageAnswer(_unit(self._project(pooled)), pooled.float(), pooled)
        options = {} if images.shape[-1] == self.image_size else size_options(self.network.vision_model)
        if not options and not any(isinstance(request, Pooled | Patches) for request in requests):
            features = self.encode_image(images)
            return _ImageAnswer(features, features, features)
        hidden = self.network.vision_model(pixel_values=self._normalise(images), **options)
        pooled, patches = hidden.pooler_output, hidden.last_hidden_state
        if patches.ndim == 4:  # a convolutional tower's map
            patches = patches.flatten(2).transpose(1, 2)
        patches = patches[:, _num_leading_tokens(self.network.vision_model) :]
        return _ImageAnswer(_unit(self._project(pooled)), pooled.float(), patches.float())

    def _project(self, pooled: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = getattr(self.network, "visual_projection", nn.Identity())(pooled)
        return projected

    def _run_texts(
        self, parts: Sequence[tuple[Text, torch.Tensor, torch.Tensor]], requests: Iterable[Request]
    ) -> dict[str, torch.Tensor]:
        rows = [ids[..., 0].numel() for _, ids, _ in parts]
        ids = torch.cat([ids.flatten(0, -2) for _, ids, _ in parts]).to(self.device)
        mask = torch.cat([mask.flatten(0, -2) for _, _, mask in parts]).to(self.device)
        masked = {} if self._is_causal or self._is_padded else {"attention_mask": mask}
        output = self.network.get_text_features(input_ids=ids, **masked)
        found = {}
        for (text, own, _), features in zip(parts, torch.split(_unit(output), rows), strict=True):
            found[text.key] = features.reshape(*own.shape[:-1], -1)
        if any(isinstance(request, Tokens) for request in requests):
            for (text, own, _), tokens in zip(parts, torch.split(output.last_hidden_state.float(), rows), strict=True):
                found[Tokens(text).key] = tokens.reshape(*own.shape, -1)
        return found

    def clamp_logit_scale(self) -> None:
        """Keep the logit scale in [0, ln 100], as CLIP does after every step; its start is allowed where that is above."""
        with torch.no_grad():
            self.logit_scale.clamp_(0, self._largest_scale)

    def save(self, folder: Path, state: Mapping[str, torch.Tensor] | None = None) -> None:
        """Write weights, configuration and image settings; the same weights give the same bytes. The tokenizer is not written.

        `state` is the network's state where its own tensors are not whole.
        """
        from safetensors.torch import save_file

        self.network.config.save_pretrained(folder)
        weights = {
            name: value.detach().cpu().contiguous() for name, value in (state or self.network.state_dict()).items()
        }
        save_file(weights, folder / _WEIGHTS_FILE, metadata={"format": "pt"})
        settings = _image_processor(self.image_size, self.mean, self.std, patch_size=self.patch_size)
        (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2) + "\n")


@dataclass(frozen=True)
class _ImageAnswer:
    """What the image tower made; where only features are wanted they stand in for the rest."""

    features: torch.Tensor
    pooled: torch.Tensor
    patches: torch.Tensor

    def chunk(self, count: int) -> tuple[tuple[torch.Tensor, ...], ...]:
        return tuple(part.chunk(count) for part in (self.features, self.pooled, self.patches))


def build_model(config: ModelConfig, tokenizer: "PreTrainedTokenizerBase", *, seed: int) -> ImageTextModel:
    """Make a model with random weights, which depend on `seed` alone."""
    from transformers import CLIPModel, VisionTextDualEncoderModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        shape = _network_config(config, tokenizer)
        network = (CLIPModel if config.image_tower == "vit" else VisionTextDualEncoderModel)(shape)
    # The class name tells `pipeline` and model cards what the folder holds; save_pretrained would have written it.
    network.config.architectures = [type(network).__name__]
    network.config.dtype = torch.float32
    return ImageTextModel(network, tokenizer, image_size=config.image_size)


def load_model(folder_or_id: str | Path, *, revision: str = "", device: str | torch.device = "cpu") -> ImageTextModel:
    """Load a checkpoint, any CLIP-like folder, or a hub id at a pinned commit, in float32 and in evaluation mode."""
    from transformers import AutoModel

    import train.resnet  # noqa: F401  so that checkpoints with a ResNet are known

    name = str(folder_or_id)
    require_revision(name, revision)
    pinned = {"revision": revision} if revision else {}
    try:
        network = AutoModel.from_pretrained(name, dtype=torch.float32, **pinned)
    except (OSError, ValueError) as error:
        raise InputError(f"{name} holds no model that transformers can load: {error}{conversion_hint(name)}") from error
    if not hasattr(network, "get_image_features") or not hasattr(network, "logit_scale"):
        raise InputError(f"{name} holds a {type(network).__name__}, which is no image-text model with two towers")
    # Loaded tensors are views into the file at any address; matrix products on CPU give other last bits at other alignments.
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.clone()
    image_size, mean, std = read_image_settings(name, revision, network.config)
    model = ImageTextModel(network, load_tokenizer(name, revision), image_size=image_size, mean=mean, std=std)
    return model.to(device).eval()


def load_weights(model: ImageTextModel, folder: Path) -> None:
    """Copy the weights of a checkpoint into a model of the same shape, in place."""
    from safetensors.torch import load_file

    model.network.load_state_dict(load_file(folder / _WEIGHTS_FILE), strict=True)


def find_positions(text_tower: nn.Module) -> tuple[str, nn.Embedding] | None:
    """Return the name and the table of a text tower's learned positions, or None where it has no table."""
    for name, module in text_tower.named_modules():
        if name.rpartition(".")[2] in {"position_embedding", "position_embeddings"} and isinstance(
            module, nn.Embedding
        ):
            return name, module
    return None


def num_unused_positions(text_tower: nn.Module) -> int:
    """Return how many rows of the table no token takes: RoBERTa and its kin count from behind the padding's id."""
    found = find_positions(text_tower)
    return 0 if found is None or found[1].padding_idx is None else found[1].padding_idx + 1


def _num_leading_tokens(tower: nn.Module) -> int:
    """Return how many of an image tower's tokens come before those of the patches: class, distillation and register tokens."""
    embeddings = next((module for name, module in tower.named_modules() if name.endswith("embeddings")), None)
    names = ("class_embedding", "cls_token", "distillation_token", "register_tokens")
    tokens = [value for name in names if (value := getattr(embeddings, name, None)) is not None]
    return sum(value.shape[-2] if value.ndim > 1 else 1 for value in tokens)


def _unit(output: Any) -> torch.Tensor:
    # transformers 5 returns the projected feature inside an output object, 4 as a tensor.
    feature = output if isinstance(output, torch.Tensor) else output.pooler_output
    return functional.normalize(feature.float(), dim=-1)


def _network_config(config: ModelConfig, tokenizer: "PreTrainedTokenizerBase") -> "PretrainedConfig":
    from transformers import CLIPConfig, VisionTextDualEncoderConfig

    text, vision = text_tower_config(config, tokenizer), image_tower_config(config)
    shared = {"projection_dim": config.embed_dim, "logit_scale_init_value": LOGIT_SCALE_INIT}
    if config.image_tower != "vit":
        return VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, **shared)
    return CLIPConfig(vision_config=vision.to_dict(), text_config=text.to_dict(), **shared)


def text_tower_config(config: ModelConfig, tokenizer: "PreTrainedTokenizerBase") -> "PretrainedConfig":
    """Return the configuration of CLIP's text tower in the shape asked for."""
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.text_width,
        intermediate_size=4 * config.text_width,
        num_hidden_layers=config.text_layers,
        num_attention_heads=config.text_heads,
        max_position_embeddings=config.context_length,
        projection_dim=config.embed_dim,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def image_tower_config(config: ModelConfig) -> "PretrainedConfig":
    """Return the configuration of the image tower in the shape asked for."""
    from transformers import CLIPVisionConfig, ConvNextConfig, Siglip2VisionConfig

    if config.image_tower == "navit":
        return Siglip2VisionConfig(
            hidden_size=config.image_width,
            intermediate_size=4 * config.image_width,
            num_hidden_layers=config.image_layers,
            num_attention_heads=config.image_heads,
            # Of the table that positions are interpolated from.
            num_patches=(config.image_size // config.patch_size) ** 2,
            patch_size=config.patch_size,
            hidden_act="gelu",
        )
    if config.image_tower == "resnet":
        from train.resnet import PooledResNetConfig

        return PooledResNetConfig(
            depths=list(config.image_depths),
            hidden_sizes=list(config.image_widths),
            embedding_size=max(1, config.image_widths[0] // 4),
            hidden_size=config.image_widths[-1],
        )
    if config.image_tower == "convnext":
        return ConvNextConfig(
            depths=list(config.image_depths),
            hidden_sizes=list(config.image_widths),
            num_stages=len(config.image_depths),
            patch_size=config.patch_size,
            image_size=config.image_size,
            # The dual encoder asks for the width of the pooled output by this name.
            hidden_size=config.image_widths[-1],
        )
    return CLIPVisionConfig(
        hidden_size=config.image_width,
        intermediate_size=4 * config.image_width,
        num_hidden_layers=config.image_layers,
        num_attention_heads=config.image_heads,
        image_size=config.image_size,
        patch_size=config.patch_size,
        projection_dim=config.embed_dim,
        hidden_act="gelu",
    )


def _image_processor(
    image_size: int, mean: Sequence[float], std: Sequence[float], *, patch_size: int
) -> dict[str, object]:
    if patch_size:
        return {
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": list(mean),
            "image_processor_type": "Siglip2ImageProcessor",
            "image_std": list(std),
            "max_num_patches": (image_size // patch_size) ** 2,
            "patch_size": patch_size,
            "resample": _BICUBIC,
            "rescale_factor": 1 / 255,
        }
    # The text `CLIPImageProcessor.save_pretrained` writes; made here because creating one without torchvision warns.
    return {
        "crop_size": {"height": image_size, "width": image_size},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(mean),
        "image_processor_type": "CLIPImageProcessor",
        "image_std": list(std),
        "resample": _BICUBIC,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": image_size},
    }


def read_image_settings(
    name: str, revision: str, config: "PretrainedConfig"
) -> tuple[int, Sequence[float], Sequence[float]]:
    """Return the image size and the mean and deviation of colours that a model folder or hub id was trained with."""
    settings = _image_settings(name, {"revision": revision} if revision else {})
    mean, std = settings.get("image_mean", IMAGE_MEAN), settings.get("image_std", IMAGE_STD)
    return _image_size(settings, config), mean, std


def _image_settings(name: str, pinned: dict[str, str]) -> dict[str, Any]:
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        return dict(ImageProcessingMixin.get_image_processor_dict(name, **pinned)[0])
    except OSError:
        # A folder without preprocessor_config.json: CLIP's own statistics, which every such folder was found to use.
        return {}


def _image_size(settings: dict[str, Any], config: "PretrainedConfig") -> int:
    if "max_num_patches" in settings and "patch_size" in settings:
        return int(settings["patch_size"]) * math.isqrt(int(settings["max_num_patches"]))
    size = settings.get("crop_size") if settings.get("do_center_crop", True) else None
    size = size or settings.get("size") or getattr(getattr(config, "vision_config", config), "image_size", None)
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    if not isinstance(size, int):
        raise InputError(f"the model does not say its image size; found {size!r} in preprocessor_config.json")
    return size
