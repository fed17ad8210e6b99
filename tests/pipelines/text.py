"""Tables as the text a person would see."""

import io

from rich.console import Console, RenderableType


def as_text(content: RenderableType, width: int = 200) -> str:
    """Return what a table looks like on a terminal that is `width` wide."""
    stream = io.StringIO()
    Console(file=stream, width=width).print(content)
    return stream.getvalue()
