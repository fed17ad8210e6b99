"""First occurrences and counts, against the plain way."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.fetch import merge
from curate.fetch.merge import Merger
from schemas.uid import sample_uid


@given(st.lists(st.integers(0, 30), max_size=200), st.sets(st.integers(0, 30)))
def test_merge_is_exact(values: list[int], known: set[int]) -> None:
    uids = [sample_uid(str(value), None) for value in values]
    with pytest.MonkeyPatch.context() as patch, Merger() as merger:
        patch.setattr(merge, "_BUFFERED_ROWS", 16)  # so that buckets are written in many pieces
        merger.add_known([sample_uid(str(value), None) for value in known])
        for start in range(0, len(uids), 7):
            merger.add(uids[start : start + 7], uids[start : start + 7])
        plan = merger.finish()
    first = {value: row for row, value in reversed(list(enumerate(values)))}
    expected = sorted(row for value, row in first.items() if value not in known)
    assert np.flatnonzero(plan.kept).tolist() == expected
    counts = Counter(values)
    assert plan.occurrences(np.array(expected, dtype=np.int64)).tolist() == [counts[values[row]] for row in expected]
    assert plan.num_known == len(known & set(values))
    assert (plan.num_rows, plan.num_kept) == (len(values), len(expected))
