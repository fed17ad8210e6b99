"""Templates that escape everything they are given, the theme, and the policy that keeps a page from the network."""

import base64
import hashlib
from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from pipelines.page import words

_FOLDER = Path(__file__).parent
_SCHEMES = ("http://", "https://")


def make_environment(*folders: Path) -> Environment:
    """Return an environment with the templates of `folders`, then of this package; values are escaped whatever a template is called.

    A name that a template misspells raises instead of showing nothing. Filters: those of `words`, `web_url` and `breakable`.
    """
    environment = Environment(
        loader=FileSystemLoader([*folders, _FOLDER]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name: getattr(words, name) for name in words.FILTERS}
    environment.filters |= {"web_url": web_url, "breakable": breakable}
    environment.globals["version"] = version("winnow")
    return environment


@cache
def theme() -> Markup:
    """Return the style sheet that every page starts with, ready to stand in `<style>`."""
    return inline((_FOLDER / "theme.css").read_text(encoding="utf-8"))


def breakable(name: str) -> Markup:
    """Return a name, escaped, that a line may break after each of its dots and underscores."""
    return Markup(str(escape(name)).replace("_", "_<wbr>").replace(".", ".<wbr>"))


def inline(source: str) -> Markup:
    """Return our own style sheet or script, marked as safe to stand inline; one that could close its element is refused."""
    assert "</" not in source and "<!--" not in source, "an inline script or style must not hold '</' or '<!--'"
    return Markup(source)


def web_url(url: str | None) -> str:
    """Return a URL that may stand in `href`, or "" for any scheme but http and https; `javascript:` is such a scheme."""
    text = (url or "").strip()
    is_plain = text.lower().startswith(_SCHEMES) and not any(ord(letter) <= 32 for letter in text)
    return text if is_plain else ""


def offline_policy(*, scripts: Iterable[str] = (), styles: Iterable[str] = ()) -> str:
    """Return a content security policy for a file by itself: no request goes out, and only these inline scripts and styles count.

    Pictures may come from `data:` alone. A `style` or `onclick` attribute has no effect under it.
    """
    return "; ".join([
        "default-src 'none'",
        "img-src data:",
        f"style-src {' '.join(map(_digest, styles)) or chr(39) + 'none' + chr(39)}",
        f"script-src {' '.join(map(_digest, scripts)) or chr(39) + 'none' + chr(39)}",
        "base-uri 'none'",
        "form-action 'none'",
    ])


def _digest(source: str) -> str:
    """Return how a policy names an inline text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"
