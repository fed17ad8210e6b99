"""The spaCy parser on trees written down by hand: no English pipeline is needed to read a tree."""

import pytest

from schemas.errors import InputError

spacy = pytest.importorskip("spacy", reason="spaCy is an extra: pip install 'winnow[spacy]'")


def tree(*rows: tuple[str, str, str, str, int]) -> "spacy.tokens.Doc":
    """Return a text from (word, lemma, part of speech, relation, head)."""
    words, lemmas, parts, relations, heads = zip(*rows, strict=True)
    return spacy.tokens.Doc(
        spacy.vocab.Vocab(), list(words), lemmas=list(lemmas), pos=list(parts), deps=list(relations), heads=list(heads)
    )


def test_the_example_of_the_paper() -> None:
    from curate.parsing.spacy_parser import read_tree

    doc = tree(
        ("A", "a", "DET", "det", 2),
        ("black", "black", "ADJ", "amod", 2),
        ("cat", "cat", "NOUN", "nsubj", 4),
        ("is", "be", "AUX", "aux", 4),
        ("chasing", "chase", "VERB", "ROOT", 4),
        ("a", "a", "DET", "det", 8),
        ("small", "small", "ADJ", "amod", 8),
        ("brown", "brown", "ADJ", "amod", 8),
        ("bird", "bird", "NOUN", "dobj", 4),
    )
    parse = read_tree(doc)
    assert parse.describe() == ["cat: black", "bird: small, brown", "chase(cat, bird)"]
    assert parse.complexity() == 3


def test_participles_and_prepositions() -> None:
    from curate.parsing.spacy_parser import read_tree

    doc = tree(
        ("girls", "girl", "NOUN", "ROOT", 0),
        ("sitting", "sit", "VERB", "acl", 0),
        ("on", "on", "ADP", "prep", 1),
        ("grass", "grass", "NOUN", "pobj", 2),
    )
    assert read_tree(doc).describe() == ["girl", "grass", "sit(girl, grass)"]


def test_a_pipeline_that_is_not_installed_is_named() -> None:
    from curate.parsing.spacy_parser import SpacyParser, pipeline_version

    for make in (SpacyParser, pipeline_version):
        with pytest.raises(InputError, match="no pipeline 'en_nowhere' installed"):
            make("en_nowhere")
