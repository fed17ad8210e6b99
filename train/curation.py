"""Curation in training: which texts of a raw stream the text tower, as it is, finds close to the names of a task (CiT, arXiv 2301.02241)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from schemas.errors import InputError
from train.distributed import World
from train.model import ImageTextModel
from train.sampler import Indices
from train.sampling import Curation

# Texts encoded at a time; fixed, so that every number of processes computes the same cosines.
_CHUNK = 256
# Raw texts looked at at a time, in batches: the share that is kept is counted within these.
RAW_BATCHES = 2


@dataclass(frozen=True)
class Curated:
    """The samples of the next steps, and how far the raw stream has been read."""

    rows: Indices  # steps x batch_size, in the order in which they were met
    position: int


def read_names(path: str) -> list[str]:
    """Return the lines of a file of names, without those that are blank."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"sampling.curation.names: {path} cannot be read: {error}") from error
    names = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not names:
        raise InputError(f"sampling.curation.names: {path} holds no names; write one per line")
    return names


def keep_close(cosines: npt.NDArray[np.float32], threshold: float, min_ratio: float) -> Indices:
    """Return the places whose cosine is above the threshold, or the best `min_ratio` of all where that would be fewer, in order."""
    kept = np.flatnonzero(cosines > threshold)
    least = max(1, round(min_ratio * len(cosines)))
    if len(kept) >= min_ratio * len(cosines) and len(kept):
        return kept
    return np.sort(np.argsort(-cosines, kind="stable")[:least])


def collect(
    config: Curation,
    *,
    num_samples: int,
    raw: Callable[[int, int], Indices],
    raw_size: int,
    position: int,
    cosines: Callable[[Indices], npt.NDArray[np.float32]],
) -> Curated:
    """Read the raw stream from `position` on until `num_samples` are kept; what is kept beyond that is left out.

    `raw(start, stop)` returns the samples at some positions of the stream, `cosines` how close each is to its nearest name.
    """
    found: list[Indices] = []
    while sum(len(rows) for rows in found) < num_samples:
        rows = raw(position, position + raw_size)
        found.append(rows[keep_close(cosines(rows), config.threshold, config.min_ratio)])
        position += raw_size
    return Curated(np.concatenate(found)[:num_samples], position)


@torch.no_grad()
def encode_unprojected(model: ImageTextModel, texts: Sequence[str]) -> torch.Tensor:
    """Return unit features of texts before the projection into the space that pictures share (n, text width)."""
    ids, mask = model.tokenize(texts)
    output = model.network.text_model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device))
    return functional.normalize(output.pooler_output.float(), dim=-1)


class Nearness:
    """How close texts are to the nearest of the names, by one state of the model; the work is shared by the processes."""

    def __init__(self, model: ImageTextModel, names: Sequence[str], world: World) -> None:
        self._model = model
        self._world = world
        parts = [names[start : start + _CHUNK] for start in range(0, len(names), _CHUNK)]
        self._names = torch.cat([encode_unprojected(model, part) for part in parts])

    def cosines(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return the cosine of each text to its nearest name; every process gets all of them."""
        found = torch.zeros(len(texts), device=self._model.device)
        for number, start in enumerate(range(0, len(texts), _CHUNK)):
            if number % self._world.size == self._world.rank:
                features = encode_unprojected(self._model, texts[start : start + _CHUNK])
                found[start : start + _CHUNK] = (features @ self._names.T).max(dim=1).values
        return np.asarray(self._world.sum(found).cpu().numpy())
