"""Words of captions that mean a concept of the list."""

from pathlib import Path

import pyarrow as pa
import pytest

from curate.columns import Input
from curate.fingerprint import fingerprint
from curate.operators.synset_match import SynsetMatch
from schemas.errors import InputError
from tests.contract import check_operator, column, make_inputs, run
from tests.wordnet import make_wordnet

FINGERPRINT = "9ae7ee59fb0401bdc39a886a0e0ec42daa282259404ed305fa07a9d879842713"


@pytest.fixture
def operator(tmp_path: Path) -> SynsetMatch:
    synsets = tmp_path / "synsets.txt"
    # A dog, an axis, and the meaning of the verb sit.
    synsets.write_text("n02084071\nn13863186\n01543123\n")
    return SynsetMatch(wordnet=str(make_wordnet(tmp_path / "dict")), synsets=str(synsets))


def test_contract(operator: SynsetMatch) -> None:
    inputs = make_inputs(operator)
    assert column(run(operator, inputs, 23), "synset_num_matches")
    check_operator(operator, fingerprint=FINGERPRINT, inputs=inputs)


def test_captions(operator: SynsetMatch) -> None:
    captions = {
        "Two DOGS sat on a bus": ["DOGS", "sat"],
        "a dog, a dog. a hot dog": ["dog"],
        "dog\tdog\n dog\u00a0dog": ["dog"] * 4,
        "an axe and two axes": ["axes"],
        "the man saw wider": [],
        "  ": [],
        None: [],
        "\U0001f436 \u202edog\u202c": [],
    }
    output = run(operator, {"alt_text": Input.from_column(pa.array(captions, pa.string()))}, len(captions))
    assert column(output, "synset_matches") == list(captions.values())
    assert column(output, "synset_num_matches") == [len(words) for words in captions.values()]


def test_the_fingerprint_follows_the_files_and_not_their_place(operator: SynsetMatch, tmp_path: Path) -> None:
    copy = SynsetMatch(wordnet=str(make_wordnet(tmp_path / "copy")), synsets=operator.synsets)
    assert fingerprint(copy, {}) == fingerprint(operator, {})
    (tmp_path / "copy" / "verb.exc").write_text("sat sit\n")
    assert fingerprint(copy, {}) != fingerprint(operator, {})
    (tmp_path / "copy" / "verb.exc").unlink()
    with pytest.raises(InputError, match=r"verb\.exc' does not exist"):
        fingerprint(copy, {})
