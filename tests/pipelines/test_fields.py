"""Settings described by their own classes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, Field

from pipelines.fields import describe_kind, read_settings, settings_class


@dataclass(frozen=True, kw_only=True)
class Inner:
    """Nested settings."""

    by: str  # a "#" in a comment


@dataclass(frozen=True, kw_only=True)
class Outer:
    """Settings of every kind."""

    # Of the picture.
    size: int = 256  # pixels
    untold: float = 0.5

    # Of the rest.
    mode: Literal["no", "border"] = "border"
    # Who asks, in the words
    # of a header.
    agent: str = "a#b"
    retries: int | None = None  # null: never
    inner: Inner | None = None
    names: tuple[str, ...] = ("url", "URL")
    rules: Mapping[str, str] = field(default_factory=dict)
    is_private: bool = False
    needed: str


class Model(BaseModel):
    """A model of pydantic."""

    count: int = 3  # how many
    from_: str = Field(alias="from")  # where


def test_names_types_defaults_and_comments() -> None:
    found = {s.name: (s.kind_text, s.default_text, s.help) for s in read_settings(Outer)}
    assert found == {
        "size": ("integer", "256", "pixels"),
        "untold": ("number", "0.5", ""),
        "mode": ("no \\| border", "border", ""),
        "agent": ("text", "a#b", "Who asks, in the words of a header."),
        "retries": ("integer or null", "null", "null: never"),
        "inner": ("Inner or null", "null", ""),
        "names": ("list of text", "[url, URL]", ""),
        "rules": ("mapping of text to text", "{}", ""),
        "is_private": ("true or false", "false", ""),
        "needed": ("text", "", ""),
    }
    assert [s.name for s in read_settings(Outer) if s.is_required] == ["needed"]


def test_pydantic_models_are_described_by_their_keys() -> None:
    assert [(s.name, s.default_text, s.help) for s in read_settings(Model)] == [
        ("count", "3", "how many"),
        ("from", "", "where"),
    ]


def test_settings_class_looks_inside_optional_types() -> None:
    assert settings_class(Inner | None) is Inner
    assert settings_class(Model) is Model
    assert settings_class(int | None) is None
    assert describe_kind(Mapping[str, list[float]]) == "mapping of text to list of number"
