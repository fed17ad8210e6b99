"""Shingles, MinHash and candidates against plain Python and the formula."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.minhash import (
    MAX_LEADERS,
    Shingles,
    Sketches,
    band_keys,
    candidates,
    jaccard,
    normalise,
    shingle,
    sketch,
)

# Golden values of the S-curve of 14 bands of 8 rows.
S_CURVE = {0.5: 0.0533, 0.7: 0.5645, 0.75: 0.7716, 0.8: 0.9235, 0.85: 0.9884, 0.9: 0.9996}


def normalised(text: str) -> str:
    texts = normalise([text])
    return texts.codes.tobytes().decode("utf-32-le")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("  A Cat,  on-a MAT!  ", "a cat on a mat"),
        ("", ""),
        ("\t\n", ""),
        ("\U0001f600 \U0001f600", "\U0001f600 \U0001f600"),  # emoji only: compared by what it has
        ("cat \U0001f600", "cat"),
        ("...", "..."),
        ("\uff26\uff35\uff2c\uff2c width \ufb01", "full width fi"),
        ("Ärger mit Öl", "ärger mit öl"),
        ("مرحبا بالعالم", "مرحبا بالعالم"),
        ("\x00null\x07bell", "null bell"),
    ],
)
def test_normalise(text: str, wanted: str) -> None:
    assert normalised(text) == wanted


@given(st.lists(st.text(max_size=40), max_size=8))
def test_each_text_is_treated_as_if_alone(captions: list[str]) -> None:
    together = normalise(captions)
    bounds = pairwise([0, *together.ends.tolist()])
    alone = [normalised(caption) for caption in captions]
    found = [together.codes[a:b].tobytes().decode("utf-32-le") for a, b in bounds]
    assert found == alone
    shingles = shingle(together)
    sizes = [len({text[i : i + 5] for i in range(max(1, len(text) - 4))}) if text else 0 for text in alone]
    assert shingles.lengths.tolist() == sizes
    digests = [tuple(row) for row in together.digests().tolist()]
    for i, first in enumerate(alone):
        for j, second in enumerate(alone):
            assert (digests[i] == digests[j]) == (first == second)


@given(st.lists(st.text("ab ", min_size=1, max_size=30), min_size=2, max_size=6))
def test_jaccard_is_that_of_the_sets(captions: list[str]) -> None:
    texts = [normalised(caption) for caption in captions]
    sets = [{text[i : i + 5] for i in range(max(1, len(text) - 4))} if text else set() for text in texts]
    shingles = shingle(normalise(captions))
    rows = np.arange(len(captions) - 1)
    # Two without shingles are the same.
    wanted = [len(sets[i] & sets[i + 1]) / len(sets[i] | sets[i + 1]) if sets[i] | sets[i + 1] else 1 for i in rows]
    assert jaccard(shingles, rows, rows + 1).tolist() == pytest.approx(wanted)


@given(
    st.lists(st.lists(st.integers(0, 300), max_size=60, unique=True), min_size=2, max_size=8),
    st.sampled_from([0.3, 0.5, 0.8, 1.0]),
)
def test_sketches_lose_no_similar_pair(numbers: list[list[int]], threshold: float) -> None:
    # Numbers near each other share bits, so that bits of different shingles meet.
    values = np.array([value for text in numbers for value in sorted(text)], np.uint32)
    shingles = Shingles(values, np.cumsum([len(text) for text in numbers]))
    left, right = np.triu_indices(len(numbers), 1)
    may = Sketches(sketch(shingles), shingles.lengths).may_reach(threshold, left, right)
    assert may[jaccard(shingles, left, right) >= threshold].all()


def test_sketches_rule_most_other_pairs_out() -> None:
    random = np.random.default_rng(0)
    common = random.integers(0, 2**32, (500, 30), dtype=np.uint32)
    other = random.integers(0, 2**32, (500, 30), dtype=np.uint32)
    own = random.integers(0, 2**32, (500, 30), dtype=np.uint32)
    # Half of the shingles in common: similarity 1 / 3.
    values = np.concatenate([np.sort(np.concatenate([common, side], axis=1)) for side in (own, other)])
    shingles = Shingles(values.ravel(), np.arange(1, 1001) * 60)
    rows = np.arange(500)
    may = Sketches(sketch(shingles), shingles.lengths).may_reach(0.8, rows, rows + 500)
    assert may.mean() < 0.01


@pytest.mark.parametrize("similarity", S_CURVE)
def test_candidates_follow_the_s_curve(similarity: float) -> None:
    """12,000 pairs of sets with the same similarity: the share that agrees in a band is 1 - (1 - s^8)^14 within sampling error."""
    num_pairs, union = 12_000, 100
    common = round(similarity * union)
    values = np.random.default_rng(0).integers(0, 2**32, (num_pairs, union), dtype=np.uint32)
    half = common + (union - common) // 2
    first, second = values[:, :half], np.concatenate([values[:, :common], values[:, half:]], axis=1)
    sets = [*first, *second]
    shingles = Shingles(np.concatenate(sets), np.cumsum([len(found) for found in sets]))
    keys = band_keys(shingles, 14, 8)
    share = (keys[:num_pairs] == keys[num_pairs:]).any(axis=1).mean()
    wanted = S_CURVE[similarity]
    assert share == pytest.approx(wanted, abs=4 * np.sqrt(wanted * (1 - wanted) / num_pairs) + 5e-5)


def test_candidates_are_all_pairs_that_agree_once_each() -> None:
    keys = np.random.default_rng(1).integers(0, 12, (4, 60)).astype(np.uint64)
    found = [pair for left, right in candidates(keys) for pair in zip(left.tolist(), right.tolist(), strict=True)]
    wanted = {(i, j) for i in range(60) for j in range(i + 1, 60) if (keys[:, i] == keys[:, j]).any()}
    assert set(found) == wanted
    assert len(found) == len(wanted)


def test_candidates_that_cannot_match_are_left_out() -> None:
    keys = np.random.default_rng(1).integers(0, 4, (3, 40)).astype(np.uint64)
    is_even = lambda left, right: (left + right) % 2 == 0  # noqa: E731
    every = [pair for left, right in candidates(keys) for pair in zip(left.tolist(), right.tolist(), strict=True)]
    found = [
        pair for left, right in candidates(keys, is_even) for pair in zip(left.tolist(), right.tolist(), strict=True)
    ]
    assert found == [pair for pair in every if sum(pair) % 2 == 0]


def test_a_crowded_band_is_not_quadratic() -> None:
    count = 5000
    keys = np.zeros((1, count), np.uint64)
    pairs = list(candidates(keys))
    left = np.concatenate([pair[0] for pair in pairs])
    assert left.max() == MAX_LEADERS - 1
    assert len(left) < MAX_LEADERS * count


def test_long_and_empty_texts() -> None:
    captions = ["", "x", "word " * 40_000, "y" * 200_000]
    shingles = shingle(normalise(captions))
    assert shingles.lengths.tolist() == [0, 1, 5, 1]
    keys = band_keys(shingle(normalise([c for c in captions if c])), 3, 2)
    assert len({tuple(row) for row in keys.tolist()}) == 3
