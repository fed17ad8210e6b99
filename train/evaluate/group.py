"""Splits a metric by groups of images: a value per group, and that of the worst."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt


def split_by_group(name: str, values: Sequence[str], hits: Mapping[str, npt.NDArray[np.bool_]]) -> dict[str, float]:
    """Return `METRIC[NAME=VALUE]` for each group, the share of its hits, and `worst_NAME_METRIC`, the least of these.

    `hits` holds an outcome per image for each metric; images whose value is not known ("") are in no group.
    """
    numbered = {value: number for number, value in enumerate(sorted(set(values) - {""}))}
    if not numbered:
        return {}
    groups = np.array([numbered.get(value, -1) for value in values])
    known = groups >= 0
    sizes = np.bincount(groups[known], minlength=len(numbered))
    metrics: dict[str, float] = {}
    for metric, outcomes in hits.items():
        shares = np.bincount(groups[known], weights=outcomes[known], minlength=len(numbered)) / sizes
        metrics |= {f"{metric}[{name}={value}]": float(shares[number]) for value, number in numbered.items()}
        metrics[f"worst_{name}_{metric}"] = float(shares.min())
    return metrics
