"""Objects, attributes and actions from the dependency trees of an installed spaCy pipeline."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from curate.parsing.parse import Action, Parse
from schemas.errors import InputError

if TYPE_CHECKING:
    from spacy.tokens import Doc, Token

_MAX_CHARACTERS = 20_000
_NOUNS = frozenset(["NOUN", "PROPN"])
# Names of ClearNLP (spaCy's English pipelines) and of Universal Dependencies (its others).
_MODIFIERS = frozenset(["amod", "compound", "nummod", "poss", "nmod:poss", "det:poss", "npadvmod"])
_SUBJECTS = frozenset(["nsubj", "nsubjpass", "nsubj:pass", "csubj"])
_OBJECTS = frozenset(["dobj", "obj", "iobj", "dative", "obl", "oprd"])
_CLAUSES_OF_NOUNS = frozenset(["acl", "relcl", "acl:relcl"])


class SpacyParser:
    """A parser around a spaCy pipeline that has a tagger and a dependency parser."""

    def __init__(self, pipeline: str) -> None:
        spacy = _import_spacy()
        try:
            self._pipeline: Any = spacy.load(pipeline, exclude=["ner"])
        except OSError as error:
            raise _no_pipeline(pipeline) from error

    def __call__(self, caption: str) -> Parse:
        """Parse a caption."""
        return read_tree(self._pipeline(caption[:_MAX_CHARACTERS]))


def pipeline_version(pipeline: str) -> str:
    """Return the version of an installed pipeline, or of one in a folder."""
    spacy = _import_spacy()
    try:
        folder = Path(pipeline) if Path(pipeline).is_dir() else spacy.util.get_package_path(pipeline)
        return str(spacy.util.load_meta(folder / "meta.json")["version"])
    except (ImportError, OSError, ValueError) as error:
        raise _no_pipeline(pipeline) from error


def read_tree(doc: "Doc") -> Parse:
    """Return what a parsed text says."""
    heads = [token for token in doc if token.pos_ in _NOUNS and token.dep_ not in _MODIFIERS]
    number = {token.i: place for place, token in enumerate(heads)}
    attributes = []
    for token in doc:
        if token.dep_ in _MODIFIERS and token.head.i in number:
            attributes.append((number[token.head.i], _base(token)))
        elif token.pos_ == "ADJ" and token.dep_ in {"acomp", "attr", "conj", "ROOT"}:
            attributes += [(number[subject.i], _base(token)) for subject in _subjects(token) if subject.i in number]
    actions = []
    for token in doc:
        if token.pos_ != "VERB" or token.dep_ in _MODIFIERS:
            continue
        linked = [number[noun.i] for noun in (*_subjects(token), *_objects(token)) if noun.i in number]
        if linked:
            actions.append(Action(token.lemma_.lower(), tuple(dict.fromkeys(linked))))
    return Parse(tuple(_base(token) for token in heads), tuple(attributes), tuple(actions))


def _subjects(token: "Token") -> list["Token"]:
    """Return what a verb or adjective is said of: its own subject, else the noun it describes, else its verb's or partner's."""
    own = [child for child in token.children if child.dep_ in _SUBJECTS]
    if own:
        return [noun for subject in own for noun in (subject, *subject.conjuncts)]
    if token.dep_ in _CLAUSES_OF_NOUNS:
        return [token.head]
    if token.dep_ in {"conj", "acomp", "attr", "xcomp", "advcl", "ccomp"} and token.head is not token:
        return _subjects(token.head)
    return []


def _objects(token: "Token") -> list["Token"]:
    found = []
    for child in token.children:
        if child.dep_ in _OBJECTS:
            found += [child, *child.conjuncts]
        elif child.dep_ == "prep":
            found += [noun for noun in child.children if noun.dep_ == "pobj"]
    return found


def _base(token: "Token") -> str:
    return str(token.lemma_ or token.text).lower()


def _import_spacy() -> Any:
    try:
        import spacy
    except ImportError as error:
        raise InputError(
            "parser=spacy needs spaCy; run `pip install 'winnow[spacy]'` and install a pipeline, or use parser=rules"
        ) from error
    return spacy


def _no_pipeline(pipeline: str) -> InputError:
    return InputError(
        f"spaCy has no pipeline {pipeline!r} installed; run `python -m spacy download {pipeline}`, or use parser=rules"
    )
