"""Groups do not chain: every member is alike to the one that stands for it."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from curate.grouping import star_groups


def groups(num_items: int, pairs: list[tuple[int, int]]) -> list[int]:
    left, right = (np.array([pair[side] for pair in pairs], np.int64) for side in (0, 1))
    return star_groups(num_items, left, right).tolist()


def test_a_chain_is_cut_where_it_is_not_alike() -> None:
    assert groups(4, [(0, 1), (1, 2), (2, 3)]) == [0, 0, 2, 2]


def test_the_most_preferred_item_takes_all_alike_to_it() -> None:
    assert groups(4, [(0, 2), (0, 3), (1, 2)]) == [0, 1, 0, 0]
    assert groups(3, []) == [0, 1, 2]


@given(
    st.integers(1, 12).flatmap(
        lambda n: st.tuples(st.just(n), st.sets(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1))))
    )
)
def test_every_member_is_alike_and_every_group_keeps_one(case: tuple[int, set[tuple[int, int]]]) -> None:
    num_items, drawn = case
    pairs = sorted({(min(pair), max(pair)) for pair in drawn if pair[0] != pair[1]})
    found = groups(num_items, pairs)
    for item, representative in enumerate(found):
        assert found[representative] == representative <= item
        assert item == representative or (representative, item) in pairs
    # Two that stand for groups are not alike, or one of them would be in the other's group.
    alone = [item for item, representative in enumerate(found) if item == representative]
    assert not any((first, second) in pairs for first in alone for second in alone)
