"""Cuts a model's embedding to its first numbers: what the loss `matryoshka` trains a model for."""

from pathlib import Path

import torch
from torch import nn

from schemas.errors import InputError
from train.checkpoint import find_checkpoint, new_model_folder

_PROJECTIONS = ("visual_projection", "text_projection")


def cut(model: str, width: int, out: str, *, revision: str = "") -> Path:
    """Write into the new folder `out` a model whose embeddings are the first `width` numbers of the given model's, and return the folder.

    Embeddings are scaled to length 1 after that, as ever. `model` is a run (its newest checkpoint), a model folder, or a hub id with its
    `revision`. It must project both towers into the common space (a CLIP does, a SigLIP does not).
    """
    from train.model import load_model

    with new_model_folder(out) as staging:
        loaded = load_model(model if revision else find_checkpoint(model), revision=revision)
        network = loaded.network
        for name in _PROJECTIONS:
            if not isinstance(getattr(network, name, None), nn.Linear):
                raise InputError(
                    f"{model} is a {type(network).__name__} without {name}, so its embedding cannot be cut"
                )
        if not 1 <= width < loaded.embed_dim:
            raise InputError(
                f"width must be from 1 to {loaded.embed_dim - 1}, below the model's {loaded.embed_dim}, got {width}"
            )
        for name in _PROJECTIONS:
            _keep_first(getattr(network, name), width)
        for config in (network.config, network.config.text_config, network.config.vision_config):
            if hasattr(config, "projection_dim"):
                config.projection_dim = width
        loaded.save(staging)
        loaded.tokenizer.save_pretrained(staging)
    return Path(out)


@torch.no_grad()
def _keep_first(projection: nn.Linear, width: int) -> None:
    projection.out_features = width
    projection.weight = nn.Parameter(projection.weight[:width].clone())
    if projection.bias is not None:
        projection.bias = nn.Parameter(projection.bias[:width].clone())
