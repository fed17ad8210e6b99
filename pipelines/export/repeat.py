"""Weights as repetitions, for readers that know no weights: a sample of twice the weight is there twice as often.

Which way a fraction is rounded is decided by the uid alone, so every export of the same weights repeats the same samples, whatever the
order, the shards or the number of workers; over many samples the expectation is exact.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from schemas.errors import InputError

# Why samples are left out where weights become repetitions.
NO_REPETITION = "their weight came to no repetition; a larger --num-samples keeps more of them, --no-weights all"
UID_TYPE = np.dtype("u8,u8")
# A weight that should come out whole is off by no more than this after scaling.
_TOLERANCE = 1e-9
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """How often samples are repeated: `scale` times the weight; 0 where every sample is there once, whatever its weight."""

    scale: float

    def count(self, uids: Sequence[str], weights: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Return how often each sample is there."""
        return self.count_parsed(parse_uids(uids), weights)

    def count_parsed(self, uids: npt.NDArray[np.void], weights: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Return how often each sample is there, of uids as `parse_uids` returns them."""
        if not self.scale:
            return np.ones(len(uids), np.int64)
        wanted = weights * self.scale
        nearest = np.rint(wanted)
        wanted = np.where(np.abs(wanted - nearest) <= _TOLERANCE * np.maximum(nearest, 1.0), nearest, wanted)
        whole = np.floor(wanted)
        return (whole + (wanted - whole > _fraction(uids))).astype(np.int64)


def plan_repeats(weights: Iterable[npt.NDArray[np.float64]], num_samples: int = 0) -> Repeats:
    """Return the repetitions that make about `num_samples` of all (0: as many as there are samples); one each where all weights are equal.

    Raises `InputError` where a weight is negative or not finite, or where all of them are 0.
    """
    total, count, least, most = 0.0, 0, np.inf, 0.0
    for part in weights:
        if len(part) and (not np.isfinite(part).all() or part.min() < 0):
            raise InputError(f"weights must be finite and 0 or more, got {part[~(part >= 0) | ~np.isfinite(part)][0]}")
        total, count = total + float(part.sum()), count + len(part)
        least, most = min(least, part.min(initial=np.inf)), max(most, part.max(initial=0.0))
    if not total:
        raise InputError("every weight is 0, so nothing would be repeated; give the selection another weight")
    if num_samples < 0:
        raise InputError(f"num_samples is {num_samples}; it must be 0 or more")
    if least == most and num_samples in (0, count):
        return Repeats(scale=0.0)
    return Repeats(scale=(num_samples or count) / total)


def parse_uids(uids: Sequence[str]) -> npt.NDArray[np.void]:
    """Return uids as pairs of 64-bit numbers, the high half first (the type of DataComp's subset files)."""
    data = bytes.fromhex("".join(uids))
    if len(data) != 16 * len(uids):
        raise InputError("a uid is not 32 hex characters; import or download the pool again")
    return np.frombuffer(data, ">u8").astype("<u8").view(UID_TYPE)


def _fraction(uids: npt.NDArray[np.void]) -> npt.NDArray[np.float64]:
    """Return a number in [0, 1) for each uid: mixed, because a source may bring uids that are merely counted up (Steele et al. 2014)."""
    state = uids["f0"] * np.uint64(0x9E3779B97F4A7C15) + uids["f1"]
    state = (state ^ (state >> np.uint64(30))) * _MIX[0]
    state = (state ^ (state >> np.uint64(27))) * _MIX[1]
    return np.asarray(((state ^ (state >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53, np.float64)
