"""Draws the further texts of a sample that losses ask for: other captions, several at once, texts with words changed."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from schemas.errors import InputError
from train.captions import Caption
from train.request import Text

# Share of the words that one augmentation changes (Wei and Zou 2019, arXiv 1901.11196).
_CHANGED_SHARE = 0.1


@dataclass(frozen=True)
class TextDraw:
    """One request for texts, with the places of its columns among those of the table."""

    text: Text
    positions: tuple[int, ...]

    @classmethod
    def resolve(cls, text: Text, columns: Sequence[str]) -> "TextDraw":
        """Find the columns of a request among those that are read."""
        missing = [name for name in text.columns if name not in columns]
        if missing:
            raise InputError(
                f"caption column {missing[0]!r} is not read; the dataset was opened with {', '.join(columns)}"
            )
        return cls(text, tuple(columns.index(name) for name in text.columns))

    def draw(self, captions: Sequence[Caption], drawn: str, seed: int, number: int) -> list[str]:
        """Return as many texts as are asked for, "" for those that the sample does not have.

        Of several columns and of lists the texts that are not blank are drawn without replacement. `drawn` is what the mixture drew,
        `seed` and `number` decide the draw.
        """
        if not self.positions and self.text.variant != "augmented":
            return [drawn]
        generator = Random(seed + number)
        texts = [drawn] if not self.positions else _texts([captions[position] for position in self.positions])
        if len(texts) > 1:
            texts = generator.sample(texts, min(self.text.count, len(texts)))
        if self.text.variant == "augmented":
            texts = [augment_text(text, generator) for text in texts]
        return texts + [""] * (self.text.count - len(texts))


def augment_text(text: str, generator: Random) -> str:
    """Swap words, or leave words out, a tenth of them each: the two of EDA's operations that need no thesaurus."""
    words = text.split()
    if len(words) < 2:
        return text
    if generator.random() < 0.5:
        for _ in range(max(1, round(_CHANGED_SHARE * len(words)))):
            first, second = generator.sample(range(len(words)), 2)
            words[first], words[second] = words[second], words[first]
        return " ".join(words)
    kept = [word for word in words if generator.random() >= _CHANGED_SHARE]
    return " ".join(kept or [generator.choice(words)])


def _texts(captions: Sequence[Caption]) -> list[str]:
    found = []
    for caption in captions:
        found += [caption] if isinstance(caption, str) else [text for text in caption or () if text]
    return [text.strip() for text in found if text.strip()]
