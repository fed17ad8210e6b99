"""Groups out of pairs that are alike, without chains: everything in a group is alike to the one that stands for it."""

import numpy as np


def star_groups(num_items: int, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return for each item the item that stands for it; items come in order of preference, 0 first.

    The most preferred item that is in no group yet starts one and takes everything alike that is in none. So A ~ B ~ C does not put A
    and C together unless they are alike themselves, or both are alike to B and B is preferred to them. `left` and `right` are the pairs.
    """
    representative = np.arange(num_items)
    if len(left) == 0:
        return representative
    ends = np.concatenate([left, right])
    others = np.concatenate([right, left])
    order = np.lexsort((others, ends))
    ends, others = ends[order], others[order]
    starts = np.append(np.flatnonzero(np.diff(ends, prepend=-1)), len(ends))
    neighbours = others.tolist()
    is_taken = bytearray(num_items)
    # In Python, because each step depends on those before; only items that are alike to another are looked at.
    for item, start, stop in zip(ends[starts[:-1]].tolist(), starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        if is_taken[item]:
            continue
        is_taken[item] = 1
        for other in neighbours[start:stop]:
            if not is_taken[other]:
                is_taken[other] = 1
                representative[other] = item
    return representative
