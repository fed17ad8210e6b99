"""A CLIP with random weights: it costs what a trained one of its shape costs."""

from collections.abc import Sequence
from pathlib import Path

SHAPE = "vit-b-32"


def make_clip(folder: Path, captions: Sequence[str], shape: str = SHAPE) -> Path:
    """Write the folder as `winnow train` does, with a tokenizer of the captions; `shape` is a name of its models."""
    from train.config import MODELS
    from train.model import build_model
    from train.tokenizer import train_tokenizer

    config = MODELS[shape]
    tokenizer = train_tokenizer(captions, 8192, config.context_length)
    folder.mkdir(parents=True)
    build_model(config, tokenizer, seed=0).save(folder)
    tokenizer.save_pretrained(folder)
    return folder
