"""WinoGAViL: which images belong to a cue (Bitton et al., 2022), by the Jaccard index, as DataComp measures it.

The cue is put as "A cue" or "An cue"; as many images are chosen as belong to it. Scores are averaged over games of 5 or 6 candidates, of 10
or 12 (DataComp's main metric), and over all.
"""

import json
import math
from collections.abc import Mapping, Sequence
from math import comb

import torch

from schemas.errors import InputError
from train.evaluate.task import Association

ASSOCIATIONS_FILE = "winogavil.jsonl"
_HARD = 10  # candidates; games have 5, 6, 10 or 12


def make_prompt(cue: str) -> str:
    """Return the text that stands for a cue."""
    text = cue.lower()
    return f"An {text}" if text[:1] in {"a", "e", "i", "o", "u"} else f"A {text}"


def read_associations(content: str, keys: Mapping[str, int], path: str) -> list[Association]:
    """Read games, one JSON object a line with `cue`, `candidates` and `associations`; images are named by their keys in the tars."""
    instances = []
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            game = json.loads(line)
            candidates = [keys[name] for name in _names(game["candidates"])]
            associations = frozenset(keys[name] for name in _names(game["associations"]))
            cue = str(game["cue"])
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"{path} line {number} is no game with cue, candidates and associations among the images ({error!r})"
            ) from error
        if not associations or not associations <= set(candidates) or not cue:
            raise InputError(
                f"{path} line {number}: the associations must be some of the candidates, and the cue a word"
            )
        instances.append(Association(cue, candidates, associations))
    if not instances:
        raise InputError(f"{path} holds no games")
    return instances


def measure_associations(
    image_features: torch.Tensor, cue_features: torch.Tensor, instances: Sequence[Association]
) -> dict[str, float]:
    """Return the mean Jaccard index of the chosen images and those that belong to the cue, and what guessing scores.

    `cue_features` holds one unit vector per game. Ties count against the model.
    """
    scores: dict[str, list[float]] = {"jaccard": [], "jaccard_5_6": [], "jaccard_10_12": []}
    chances: dict[str, list[float]] = {name: [] for name in scores}
    for row, game in enumerate(instances):
        similarity = (image_features[list(game.candidates)] @ cue_features[row]).tolist()
        wanted = [candidate in game.associations for candidate in game.candidates]
        # An image that belongs to the cue comes after others of the same score; what is not a number comes first.
        order = sorted(range(len(wanted)), key=lambda place: (-similarity[place], wanted[place]))
        if any(math.isnan(value) for value in similarity):
            order = sorted(range(len(wanted)), key=lambda place: wanted[place])
        count = len(game.associations)
        found = sum(wanted[place] for place in order[:count])
        size = "jaccard_10_12" if len(wanted) >= _HARD else "jaccard_5_6"
        for name in ("jaccard", size):
            scores[name].append(found / (2 * count - found))
            chances[name].append(_chance(count, len(wanted)))
    metrics: dict[str, float] = {}
    for name, values in scores.items():
        if values:
            metrics[name] = sum(values) / len(values)
            metrics[f"chance_{name}"] = sum(chances[name]) / len(values)
    return metrics | {"num_games": float(len(instances))}


def _chance(count: int, total: int) -> float:
    """Return the mean Jaccard index of `count` images drawn at random of `total`, of which `count` are right."""
    ways = comb(total, count)
    return sum(
        comb(count, found) * comb(total - count, count - found) / ways * found / (2 * count - found)
        for found in range(max(0, 2 * count - total), count + 1)
    )


def _names(value: object) -> list[str]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is not a list of names")
    return [str(name) for name in value]
