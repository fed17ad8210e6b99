"""Towers that begin as other models, stay locked for a while, see part of a picture's patches, or read longer or shorter texts."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from schemas.errors import InputError
from train.config import ModelConfig
from train.model import (
    IMAGE_MEAN,
    IMAGE_STD,
    LOGIT_SCALE_INIT,
    ImageTextModel,
    find_positions,
    image_tower_config,
    num_unused_positions,
    read_image_settings,
    text_tower_config,
)
from train.packing import NATIVE_TOWER
from train.tokenizer import require_revision
from train.tower_config import TowerConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Long-CLIP keeps these: most training texts are this short, so their positions are well trained (arXiv 2403.15378).
KEPT_POSITIONS = 20
LOCKED_FOR_EVER = -1


def build_from_towers(
    config: ModelConfig, towers: TowerConfig, tokenizer: "PreTrainedTokenizerBase", *, seed: int
) -> ImageTextModel:
    """Make a dual encoder of pretrained towers; what they do not bring (a tower, both projections) is random and depends on `seed` alone.

    The result is a `VisionTextDualEncoderModel`, which `AutoModel` loads.
    """
    from transformers import (
        AutoModel,
        CLIPTextModel,
        CLIPVisionModel,
        VisionTextDualEncoderConfig,
        VisionTextDualEncoderModel,
    )

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        image_size = config.image_size
        mean: Sequence[float] = IMAGE_MEAN
        std: Sequence[float] = IMAGE_STD
        if towers.image:
            image_tower = _load_tower(towers.image, towers.image_revision, "vision")
            image_size, mean, std = read_image_settings(towers.image, towers.image_revision, image_tower.config)
        else:
            own = image_tower_config(config)
            image_tower = CLIPVisionModel(own) if config.image_tower == "vit" else AutoModel.from_config(own)
        # The dual encoder asks for the width of the pooled output by this name.
        image_tower.config.hidden_size = _pooled_width(image_tower, image_size, towers.image)
        if towers.text:
            text_tower = _load_tower(towers.text, towers.text_revision, "text")
        else:
            text_tower = CLIPTextModel(text_tower_config(config, tokenizer))
        shape = VisionTextDualEncoderConfig.from_vision_text_configs(
            *(image_tower.config, text_tower.config),
            projection_dim=config.embed_dim,
            logit_scale_init_value=LOGIT_SCALE_INIT,
        )
        network = VisionTextDualEncoderModel(shape, vision_model=image_tower, text_model=text_tower)
    network.config.architectures = [type(network).__name__]
    network.config.dtype = torch.float32
    if len(tokenizer) > int(network.config.text_config.vocab_size):
        raise InputError(
            f"the tokenizer has {len(tokenizer)} tokens, {towers.text!r} has embeddings for {network.config.text_config.vocab_size}; "
            "leave tokenizer out"
        )
    return ImageTextModel(network, tokenizer, image_size=image_size, mean=mean, std=std)


def stretch_positions(table: torch.Tensor, length: int, kept: int = KEPT_POSITIONS) -> torch.Tensor:
    """Return a table of `length` positions: the first `kept` as they are, the others spread evenly over the rest by linear interpolation.

    77 positions become 248 at a factor of 4. Past the last position the line through the last two goes on.
    """
    if length <= len(table) or len(table) < kept + 2:
        raise InputError(
            f"towers.context_length {length} must be above the {len(table)} positions there are, of which at least {kept + 2} are needed"
        )
    factor = (length - kept) / (len(table) - kept)
    places = kept + torch.arange(length - kept, dtype=torch.float64) / factor
    lower = places.floor().clamp(max=len(table) - 2).long()
    share = (places - lower).unsqueeze(1).to(table.dtype)
    return torch.cat([table[:kept], torch.lerp(table[lower], table[lower + 1], share)])


def set_context_length(model: ImageTextModel, length: int) -> None:
    """Let the text tower read `length` tokens, in place: fewer than it has positions for, whose last ones go, or more."""
    tower = model.network.text_model
    found = find_positions(tower)
    if found is None:
        raise InputError(f"towers.context_length: the text tower {type(tower).__name__} has no table of positions")
    name, old = found
    unused = num_unused_positions(tower)
    rows, used = old.weight.detach()[:unused], old.weight.detach()[unused:]
    used = used[:length] if length <= len(used) else stretch_positions(used, length)
    new = nn.Embedding(unused + length, old.embedding_dim, padding_idx=old.padding_idx, device=old.weight.device)
    with torch.no_grad():
        new.weight.copy_(torch.cat([rows, used]))
    parent, _, own = name.rpartition(".")
    embeddings = tower.get_submodule(parent)
    setattr(embeddings, own, new)
    places = torch.arange(unused + length, device=old.weight.device).expand(1, -1)
    embeddings.register_buffer("position_ids", places, persistent=False)
    if hasattr(embeddings, "token_type_ids"):
        embeddings.register_buffer("token_type_ids", torch.zeros_like(places), persistent=False)
    model.network.config.text_config.max_position_embeddings = unused + length
    model.context_length = length
    model.tokenizer.model_max_length = length


class Locks:
    """Which towers are locked at a step; a locked tower gets no gradients, so that its weights and moments stay as they are."""

    def __init__(self, model: ImageTextModel, config: TowerConfig, *, with_projections: bool) -> None:
        """`with_projections`: the projections are as trained as the towers, and are locked with them."""
        names = {"image": ("vision_model", "visual_projection"), "text": ("text_model", "text_projection")}
        self._locks: list[tuple[int, list[nn.Parameter]]] = []
        for side, parts in names.items():
            steps = getattr(config, f"{side}_locked_steps")
            if steps:
                modules = [getattr(model.network, name) for name in parts[: 2 if with_projections else 1]]
                # What a loss has locked for good stays locked.
                found = [value for module in modules for value in module.parameters() if value.requires_grad]
                self._locks.append((steps, found))

    def apply(self, step: int) -> bool:
        """Lock and unlock for the update number `step` (from 0); return whether anything changed."""
        is_changed = False
        for steps, parameters in self._locks:
            is_trained = steps != LOCKED_FOR_EVER and step >= steps
            for value in parameters:
                is_changed |= value.requires_grad != is_trained
                value.requires_grad_(is_trained)
                if not is_trained:
                    value.grad = None
        return is_changed


class PatchDropper:
    """Lets a ViT see part of the patches of every picture in training, its class token always (FLIP, arXiv 2212.00794)."""

    def __init__(self, model: ImageTextModel, share: float) -> None:
        embeddings = model.network.vision_model.get_submodule("embeddings")
        positions = getattr(embeddings, "position_embedding", None)
        count = getattr(embeddings, "num_patches", 0) or getattr(
            getattr(embeddings, "patch_embeddings", None), "num_patches", 0
        )
        if not count or (isinstance(positions, nn.Embedding) and positions.num_embeddings != count + 1):
            raise InputError(
                f"towers.patch_share: {type(model.network.vision_model).__name__} is no ViT with a class token; leave it at 1"
            )
        self.num_patches = int(count)
        self.num_kept = max(1, round(share * self.num_patches))
        self._model = model
        self._draws: torch.Tensor | None = None
        embeddings.register_forward_hook(self._drop)

    def draw(self, seeds: Sequence[int]) -> torch.Tensor:
        """Return which patches each sample keeps, in ascending order (n, kept): a function of its seed."""
        kept = np.empty((len(seeds), self.num_kept), dtype=np.int64)
        for row, seed in enumerate(seeds):
            words = np.random.Philox(key=seed).random_raw(self.num_patches)
            kept[row] = np.sort(np.argpartition(words, self.num_kept - 1)[: self.num_kept])
        return torch.from_numpy(kept)

    def use(self, draws: torch.Tensor | None) -> None:
        """Set which patches the pictures of the next passes keep; None: all."""
        self._draws = draws

    def _drop(self, _module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
        if self._draws is None or not self._model.training:
            return None
        # Further views of a batch keep the same places.
        places = self._draws.to(output.device).repeat(len(output) // len(self._draws), 1)
        patches = output[:, 1:].gather(1, places.unsqueeze(2).expand(-1, -1, output.shape[2]))
        return torch.cat([output[:, :1], patches], dim=1)


def _load_tower(name: str, revision: str, side: str) -> "PreTrainedModel":
    import transformers

    require_revision(name, revision)
    pinned: dict[str, Any] = {"revision": revision} if revision else {}
    try:
        config = transformers.AutoConfig.from_pretrained(name, **pinned)
        # Of a CLIP or SigLIP the one tower is wanted.
        kinds = {"clip": "CLIP", "siglip": "Siglip", "siglip2": "Siglip2"}
        kind = config.model_type.removesuffix("_vision_model").removesuffix("_text_model")
        if kind in kinds:
            cls = getattr(transformers, f"{kinds[kind]}{side.capitalize()}Model")
        elif config.model_type == "resnet":
            from train.resnet import PooledResNetModel, pretrained_config

            cls, pinned = PooledResNetModel, {**pinned, "config": pretrained_config(config)}
        else:
            cls = transformers.AutoModel
        tower = cls.from_pretrained(name, dtype=torch.float32, **pinned)
    except (OSError, ValueError) as error:
        raise InputError(f"towers: {name} holds no model that transformers can load: {error}") from error
    # As in `load_model`: mapped tensors are aligned differently, which changes the last bits on a CPU.
    for tensor in (*tower.parameters(), *tower.buffers()):
        tensor.data = tensor.data.clone()
    return tower


@torch.no_grad()
def _pooled_width(tower: "PreTrainedModel", image_size: int, name: str) -> int:
    if tower.config.model_type == NATIVE_TOWER:
        return int(tower.config.hidden_size)
    pooled = tower.eval()(pixel_values=torch.zeros(1, 3, image_size, image_size)).pooler_output
    if pooled is None or pooled.ndim != 2:
        shape = None if pooled is None else tuple(pooled.shape)
        raise InputError(
            f"towers.image: {name} pools a picture to {shape}, a dual encoder needs (1, width); use a ViT, a ConvNeXt or a ResNet"
        )
    return int(pooled.shape[1])
