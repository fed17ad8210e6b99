"""Numbers, sizes and durations as people read them."""

import math

FILTERS = ("count", "percent", "size", "duration", "value", "shorten")

_UNITS = ("B", "KiB", "MiB", "GiB")
_MINUTE, _HOUR = 60, 3600


def count(number: float) -> str:
    """Return a whole number with separators: 12,345."""
    return f"{number:,.0f}"


def percent(share: float) -> str:
    """Return a ratio of 0 to 1 as percent, finer where it is small and never rounded to 0 or 100 where it is neither."""
    if 0 < share < 0.0001:
        return "< 0.01%"
    if 0.9999 < share < 1:
        return "> 99.99%"
    return f"{100 * share:.2f}%" if 0 < share < 0.01 or 0.99 < share < 1 else f"{100 * share:.1f}%"


def size(num_bytes: float) -> str:
    """Return a number of bytes in its unit: 1.5 MiB."""
    for unit in _UNITS:
        if num_bytes < 1024:
            return f"{num_bytes:,.0f} B" if unit == "B" else f"{num_bytes:,.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:,.1f} TiB"


def duration(seconds: float) -> str:
    """Return seconds in the unit that suits them: 850 ms, 12.5 s, 3 min 20 s, 5 h 12 min."""
    if seconds < 0.9995:
        return f"{1000 * seconds:,.0f} ms"
    if seconds < 2 * _MINUTE:
        return f"{seconds:,.1f} s"
    if seconds < _HOUR:
        return f"{int(seconds // _MINUTE)} min {int(seconds % _MINUTE)} s"
    return f"{int(seconds // _HOUR):,} h {int(seconds % _HOUR // _MINUTE)} min"


def value(number: object) -> str:
    """Return any value of a column in a few characters; nothing for null."""
    if number is None:
        return ""
    if isinstance(number, float):
        # Four digits, and whole numbers where powers of ten would be harder to read.
        shape = ",.0f" if 1e4 <= abs(number) < 1e12 else ".4g"
        return format(number, shape) if math.isfinite(number) else str(number)
    if isinstance(number, bool):
        return "yes" if number else "no"
    return f"{number:,}" if isinstance(number, int) else shorten(str(number))


def shorten(text: str, most: int = 200) -> str:
    """Return a text cut off after `most` characters, with an ellipsis where it was longer."""
    return text if len(text) <= most else f"{text[: most - 3].rstrip()}..."
