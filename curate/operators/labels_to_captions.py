"""Captions for pictures that only have class labels."""

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from curate.captions.templates import fill, join_labels, needs_modality, read_templates
from curate.fingerprint import canonical_json, file_identity
from curate.operator import Annotate, ShardOperator
from schemas.errors import InputError

_DIGEST_LENGTH = 16


@dataclass(frozen=True, kw_only=True)
class LabelsToCaptions(ShardOperator):
    """Captions made of class labels by templates (UniMed-CLIP; CLIP-Art); about 10 us per sample.

    label_captions    `num_captions` sentences, each by another template, every one with the label in it
    label_templates   the numbers of those templates, from 0
    label_text        the label in words: "x and y" where a sample has several, in an order drawn for each sample

    `label` is a column of text, of lists of text, or of numbers; bind it: `bind.label=cls`. For numbers `classes` is a file with a name per
    line, the first is 0. `templates` is photo, medical, satellite, art, or a file with a sentence per line that holds {label}, or {a_label}
    for it with its article; {modality} stands for `modality` ("chest x-ray"). Which templates are taken is drawn by `seed` and uid. In a
    mixture write `labels_to_captions.label_captions[*]`.
    """

    name = "labels_to_captions"
    version = 1
    reads = ("uid", "label")
    writes = pa.schema([
        ("label_captions", pa.list_(pa.string())),
        ("label_templates", pa.list_(pa.int32())),
        ("label_text", pa.string()),
    ])

    templates: str = "photo"  # photo, medical, satellite, art, or a file
    classes: str = ""  # file of class names, one per line, for labels that are numbers
    modality: str = ""  # what {modality} stands for
    num_captions: int = 4  # for each sample
    seed: int = 0  # of the draw

    def __post_init__(self) -> None:
        for name in ("templates", "classes"):
            if Path(getattr(self, name)).is_file():
                object.__setattr__(self, name, str(Path(getattr(self, name)).absolute()))
        if self.classes and not Path(self.classes).is_file():
            raise InputError(f"labels_to_captions classes is {self.classes!r}, and there is no such file")
        known = read_templates(self.templates)
        if not 1 <= self.num_captions <= len(known):
            raise InputError(
                f"labels_to_captions num_captions is {self.num_captions}; {self.templates!r} has {len(known)} templates"
            )
        if needs_modality(known) and not self.modality:
            raise InputError(f"the templates {self.templates!r} name a modality; give modality=, such as 'chest x-ray'")

    def identity(self) -> dict[str, Any]:
        """Return the templates and classes by their content."""
        content = canonical_json(read_templates(self.templates)).encode()
        return {
            "templates": hashlib.sha256(content).hexdigest()[:_DIGEST_LENGTH],
            "classes": file_identity(self.classes) if self.classes else "",
            "modality": self.modality,
            "num_captions": self.num_captions,
            "seed": self.seed,
        }

    def load(self) -> Annotate:
        templates = read_templates(self.templates)
        classes = [tidy(line) for line in Path(self.classes).read_text("utf-8").splitlines()] if self.classes else []

        def annotate(batch: pa.Table) -> Mapping[str, Sequence[Any]]:
            captions, numbers, texts, errors = [], [], [], []
            for uid, value in zip(batch["uid"].to_pylist(), batch["label"].to_pylist(), strict=True):
                draws = random.Random(hashlib.sha256(f"{self.seed} {uid}".encode()).digest())
                labels, error = name_labels(value, classes)
                draws.shuffle(labels)
                text = join_labels(labels)
                chosen = draws.sample(range(len(templates)), self.num_captions)
                captions.append(None if error else [fill(templates[number], text, self.modality) for number in chosen])
                numbers.append(None if error else chosen)
                texts.append(None if error else text)
                errors.append(error or None)
            return {"label_captions": captions, "label_templates": numbers, "label_text": texts, "error": errors}

        return annotate


def name_labels(value: object, classes: Sequence[str]) -> tuple[list[str], str]:
    """Return a sample's labels in words, each once, and what is wrong with them."""
    values = list(value) if isinstance(value, list) else [value]
    labels: list[str] = []
    for label in values:
        if isinstance(label, int) and not classes:
            return [], f"label {label} is a number; give classes=FILE with the names"
        if isinstance(label, int) and not 0 <= label < len(classes):
            return [], f"label {label} has no name; classes has {len(classes)}"
        text = classes[label] if isinstance(label, int) else tidy(str(label or ""))
        labels += [text] if text and text not in labels else []
    return labels, "" if labels else "no label"


def tidy(label: str) -> str:
    """Return a label as words on one line: "tabby_cat" is "tabby cat"."""
    printable = "".join(character if character.isprintable() else " " for character in label)
    return " ".join(printable.replace("_", " ").split())
