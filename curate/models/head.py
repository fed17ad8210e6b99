"""Small heads over image embeddings: linear layers from a file, or two sets of prompts where there are no weights."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from curate.embedding import normalise
from curate.fingerprint import file_identity, model_identity
from curate.models.clip import encode_prompts, to_matrix
from curate.operator import Operator, ShardOperator
from curate.operators.clip_embedding import ClipEmbedding
from schemas.errors import InputError

# CLIP's temperature: what its logits are scaled by before the softmax.
_SCALE = 100.0
_ACTIVATIONS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "none": lambda values: values,
    "relu": lambda values: np.maximum(values, 0),
}
_PROMPT_MARK = "|"

Layers = list[tuple[np.ndarray, np.ndarray]]  # weight (outputs x inputs) and bias of each
Score = Callable[[np.ndarray], np.ndarray]  # unit rows to one number each


@dataclass(frozen=True, kw_only=True)
class HeadOperator(ShardOperator):
    """Scores `image_embedding` by a head's weights, or by prompts through `model`'s text tower where no weights are given."""

    reads = ("image_embedding",)
    default_positive: ClassVar[str]
    default_negative: ClassVar[str]

    weights: str = ""  # file of the head: .safetensors, .npz, .pth or .pt
    activation: str = "none"  # between the head's layers: none or relu
    model: str = ""  # CLIP or SigLIP model of the embeddings; needed for prompts
    revision: str = ""
    positive: str = ""  # prompts that mean a high score, separated by |; empty: the operator's own
    negative: str = ""

    def __post_init__(self) -> None:
        if not self.weights and not self.model:
            raise InputError(f"{self.name} needs `weights` of a head, or a `model` for its prompts")
        if self.activation not in _ACTIVATIONS:
            raise InputError(
                f"{self.name} activation is {self.activation!r}; it must be one of {', '.join(_ACTIVATIONS)}"
            )
        for name in ("weights", "model"):
            path = getattr(self, name)
            if path and Path(path).exists():
                object.__setattr__(self, name, str(Path(path).absolute()))

    def requires(self) -> tuple[Operator, ...]:
        """Return the operator that embeds the pictures, unless the column is bound to another's."""
        if not self.model or "image_embedding" in self.bind:
            return ()
        label = f"{self.label}_clip_embedding" if self.label else ""
        return (ClipEmbedding(model=self.model, revision=self.revision, label=label),)

    def identity(self) -> dict[str, Any]:
        """Return the weights' digest, or the prompts and the model that reads them."""
        if self.weights:
            return {"weights": file_identity(self.weights), "activation": self.activation}
        return {"prompts": self._prompts(), "model": model_identity(self.model, self.revision)}

    def load_score(self) -> tuple[Score, bool]:
        """Return the function from embeddings (rows x dimensions) to scores, and whether they are probabilities already."""
        if self.weights:
            return _head(read_layers(self.weights), self.activation, self.weights), False
        positive, negative = self._prompts()
        features = encode_prompts(self.model, self.revision, (*positive, *negative))
        return _zero_shot(features[: len(positive)], features[len(positive) :]), True

    def _prompts(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        found = tuple(
            tuple(text.strip() for text in prompts.split(_PROMPT_MARK) if text.strip())
            for prompts in (self.positive or self.default_positive, self.negative or self.default_negative)
        )
        if not all(found):
            raise InputError(f"{self.name}: positive and negative must each hold a prompt")
        return found[0], found[1]


def unit_rows(column: pa.ChunkedArray) -> np.ndarray:
    """Return embeddings as float32 unit rows."""
    return normalise(to_matrix(column))


def sigmoid(values: np.ndarray) -> np.ndarray:
    """Return 1 / (1 + exp(-x)) without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * values)))


def read_layers(path: str) -> Layers:
    """Return the linear layers of a file in the order of their names; raises InputError where they do not follow on each other."""
    arrays = _read_arrays(path)
    names = sorted((name for name, array in arrays.items() if array.ndim == 2), key=_natural)
    layers = []
    for name in names:
        weight = arrays[name].astype(np.float32)
        bias = arrays.get(re.sub(r"weight$", "bias", name)) if name.endswith("weight") else None
        layers.append((weight, np.zeros(len(weight), np.float32) if bias is None else bias.astype(np.float32)))
    shapes = [weight.shape for weight, _ in layers]
    follows = all(left[0] == right[1] for left, right in pairwise(shapes))
    if not layers or not follows or shapes[-1][0] != 1:
        raise InputError(
            f"{path!r} holds matrices of shapes {shapes}; a head's layers must follow on each other and end in one output"
        )
    return layers


def _read_arrays(path: str) -> dict[str, np.ndarray]:
    if not Path(path).is_file():
        raise InputError(f"file of weights {path!r} does not exist")
    if path.endswith(".safetensors"):
        from safetensors.numpy import load_file

        return dict(load_file(path))
    if path.endswith(".npz"):
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    if path.endswith((".pth", ".pt", ".bin")):
        import torch

        # Never the pickle itself: it could run anything.
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {name: tensor.float().numpy() for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}
    raise InputError(f"{path!r} must be .safetensors, .npz, .pth, .pt or .bin to be read as weights")


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _head(layers: Layers, activation: str, path: str) -> Score:
    activate = _ACTIVATIONS[activation]

    def score(embeddings: np.ndarray) -> np.ndarray:
        if len(embeddings) and embeddings.shape[1] != layers[0][0].shape[1]:
            raise InputError(
                f"the head {path!r} takes {layers[0][0].shape[1]} dimensions, the pool's embeddings have {embeddings.shape[1]}; use the "
                "model it was trained with"
            )
        values = embeddings.reshape(len(embeddings), layers[0][0].shape[1])
        for number, (weight, bias) in enumerate(layers):
            values = values @ weight.T + bias
            if number < len(layers) - 1:
                values = activate(values)
        return np.asarray(values[:, 0])

    return score


def _zero_shot(positive: np.ndarray, negative: np.ndarray) -> Score:
    """Return the share of the positive prompts' mean embedding in the softmax over both (Radford et al. 2021)."""
    means = normalise(np.stack([positive.mean(axis=0), negative.mean(axis=0)]))
    difference = _SCALE * (means[0] - means[1])

    def score(embeddings: np.ndarray) -> np.ndarray:
        return sigmoid(embeddings.reshape(len(embeddings), len(difference)) @ difference)

    return score
