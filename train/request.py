"""What a loss may ask for: pictures, texts, what the towers make of them, columns of numbers. Nothing else is read or computed.

A loss lists its requests and finds each answer under the same object:

    self.caption = Text(columns=("recaption",))
    self.needs = (View(), self.caption)
    ...
    outputs[self.caption]          # (n, d), this process's rows
    outputs.all(self.caption)      # (N, d), every process's rows
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class View:
    """A picture of each sample, and the image tower's unit features of it: (n, d).

    View()                          # the training crop, one for all losses
    View(number=1)                  # further crops, strongly augmented: View(number=2), ...
    View(number=1, scale=(0.05, 0.4), size=96)     # of so much of the picture's area, and so many pixels
    View(column="negative_uid")     # the picture of the sample that a column of uids names
    """

    number: int = 0
    column: str = ""
    scale: tuple[float, ...] = ()  # two shares of the area; none: those of the loader
    size: int = 0  # pixels, square; 0: those of the model

    @property
    def key(self) -> str:
        """Its name among inputs and outputs."""
        what = f"_{self.scale[0]:g}_to_{self.scale[-1]:g}" if self.scale else ""
        return f"view_{self.number}{self.column and f'_of_{self.column}'}{what}{f'_{self.size}px' if self.size else ''}"


@dataclass(frozen=True, kw_only=True)
class Text:
    """A text of each sample, and the text tower's unit features of it: (n, d), or (n, count, d) where `count` is above 1.

    Text()                                             # what the caption mixture draws
    Text(columns=("recaption",))                       # this caption
    Text(columns=("rewrite",), count=4)                # four of these; `Present` says which there are
    Text(variant="augmented")                          # words swapped and left out
    Text(variant="masked")                             # 15 % of the tokens masked
    """

    columns: tuple[str, ...] = ()
    count: int = 1
    variant: Literal["", "augmented", "masked"] = ""

    @property
    def key(self) -> str:
        """Its name among inputs and outputs."""
        return "_".join(["text", *self.columns, *([self.variant] * bool(self.variant)), str(self.count)])


@dataclass(frozen=True)
class Pooled:
    """The image tower's pooled output before the projection into the common space: (n, image width)."""

    view: View = field(default_factory=View)

    @property
    def key(self) -> str:
        """Its name among the outputs."""
        return f"{self.view.key}.pooled"


@dataclass(frozen=True)
class Patches:
    """The image tower's last hidden state of each patch, without a ViT's class token: (n, patches, image width)."""

    view: View = field(default_factory=View)

    @property
    def key(self) -> str:
        """Its name among the outputs."""
        return f"{self.view.key}.patches"


@dataclass(frozen=True)
class Tokens:
    """The text tower's last hidden state: (n, length, text width)."""

    text: Text = field(default_factory=Text)

    @property
    def key(self) -> str:
        """Its name among the outputs."""
        return f"{self.text.key}.tokens"


@dataclass(frozen=True)
class Ids:
    """The token ids of a text, 0 or more, and -1 where it has ended: (n, length). Of a masked text: the ids before masking, -1 elsewhere."""

    text: Text = field(default_factory=Text)

    @property
    def key(self) -> str:
        """Its name among the inputs."""
        return f"{self.text.key}.labels"


@dataclass(frozen=True)
class Present:
    """Which samples have the text: booleans (n,) or (n, count)."""

    text: Text = field(default_factory=Text)

    @property
    def key(self) -> str:
        """Its name among the inputs."""
        return f"{self.text.key}.present"


@dataclass(frozen=True)
class Teacher:
    """What a slowly following copy of both towers makes of a view or a text: features, or a picture's pooled output; without gradients."""

    source: View | Text | Pooled

    @property
    def key(self) -> str:
        """Its name among the outputs."""
        return f"teacher_{self.source.key}"


@dataclass(frozen=True, kw_only=True)
class Column:
    """Values of each sample, from the dataset's sidecars or the files of `train.columns`.

    Column(name="noise_probability")                   # float32 (n,); nulls are refused
    Column(name="text_embedding", kind="vector")       # float32 (n, d); nulls are refused
    Column(name="concept_probabilities", kind="numbers")     # float32 (n, most), 0 past the end of a list
    Column(name="class", kind="label")                 # int64 (n,), -1 for null; integers, or texts numbered by frequency
    Column(name="caption_tag_nouns", kind="labels", min_count=100)   # int64 (n, most), -1 past the end; rarer texts are left out
    """

    name: str
    kind: Literal["number", "numbers", "vector", "label", "labels", "uid"] = "number"
    min_count: int = 1  # of a text label: rows that must have it
    # Of a number, or of all numbers of a list; others are refused.
    least: float = -math.inf
    most: float = math.inf
    as_long_as: "Column | None" = None  # lists whose values these belong to, one by one
    of_crop: bool = (
        False  # a vector that has a part for each stored crop (`train.crop_boxes`), of which the shown one's is read
    )

    @property
    def key(self) -> str:
        """Its name among the inputs."""
        return f"column_{self.name}_{self.kind}{f'_{self.min_count}' if self.min_count > 1 else ''}{'_of_crop' if self.of_crop else ''}"


@dataclass(frozen=True)
class Rate:
    """How often a sample is drawn in this epoch, as a multiple of an even draw among all samples with a weight: float32 (n,), above 0."""

    @property
    def key(self) -> str:
        """Its name among the inputs."""
        return "rate"


@dataclass(frozen=True)
class Row:
    """Which sample it is: the row of the dataset that holds it, in every epoch and after every restart; int64 (n,)."""

    @property
    def key(self) -> str:
        """Its name among the inputs."""
        return "row"


Request = View | Text | Pooled | Patches | Tokens | Ids | Present | Teacher | Column | Rate | Row


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a loss with layers of its own must know of the model and the data."""

    embed_dim: int
    image_width: int
    text_width: int
    vocab_size: int
    context_length: int
    is_text_causal: bool
    # Filled in by the data:
    num_labels: Mapping[str, int] = field(default_factory=dict)  # key of a column of labels -> how many different ones
    widths: Mapping[str, int] = field(default_factory=dict)  # key of a column of vectors -> their length


def wanted_views(requests: Iterable[Request]) -> tuple[View, ...]:
    """Return the pictures to read for these requests, each once."""
    found = [
        request if isinstance(request, View) else request.view
        for request in map(_source, requests)
        if isinstance(request, View | Pooled | Patches)
    ]
    return tuple(dict.fromkeys(found))


def wanted_texts(requests: Iterable[Request]) -> tuple[Text, ...]:
    """Return the texts to draw for these requests, each once."""
    found = [
        request if isinstance(request, Text) else request.text
        for request in map(_source, requests)
        if isinstance(request, Text | Tokens | Ids | Present)
    ]
    return tuple(dict.fromkeys(found))


def wanted_columns(requests: Iterable[Request]) -> tuple[Column, ...]:
    """Return the columns to open for these requests, those that name other samples' pictures included."""
    asked = list(requests)
    partners = [Column(name=view.column, kind="uid") for view in wanted_views(asked) if view.column]
    return tuple(dict.fromkeys([request for request in asked if isinstance(request, Column)] + partners))


def tower_requests(requests: Iterable[Request]) -> tuple[Request, ...]:
    """Return those that the towers in training answer."""
    return tuple(request for request in requests if isinstance(request, View | Text | Pooled | Patches | Tokens))


def teacher_requests(requests: Iterable[Request]) -> tuple[View | Text | Pooled, ...]:
    """Return what the teacher is asked for."""
    return tuple(request.source for request in requests if isinstance(request, Teacher))


def _source(request: Request) -> Request:
    return request.source if isinstance(request, Teacher) else request
