"""Objects, attributes and actions by rules over parts of speech: noun phrases first, then the verbs between them.

DiHT's own parser was never published (arXiv 2301.02280); what counts is what its paper says: adjectives, nouns, possessives, numbers
and participles in front of a noun are its attributes, so is an adjective said of it; a verb links its subject, its object and the
object of its preposition. Auxiliaries are no actions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from curate.parsing.parse import Action, Parse
from curate.parsing.tagger import Tagger, Token

_ADJECTIVES = frozenset(["AJ0", "AJC", "AJS", "ORD"])
_NOUNS = frozenset(["NN", "NN0", "NN1", "NN2", "NP0"])
_DETERMINERS = frozenset(["AT0", "DPS", "DT0", "DTQ"])
_PARTICIPLES = frozenset(["VVG", "VVN"])
_FINITE = frozenset(["VVZ", "VVD", "VVB", "VHZ", "VHD", "VHB", "VDZ", "VDD", "VDB"])
_BE = frozenset(["VBZ", "VBD", "VBB", "VBG", "VBI", "VBN"])
_HAVE_DO = frozenset(["VHZ", "VHD", "VHB", "VHI", "VHG", "VDZ", "VDD", "VDB", "VDI", "VDG"])
_PREPOSITIONS = frozenset(["PRP", "PRF", "AVP", "TO0"])
_SKIPPED = frozenset(["AV0", "XX0", "AVP"])
_SUBJECT_PRONOUNS = frozenset(["PNP", "PNI", "PNQ", "DTQ", "EX0"])
_SENTENCE_ENDS = frozenset(".!?;|")
# Words that join a noun phrase to the one before it without making it the subject of what follows.
_OF = "PRF"


@dataclass(slots=True)
class _Phrase:
    """A noun phrase: tokens `start` to `end`, its number among the objects; or a verb, `kind` telling which."""

    kind: str  # noun, verb, preposition, join, stop, pronoun, be, adjective, other
    number: int = -1
    verb: str = ""
    is_finite: bool = False
    is_of: bool = False
    objects: list[int] = field(default_factory=list)


class RuleParser:
    """The default parser: works offline, about 2,000 captions per second and core."""

    def __init__(self) -> None:
        self._tagger = Tagger()

    def __call__(self, caption: str) -> Parse:
        """Parse a caption."""
        return parse_tokens(self._tagger.tag(caption))


def parse_tokens(tokens: Sequence[Token]) -> Parse:
    """Return what tagged tokens say."""
    builder = _Builder(tokens)
    phrases = builder.chunk()
    actions = _Linker(phrases, builder.attributes).link()
    return Parse(tuple(builder.objects), tuple(builder.attributes), tuple(actions))


class _Builder:
    """Cuts tokens into phrases, and notes the objects and what stands in front of them."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        self._tokens = tokens
        self.objects: list[str] = []
        self.attributes: list[tuple[int, str]] = []

    def chunk(self) -> list[_Phrase]:
        phrases: list[_Phrase] = []
        position = 0
        while position < len(self._tokens):
            end = self._noun_phrase_end(position, phrases)
            if end > position:
                phrases += self._noun_phrases(position, end)
                position = end
            else:
                phrases.append(self._other(position))
                position += 1
        return phrases

    def _noun_phrase_end(self, start: int, before: list[_Phrase]) -> int:
        """Return the token after the noun phrase that starts here, `start` where none does: modifiers, then at least one noun."""
        position, last_noun = start, -1
        tokens = self._tokens
        while position < len(tokens):
            tag = tokens[position].tag
            if tag in _NOUNS and _is_word(tokens[position]):
                last_noun = position
            elif tag in _DETERMINERS and position > start and last_noun >= 0 and tokens[last_noun + 1].tag != "POS":
                break
            elif tag == "POS":
                if last_noun != position - 1:
                    break
            elif not self._may_modify(position, start, before):
                break
            position += 1
        return last_noun + 1

    def _may_modify(self, position: int, start: int, before: list[_Phrase]) -> bool:
        token = self._tokens[position]
        if token.tag in _ADJECTIVES or token.tag in _DETERMINERS or token.tag in {"CRD", "AV0"}:
            return token.tag != "AV0" or self._tag(position + 1) in _ADJECTIVES
        if token.tag in _PARTICIPLES:
            return self._is_adjective(position, start, before)
        # black and white photo; red, white dress
        if token.text in {"and", "&", ",", "/"}:
            return (
                position > start and self._tag(position - 1) in _ADJECTIVES and self._tag(position + 1) in _ADJECTIVES
            )
        return False

    def _is_adjective(self, position: int, start: int, before: list[_Phrase]) -> bool:
        """Tell whether a participle stands before its noun ("a broken window") and is not a verb with an object ("holding hands")."""
        following = self._tag(position + 1)
        if following not in _NOUNS and following not in _ADJECTIVES:
            return False
        if position > start:
            return self._tag(position - 1) not in _NOUNS
        if self._tokens[position].tag == "VVN":
            return not before or before[-1].kind in {"preposition", "stop", "join", "other"}
        return bool(before) and before[-1].kind == "preposition"

    def _noun_phrases(self, start: int, end: int) -> list[_Phrase]:
        """Note the head as an object and what precedes it as its attributes; a possessor is an attribute of what it has."""
        head = self._add(self._tokens[end - 1])
        for position in range(start, end - 1):
            token = self._tokens[position]
            is_attribute = token.tag in _ADJECTIVES or token.tag in _PARTICIPLES or token.tag in {"CRD", "DPS"}
            if is_attribute or (token.tag in _NOUNS and _is_word(token)):
                self.attributes.append((head, token.lemma if token.tag in _NOUNS else token.text.lower()))
        return [_Phrase("noun", head)]

    def _other(self, position: int) -> _Phrase:
        token = self._tokens[position]
        tag = token.tag
        if tag in _BE:
            return _Phrase("be")
        if tag in _HAVE_DO:
            return _Phrase("have", verb=token.lemma, is_finite=tag in _FINITE)
        if tag.startswith("VV"):
            return _Phrase("verb", verb=token.lemma, is_finite=tag in _FINITE)
        if tag == "VM0":
            return _Phrase("modal")
        if tag in _PREPOSITIONS:
            return _Phrase("preposition", is_of=tag == _OF)
        if tag in _ADJECTIVES:
            return _Phrase("adjective", verb=token.text.lower())
        if tag in _SUBJECT_PRONOUNS:
            return _Phrase("pronoun", verb=token.lemma)
        if tag in _SKIPPED or tag in _DETERMINERS:
            return _Phrase("adverb")
        if tag == "CJC" or token.text in {",", "&"}:
            return _Phrase("join")
        return _Phrase("stop" if token.text in _SENTENCE_ENDS else "other")

    def _add(self, token: Token) -> int:
        self.objects.append(token.lemma)
        return len(self.objects) - 1

    def _tag(self, position: int) -> str:
        return self._tokens[position].tag if 0 <= position < len(self._tokens) else ""


class _Linker:
    """Gives each verb its subject and objects, and adjectives after a form of `be` to their subject."""

    def __init__(self, phrases: list[_Phrase], attributes: list[tuple[int, str]]) -> None:
        self._phrases = phrases
        self._attributes = attributes
        self._subjects: dict[int, list[int]] = {}  # position of a verb -> subjects

    def link(self) -> list[Action]:
        actions = []
        for position, phrase in enumerate(self._phrases):
            if phrase.kind == "be":
                self._link_adjectives(position)
            if not self._is_action(position):
                continue
            subjects = self._find_subjects(position)
            self._subjects[position] = subjects
            objects = list(dict.fromkeys([*subjects, *self._find_objects(position)]))
            if objects:
                actions.append(Action(phrase.verb, tuple(objects)))
        return actions

    def _is_action(self, position: int) -> bool:
        kind = self._phrases[position].kind
        if kind == "have":
            # "has a hat" says something, "has been taken" and "does not fit" do not.
            following = self._next(position)
            return following < len(self._phrases) and self._phrases[following].kind in {"noun", "pronoun"}
        return kind == "verb"

    def _next(self, position: int) -> int:
        position += 1
        while position < len(self._phrases) and self._phrases[position].kind == "adverb":
            position += 1
        return position

    def _link_adjectives(self, position: int) -> None:
        following = self._next(position)
        if following >= len(self._phrases) or self._phrases[following].kind != "adjective":
            return
        subjects = self._find_subjects(position)
        while following < len(self._phrases) and self._phrases[following].kind in {"adjective", "join", "adverb"}:
            if self._phrases[following].kind == "adjective":
                self._attributes += [(subject, self._phrases[following].verb) for subject in subjects]
            following += 1

    def _find_subjects(self, position: int) -> list[int]:
        """Return the noun a verb is said of, with those joined to it by "and"; none where a pronoun is the subject."""
        before = position - 1
        while before >= 0 and self._phrases[before].kind in {"adverb", "be", "have", "modal"}:
            before -= 1
        # "sits and reads": what the verb before is said of.
        if before >= 0 and self._phrases[before].kind == "join":
            earlier = self._verb_before(before)
            if earlier is not None:
                return self._subjects.get(earlier, [])
            before -= 1
        if before >= 0 and self._phrases[before].kind == "pronoun":
            before -= 1  # "a man who sits": the noun in front of the pronoun, if it is in front
        if before < 0 or self._phrases[before].kind != "noun":
            return []
        head = self._climb(before, is_finite=self._is_finite(position))
        if isinstance(head, list):
            return head
        return self._joined_before(head)

    def _is_finite(self, position: int) -> bool:
        return (
            self._phrases[position].is_finite
            or (position > 0 and self._phrases[position - 1].kind in {"be", "have", "modal", "adverb"})
            or self._phrases[position].kind == "be"
        )

    def _climb(self, noun: int, *, is_finite: bool) -> "int | list[int]":
        """Return the position of the noun that "a man in a hat" or "a girl wearing a hat" is about, or the subjects of its verb."""
        while noun > 0:
            before = self._phrases[noun - 1]
            if (
                before.kind == "preposition"
                and noun > 1
                and self._phrases[noun - 2].kind == "noun"
                and not before.is_of
            ):
                noun -= 2
                continue
            verb = self._governing_verb(noun)
            # "a girl wearing a hat sits", "a girl sits on the grass reading"; but "shows a window bearing a sign".
            is_through = before.kind == "preposition" and not before.is_of
            if verb is not None and (is_through if not is_finite else not self._phrases[verb].is_finite):
                return self._subjects.get(verb, []) or noun
            return noun
        return noun

    def _governing_verb(self, noun: int) -> int | None:
        """Return the verb whose object, or object of whose preposition, a noun is."""
        before = noun - 1
        while before >= 0 and self._phrases[before].kind in {"adverb", "preposition"}:
            before -= 1
        return before if before >= 0 and before in self._subjects else None

    def _verb_before(self, join: int) -> int | None:
        """Return the last verb before a joining word, with no more than its objects between."""
        for before in range(join - 1, -1, -1):
            if before in self._subjects:
                return before
            if self._phrases[before].kind not in {"noun", "preposition", "adverb", "adjective"}:
                return None
        return None

    def _joined_before(self, noun: int) -> list[int]:
        found = [self._phrases[noun].number]
        while noun >= 2 and self._phrases[noun - 1].kind == "join" and self._phrases[noun - 2].kind == "noun":
            noun -= 2
            while (
                noun >= 2 and self._phrases[noun - 1].kind == "preposition" and self._phrases[noun - 2].kind == "noun"
            ):
                noun -= 2  # "a man in a suit and a woman"
            found.insert(0, self._phrases[noun].number)
        return found

    def _find_objects(self, position: int) -> list[int]:
        """Return the object that follows a verb, those joined to it, and the object of the preposition that follows."""
        found: list[int] = []
        following = self._next(position)
        for _ in range(2):
            while following < len(self._phrases) and self._phrases[following].kind in {"preposition", "adverb"}:
                if self._phrases[following].is_of and found:
                    return found
                following += 1
            if following >= len(self._phrases) or self._phrases[following].kind != "noun":
                return found
            found.append(self._phrases[following].number)
            following += 1
            while (
                following + 1 < len(self._phrases)
                and self._phrases[following].kind == "join"
                and self._phrases[following + 1].kind == "noun"
                and not self._starts_clause(following + 1)
            ):
                found.append(self._phrases[following + 1].number)
                following += 2
            if following >= len(self._phrases) or self._phrases[following].kind != "preposition":
                return found
        return found

    def _starts_clause(self, noun: int) -> bool:
        following = self._next(noun)
        return following < len(self._phrases) and (
            self._phrases[following].is_finite or self._phrases[following].kind in {"be", "modal"}
        )


def _is_word(token: Token) -> bool:
    return any(map(str.isalpha, token.text))
