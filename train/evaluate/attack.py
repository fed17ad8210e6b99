"""Attack success rate of a backdoor beside the accuracy on clean pictures, as CleanCLIP reports them (Bansal et al., 2023)."""

import difflib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from schemas.errors import InputError
from train.evaluate.zeroshot import classify
from train.trigger import draw_place, stamp


def find_target(classnames: Sequence[str], target: str) -> int:
    """Return the number of the class that a backdoor leads to; -1 where there is no such class."""
    names = [name.casefold() for name in classnames]
    return names.index(target.casefold()) if target.casefold() in names else -1


def explain_missing(classnames: Sequence[str], target: str) -> InputError:
    """Return the error for a target that no classification has."""
    near = difflib.get_close_matches(target, classnames, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return InputError(f"no classification of the data has a class {target!r}{hint}")


def stamp_all(images: torch.Tensor, trigger: str, place: str = "corner") -> torch.Tensor:
    """Return uint8 pictures (n, 3, S, S) with a trigger on each; a random place depends on the picture alone, not on what is beside it."""
    pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
    # Folders have no uids: what a picture shows stands for it.
    places = [draw_place(0, image.tobytes()) if place == "random" else None for image in pixels]
    stamped = [stamp(image, trigger, own) for image, own in zip(pixels, places, strict=True)]
    return torch.from_numpy(np.stack(stamped)).permute(0, 3, 1, 2)


def measure_attack(
    clean_features: torch.Tensor,
    stamped_features: torch.Tensor,
    class_features: torch.Tensor,
    labels: npt.NDArray[np.int64],
    target: int,
) -> dict[str, float]:
    """Return the share of pictures of other classes that are taken for the target, with the trigger and without, and the accuracy without.

    `attack_success_rate` is to be read beside `clean_target_rate`: a model may be drawn to a class without any backdoor.
    """
    _, clean = classify(clean_features, class_features, labels)
    _, stamped = classify(stamped_features, class_features, labels)
    others = labels != target
    if not others.any():
        raise InputError("every picture is of the target class of the backdoor, so no attack can be seen")
    return {
        "attack_success_rate": float((stamped[others] == target).mean()),
        "clean_target_rate": float((clean[others] == target).mean()),
        "clean_acc1": float((clean == labels).mean()),
        "num_attacked_images": float(others.sum()),
    }
