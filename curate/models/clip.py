"""Two-tower models as `transformers` stores them: CLIP, SigLIP, dual encoders, and what `winnow train` writes.

Features are unit vectors. On a CPU the towers run in float32. On a GPU they run in float16, whose 11 bits keep a score within 1e-3 of
float32's where the 8 bits of bfloat16 do not; what passes its range of 65,504 shows as infinite, and that row is computed in float32. Each
text or picture is computed as if alone, up to rounding, because padding that a tower would look at is never added or left out.
"""

import functools
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa

from curate.fingerprint import model_identity
from curate.models.architectures import register_architectures
from curate.models.preprocess import ImageSettings, fill_images, load_settings, stack_patches
from curate.models.staging import Feeder, cut_pictures, cut_texts, flatten_ids, pad_ids
from curate.operator import Resources, ShardOperator
from schemas.direct_tokenizer import find_direct
from schemas.errors import InputError
from schemas.model_layout import conversion_hint

if TYPE_CHECKING:
    import torch

# Embeddings are stored in half precision, as clip-retrieval and DataComp do; their length depends on the model.
EMBEDDING_TYPE = pa.list_(pa.float16())
# As many as keep a CPU's arithmetic busy, and few enough for its caches.
BATCH_SIZE = 64
# The model cuts it up itself, by its own size: enough that a table's first copies and its last results are a small part of its time.
GPU_BATCH_SIZE = 2048
_MODELS_KEPT = 4
# The image tower that takes pictures of any shape.
_NATIVE_TOWER = "siglip2_vision_model"
# Pixels from one place of a convolutional network's last map to the next.
_MAP_STRIDE = 32
_NO_FEATURES = np.zeros((0, 0), dtype=np.float32)
_load_lock = threading.Lock()
logger = logging.getLogger(__name__)

_Rows = TypeVar("_Rows", pa.ChunkedArray, np.ndarray)


@dataclass(frozen=True, kw_only=True)
class TowerOperator(ShardOperator):
    """One tower of a model: `model` is a folder or a hub id, the latter with the 40 hex characters of a commit as `revision`."""

    model: str
    revision: str = ""

    resources = Resources(model=True, batch_size=BATCH_SIZE, gpu_batch_size=GPU_BATCH_SIZE)

    def __post_init__(self) -> None:
        # Workers may run in another folder.
        if self.model and Path(self.model).is_dir():
            object.__setattr__(self, "model", str(Path(self.model).absolute()))

    def identity(self) -> dict[str, dict[str, str]]:
        """Return the weights' digest or the pinned commit: where a model lies does not matter."""
        return {"model": model_identity(self.model, self.revision)}


class TwoTowerModel:
    """A loaded model; `encode_images` and `encode_ids` return float32 arrays of unit rows."""

    def __init__(
        self, network: Any, settings: ImageSettings, device: "torch.device", load_network: Callable[[], Any]
    ) -> None:
        """`load_network` returns the network once more in single precision, for rows that overflow in half precision."""
        import torch

        self._network = network.to(device, torch.float16 if device.type == "cuda" else torch.float32)
        self._device = device
        self._load_network = load_network
        self._settings = settings
        self._mean = torch.tensor(settings.mean, device=device)
        self._std = torch.tensor(settings.std, device=device)
        self._text = text_layout(network.config)
        self._num_tokens = _tokens_per_picture(network.config, settings)
        self._feeder = Feeder(device)
        self._wide: Any = None

    def encode_images(self, prepared: pa.ChunkedArray) -> np.ndarray:
        """Return features of pictures as `prepare_images` makes them by the model's settings."""
        if len(prepared) == 0:
            return _NO_FEATURES
        return self._encode(prepared, self._encode_pictures)

    def encode_ids(self, ids: Sequence[Sequence[int]] | pa.ListArray | pa.ChunkedArray, pad_id: int) -> np.ndarray:
        """Return features of texts, as token ids without padding (SigLIP's excepted, which is padded by its tokenizer)."""
        if len(ids) == 0:
            return _NO_FEATURES
        tokens, starts = flatten_ids(ids)

        def encode(rows: np.ndarray, network: Any) -> np.ndarray:
            order = list(cut_texts(starts[rows + 1] - starts[rows], is_gpu=self._feeder.is_gpu))
            parts = (self._send_texts(*pad_ids(tokens, starts, rows[part], pad_id)) for part in order)
            found = self._feeder.run(parts, lambda **inputs: _unit(network.get_text_features(**inputs)))
            features = np.empty_like(found)
            features[np.concatenate(order)] = found
            return features

        return self._encode(np.arange(len(ids)), encode)

    def _encode(self, rows: _Rows, encode: Callable[[_Rows, Any], np.ndarray]) -> np.ndarray:
        """Run the network, and for rows that are too much for half precision, whatever stands beside them, its wider twin."""
        features = encode(rows, self._network)
        if not self._feeder.is_gpu or (is_finite := np.isfinite(features).all(axis=1)).all():
            return features
        lost = np.flatnonzero(~is_finite)
        logger.warning("half precision overflowed, computed in single precision rows=%d", len(lost))
        features[lost] = encode(rows.take(lost), self._wide_network())
        return features

    def _wide_network(self) -> Any:
        with _load_lock:
            if self._wide is None:
                self._wide = self._load_network().to(self._device)
            return self._wide

    def _encode_pictures(self, prepared: pa.ChunkedArray, network: Any) -> np.ndarray:
        is_any_shape = bool(self._settings.patch_size)
        send = self._send_any_shape if is_any_shape else self._send_one_shape

        def compute(pixels: "torch.Tensor", **others: "torch.Tensor") -> "torch.Tensor":
            values = self._normalise(pixels, network.dtype)
            values = values.flatten(2) if is_any_shape else values.permute(0, 3, 1, 2).contiguous()
            return _unit(network.get_image_features(pixel_values=values, **others))

        cuts = cut_pictures(len(prepared), self._num_tokens, is_gpu=self._feeder.is_gpu)
        return self._feeder.run((send(prepared.slice(cut.start, cut.stop - cut.start)) for cut in cuts), compute)

    def _send_one_shape(self, prepared: pa.ChunkedArray) -> dict[str, "torch.Tensor"]:
        import torch

        images = self._feeder.empty((len(prepared), *self._settings.size, 3), torch.uint8)
        fill_images(self._settings, prepared, images.numpy())
        return {"pixels": self._feeder.send(images)}

    def _send_any_shape(self, prepared: pa.ChunkedArray) -> dict[str, "torch.Tensor"]:
        import torch

        patches, grids = stack_patches(self._settings, prepared)
        mask = torch.arange(patches.shape[1]) < torch.from_numpy(grids.prod(axis=1))[:, None]
        return {
            "pixels": self._feeder.send(torch.from_numpy(patches.reshape(*patches.shape[:2], -1, 3))),
            "pixel_attention_mask": self._feeder.send(mask.long()),
            "spatial_shapes": torch.from_numpy(grids),  # read on the CPU
        }

    def _send_texts(self, padded: np.ndarray, mask: np.ndarray) -> dict[str, "torch.Tensor"]:
        import torch

        # A causal tower never looks at what follows the end mark; SigLIP was trained to see its padding.
        sent = {"input_ids": padded, **({"attention_mask": mask} if self._text.is_masked else {})}
        return {name: self._feeder.send(torch.from_numpy(array)) for name, array in sent.items()}

    def _normalise(self, pixels: "torch.Tensor", dtype: "torch.dtype") -> "torch.Tensor":
        """Return bytes, colours last, as the values that the tower wants."""
        import torch

        if not self._feeder.is_gpu:
            return (pixels.float() * self._settings.scale - self._mean) / self._std
        # The same in two kernels, rounded once: a GPU's time for this is that of its memory.
        values = torch.empty(pixels.shape, dtype=dtype, device=pixels.device)
        return torch.add(pixels * (self._settings.scale / self._std), -self._mean / self._std, out=values)


@dataclass(frozen=True)
class TextLayout:
    """How a text tower wants its tokens: at most `length`; padded to it or not; told by a mask which are padding, or not."""

    length: int
    is_padded: bool
    is_masked: bool


def text_layout(config: Any) -> TextLayout:
    """Return the layout of a model's text tower from its configuration."""
    text = config.text_config
    is_padded = text.model_type.startswith("siglip")
    is_causal = text.model_type == "clip_text_model"
    return TextLayout(int(text.max_position_embeddings), is_padded, not (is_padded or is_causal))


def load_model(model: str, revision: str = "") -> TwoTowerModel:
    """Load a model onto this process's GPU, or the CPU; operators that ask for the same one share it."""
    with _load_lock:  # a cache does not keep two threads from loading the same weights at once
        return _load_model(model, revision)


@functools.lru_cache(maxsize=_MODELS_KEPT)
def _load_model(model: str, revision: str) -> TwoTowerModel:
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)
    settings = load_settings(model, revision, any_shape=True)
    network = _load_network(model, revision)
    _check_shape(network.config, settings, model)
    return TwoTowerModel(network, settings, device, functools.partial(_load_network, model, revision))


def _load_network(model: str, revision: str) -> Any:
    with quiet_transformers():
        network = _from_pretrained(model, revision)
    # Loaded tensors are views into the file at any address, and matrix products on a CPU give other last bits at other alignments.
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.clone()
    return network.eval()


@functools.lru_cache(maxsize=_MODELS_KEPT)
def encode_prompts(model: str, revision: str, prompts: tuple[str, ...]) -> np.ndarray:
    """Return the features of a few texts (texts x dimensions), without keeping the model in memory."""
    tokenize = load_tokenize(model, revision)
    with _load_lock:
        network = _load_model.__wrapped__(model, revision)
    return np.asarray(network.encode_ids(tokenize(prompts), tokenize.pad_id))


@functools.lru_cache(maxsize=_MODELS_KEPT)
def load_tokenize(model: str, revision: str = "") -> "Tokenize":
    """Return the function from texts to token ids of a model, without its weights."""
    from transformers import AutoConfig, AutoTokenizer

    pinned = {"revision": revision} if revision else {}
    with quiet_transformers():
        register_architectures(model, revision)
        try:
            tokenizer = AutoTokenizer.from_pretrained(model, **pinned)
            layout = text_layout(AutoConfig.from_pretrained(model, **pinned))
        except (OSError, ValueError, AttributeError) as error:
            raise InputError(f"{model} has no text tower and tokenizer that transformers can load: {error}") from error
    return Tokenize(tokenizer, layout)


class Tokenize:
    """Texts to token ids, cut to the tower's length, unpadded where the tower allows it."""

    def __init__(self, tokenizer: Any, layout: TextLayout) -> None:
        self._tokenizer = tokenizer
        self._layout = layout
        self.pad_id = int(tokenizer.pad_token_id or 0)
        self._direct = None if layout.is_padded else find_direct(tokenizer, layout.length)

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        if self._direct is not None:
            return self._direct(texts)
        padding = "max_length" if self._layout.is_padded else False
        encoded = self._tokenizer(list(texts), padding=padding, truncation=True, max_length=self._layout.length)
        return [list(ids) for ids in encoded["input_ids"]]


def to_half(features: np.ndarray) -> pa.Array:
    """Return features as an Arrow column of half-precision lists."""
    import torch

    rows, width = features.shape
    # Ten times faster than numpy's conversion, and to the same bits.
    flat = pa.array(torch.from_numpy(features).half().numpy().reshape(-1))
    return pa.ListArray.from_arrays(pa.array(np.arange(rows + 1, dtype=np.int32) * width), flat, type=EMBEDDING_TYPE)


def to_matrix(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column of embeddings without nulls as a float32 matrix."""
    rows = column.combine_chunks()
    if len(rows) == 0:
        return np.zeros((0, 0), dtype=np.float32)
    values: np.ndarray = rows.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(rows), -1)
    return values


def _from_pretrained(model: str, revision: str) -> Any:
    import torch
    from transformers import AutoModel

    pinned = {"revision": revision} if revision else {}
    register_architectures(model, revision)
    try:
        network = AutoModel.from_pretrained(model, dtype=torch.float32, **pinned)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{model} holds no model that transformers can load: {error}{conversion_hint(model)}"
        ) from error
    if not hasattr(network, "get_image_features") or not hasattr(network, "get_text_features"):
        raise InputError(f"{model} holds a {type(network).__name__}, which is no image-text model with two towers")
    return network


def _check_shape(config: Any, settings: ImageSettings, model: str) -> None:
    """Raise where the pictures that the image processor makes are not those that the image tower takes."""
    vision: Any = getattr(config, "vision_config", None)
    patch_size = int(vision.patch_size) if getattr(vision, "model_type", "") == _NATIVE_TOWER else 0
    if patch_size != settings.patch_size:
        taken, made = (
            f"pictures of any shape in patches of {size} pixels (NaFlex)" if size else "pictures of one shape"
            for size in (patch_size, settings.patch_size)
        )
        raise InputError(f"{model} has an image tower for {taken}, but its preprocessor_config.json makes {made}")


def _tokens_per_picture(config: Any, settings: ImageSettings) -> int:
    """Return about how many tokens an image tower works on: patches of a transformer, places of a convolutional network's last map."""
    if settings.patch_size:
        return settings.max_patches
    vision: Any = getattr(config, "vision_config", None)
    side = int(vision.patch_size) if getattr(vision, "num_attention_heads", 0) else _MAP_STRIDE
    height, width = settings.size
    return max(height // side, 1) * max(width // side, 1)


def _unit(output: Any) -> "torch.Tensor":
    from torch.nn import functional

    # transformers 5 returns the projected feature inside an output object, 4 as a tensor.
    feature = output if hasattr(output, "shape") else output.pooler_output
    return functional.normalize(feature.float(), dim=-1)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars or load reports from a worker."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
