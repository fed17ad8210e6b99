"""The rule parser over the labelled set: no kind may get worse. `python -m benchmarks caption_parse` shows every figure."""

import pytest

from curate.parsing.rules import RuleParser
from tests.curate.parsing.labelled import KINDS, held_back, measure, read_labelled


@pytest.mark.parametrize("part", ["all", "held back"])
def test_precision_and_recall(part: str) -> None:
    labelled = read_labelled()
    assert len(labelled) >= 200
    scores = measure(RuleParser(), labelled if part == "all" else held_back(labelled))
    for kind, least in zip(KINDS, (0.97, 0.93, 0.86), strict=True):
        assert scores[kind].num_expected > 30
        assert scores[kind].precision >= least, (kind, scores[kind])
        assert scores[kind].recall >= least, (kind, scores[kind])
