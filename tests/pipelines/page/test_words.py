"""Numbers as people read them."""

import pytest

from pipelines.page import words


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0, "0.0%"),
        (1.0, "100.0%"),
        (0.5, "50.0%"),
        (0.00001, "< 0.01%"),
        (0.999999, "> 99.99%"),
        (0.0042, "0.42%"),
        (0.996, "99.60%"),
    ],
)
def test_percent(share: float, text: str) -> None:
    assert words.percent(share) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(0, "0 B"), (1023, "1,023 B"), (1536, "1.5 KiB"), (5 * 1024**4, "5.0 TiB")]
)
def test_size(num_bytes: int, text: str) -> None:
    assert words.size(num_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.25, "250 ms"), (12.34, "12.3 s"), (200, "3 min 20 s"), (18_725, "5 h 12 min"), (0.9999, "1.0 s")],
)
def test_duration(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (None, ""),
        (True, "yes"),
        (False, "no"),
        (12345, "12,345"),
        (0.123456, "0.1235"),
        (14414.7, "14,415"),
        (-3e5, "-300,000"),
        (2e15, "2e+15"),
        (float("nan"), "nan"),
        ("a", "a"),
    ],
)
def test_value(given: object, text: str) -> None:
    assert words.value(given) == text


def test_shorten_cuts_long_text_only() -> None:
    assert words.shorten("a" * 200) == "a" * 200
    assert words.shorten("a" * 201) == "a" * 197 + "..."
