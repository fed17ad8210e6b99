"""Words to first meanings by WordNet's own files, and what is said of files that are not its."""

from pathlib import Path

import pytest

from curate.wordnet import WordNet, read_synset_offsets
from schemas.errors import InputError
from tests.wordnet import make_wordnet


@pytest.fixture(scope="module")
def wordnet(tmp_path_factory: pytest.TempPathFactory) -> WordNet:
    return WordNet(make_wordnet(tmp_path_factory.mktemp("wordnet") / "dict"))


@pytest.mark.parametrize(
    ("word", "offset"),
    [
        ("dog", 2084071),  # the first of two meanings
        ("Dog", 2084071),
        ("DOGS", 2084071),
        ("dog,", None),  # punctuation stays with the word
        ("dog's", None),
        ("hot_dog", 7697537),
        ("bus", 2924116),  # three pointers stand before its meanings
        ("buses", 2924116),  # ses -> s, where "buse" is no word
        ("glasses", 4272054),  # a word itself
        ("men", 10287213),
        ("run", 558008),  # a noun before a verb
        ("runs", 558008),
        ("running", 1926311),  # an irregular verb, and no noun
        ("saw", 4140064),  # a noun, though it is an irregular verb too
        ("sat", 1543123),
        ("axes", 13863186),  # the first of its irregular forms that is a word
        ("sledges", None),  # irregular: its only base form is no word, and rules do not apply
        ("baked", 319886),
        ("baking", 319886),
        ("bigger", 1382086),
        ("wider", 2560548),
        ("widest", 2560548),
        ("away", 233295),
        ("xss", 31),  # rules apply again until a word is found
        ("", None),
        ("s", None),
        ("d\u00f6g", None),
        ("\U0001f436", None),
        ("x" + 98 * "s", 31),
        ("x" + 100 * "s", None),
        (1_000_000 * "s", None),
    ],
)
def test_first_meanings(wordnet: WordNet, word: str, offset: int | None) -> None:
    assert wordnet.first_synset(word) == offset


def test_synsets_are_read_with_and_without_their_letter(tmp_path: Path) -> None:
    path = tmp_path / "synsets.txt"
    path.write_text("n02084071\tdog\n\n  01543123 \nn02084071\n")
    assert read_synset_offsets(path) == {2084071, 1543123}


def test_unusable_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "synsets.txt"
    with pytest.raises(InputError, match=r"synsets\.txt' does not exist"):
        read_synset_offsets(path)
    path.write_text("\n")
    with pytest.raises(InputError, match="holds none; write one a line"):
        read_synset_offsets(path)
    path.write_text("n02084071\ndog\n")
    with pytest.raises(InputError, match=r"synsets\.txt:2: 'dog' is no synset; write n02084071"):
        read_synset_offsets(path)
    folder = make_wordnet(tmp_path / "dict")
    index = folder / "index.verb"
    for line in ("dog v 2 0 1 1 02084071", "dog v 1 0 1 1 offset", "dog v", "dog v one 0 1 1 02084071"):
        index.write_text(f"  1 licence\n{line}\n")
        with pytest.raises(InputError, match=rf"index\.verb:2 is no line of WordNet's index, which lists .*'{line}'"):
            WordNet(folder)
    index.write_text("")
    (folder / "noun.exc").unlink()
    with pytest.raises(
        InputError, match=r"noun\.exc does not exist; give WordNet's folder of database files, which holds index\.noun"
    ):
        WordNet(folder)
