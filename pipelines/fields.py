"""What the fields of a settings class mean, read from the class itself: its names, types, defaults and the comments beside them.

Flags, recipe keys and their documentation all come from here, so that a setting is described once, where it is defined.
"""

import ast
import dataclasses
import inspect
import io
import math
import re
import textwrap
import tokenize
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

_TAIL = re.compile(r"\s*(\(|#\s*)(noqa|type):.*$")


@dataclass(frozen=True)
class Setting:
    """One field of a settings class; `default` is None where the field is required, see `is_required`."""

    name: str
    kind: object  # the type, with string annotations resolved
    default: object
    is_required: bool
    help: str  # the comment at the field, or above it; empty where there is none

    @property
    def kind_text(self) -> str:
        """The type as people read it: `int`, `list of str`, `a, b or c`."""
        return describe_kind(self.kind)

    @property
    def default_text(self) -> str:
        """The default as YAML writes it; empty where the field is required."""
        if self.is_required:
            return ""
        if self.default is None:
            return "null"
        if isinstance(self.default, bool):
            return str(self.default).lower()
        if isinstance(self.default, float) and math.isinf(self.default):
            return ".inf" if self.default > 0 else "-.inf"
        if dataclasses.is_dataclass(self.default):
            return ""
        if isinstance(self.default, Mapping):
            return "{" + ", ".join(f"{key}: {value}" for key, value in self.default.items()) + "}"
        if isinstance(self.default, (tuple, list, frozenset, set)):
            return "[" + ", ".join(map(str, self.default)) + "]"
        return str(self.default)


@cache
def read_settings(cls: type) -> tuple[Setting, ...]:
    """Return the fields of a dataclass, or of a pydantic model, in order."""
    hints = typing.get_type_hints(cls)
    comments = _read_comments(cls)
    if dataclasses.is_dataclass(cls):
        return tuple(
            Setting(f.name, hints[f.name], *_default_of(f), help=comments.get(f.name, ""))
            for f in dataclasses.fields(cls)
            if f.init
        )
    return tuple(
        Setting(
            info.alias or name,
            hints[name],
            None if info.is_required() else info.get_default(call_default_factory=True),
            info.is_required(),
            comments.get(name, ""),
        )
        for name, info in getattr(cls, "model_fields").items()  # noqa: B009  (a plain type has no such attribute)
    )


def describe_kind(kind: object) -> str:
    """Return a type as people read it."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in {typing.Union, types.UnionType}:
        texts = [describe_kind(argument) for argument in arguments if argument is not type(None)]
        return " or ".join([*texts, "null"] if type(None) in arguments else texts)
    if origin is typing.Literal:
        return " \\| ".join(str(argument) for argument in arguments)
    if origin is typing.Annotated:
        return describe_kind(arguments[0])
    if origin is not None and issubclass(origin, Mapping):
        return f"mapping of {describe_kind(arguments[0])} to {describe_kind(arguments[1])}"
    if origin is not None and arguments:
        return f"list of {describe_kind(arguments[0])}"
    names = {str: "text", int: "integer", float: "number", bool: "true or false", object: "anything"}
    return names.get(typing.cast(type, kind), getattr(kind, "__name__", str(kind)))


def settings_class(kind: object) -> type | None:
    """Return the dataclass or pydantic model inside a type such as `Top | None`, or None where there is none."""
    is_union = typing.get_origin(kind) in {typing.Union, types.UnionType}
    for candidate in typing.get_args(kind) if is_union else (kind,):
        if isinstance(candidate, type) and (dataclasses.is_dataclass(candidate) or hasattr(candidate, "model_fields")):
            return candidate
    return None


def _default_of(field: "dataclasses.Field[object]") -> tuple[object, bool]:
    if field.default is not dataclasses.MISSING:
        return field.default, False
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory(), False
    return None, True


def _read_comments(cls: type) -> dict[str, str]:
    """Return the comment at each field's line, or the comment lines right above it; parents' fields included."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base) or hasattr(base, "model_fields"):
            found |= _read_own_comments(base)
    return found


def _read_own_comments(cls: type) -> dict[str, str]:
    try:
        source = inspect.getsource(cls)
    except (OSError, TypeError):  # no source beside the byte code: flags work, without their help
        return {}
    source = textwrap.dedent(source)
    try:
        body = ast.parse(source).body[0]
        comments = _comments_by_line(source)
    except (SyntaxError, tokenize.TokenError):  # a text of several lines that starts left of a nested class
        return {}
    assert isinstance(body, ast.ClassDef)
    lines = source.splitlines()
    found = {}
    for node in body.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = _comment_at(comments, lines, node)
    return found


def _comment_at(comments: Mapping[int, str], lines: list[str], node: ast.AnnAssign) -> str:
    beside = [comments[line] for line in range(node.lineno, (node.end_lineno or node.lineno) + 1) if line in comments]
    if beside:
        return " ".join(beside)
    above: list[str] = []
    line = node.lineno - 1
    while line in comments and lines[line - 1].lstrip().startswith("#"):
        above.insert(0, comments[line])
        line -= 1
    # After a blank line it is the title of a group of fields, not the description of one.
    return " ".join(above) if lines[line - 1].strip() else ""


def _comments_by_line(source: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {
        token.start[0]: _TAIL.sub("", token.string.lstrip("# ").rstrip())
        for token in tokens
        if token.type == tokenize.COMMENT
    }
