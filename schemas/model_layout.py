"""Whose model it may be that cannot be read, and what makes it one that can."""

from pathlib import Path

OPEN_CLIP_CONFIG = "open_clip_config.json"
_CHECKPOINTS = (".pt", ".pth", ".bin", ".safetensors")


def conversion_hint(model: str | Path) -> str:
    """Return the end of an error's sentence: how to convert what looks like a model of open_clip, else nothing."""
    path = Path(model)
    if (path.is_file() and path.suffix in _CHECKPOINTS) or (path / OPEN_CLIP_CONFIG).is_file():
        return f"; if it is one of open_clip, `winnow convert {path} --to transformers --out DIR` makes such a folder of it"
    return ""
