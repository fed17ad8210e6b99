"""The words for what goes wrong, and which of it may pass."""

import email.utils
import errno
import time

import pytest

from curate.fetch.errors import (
    DEADLINE,
    HASH_MISMATCH,
    OPTED_OUT,
    ROBOTS_DISALLOWED,
    ROBOTS_UNREACHABLE,
    TIMED_OUT,
    PermanentError,
    TemporaryError,
    http_error,
    is_temporary,
    os_error,
    parse_retry_after,
)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 522])
def test_temporary_statuses(status: int) -> None:
    error = http_error(status, 7.0)
    assert isinstance(error, TemporaryError)
    assert error.retry_after == 7.0
    assert is_temporary(str(error))


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 410, 451, 501, 999])
def test_permanent_statuses(status: int) -> None:
    error = http_error(status)
    assert isinstance(error, PermanentError)
    assert not is_temporary(str(error))


def test_messages_are_img2datasets() -> None:
    assert str(http_error(404)) == "HTTP Error 404: Not Found"
    assert str(http_error(429)) == "HTTP Error 429: Too Many Requests"


@pytest.mark.parametrize(
    "message",
    [
        TIMED_OUT,
        DEADLINE,
        f"{ROBOTS_UNREACHABLE}: HTTP Error 503: Service Unavailable",
        str(os_error(OSError(errno.ECONNRESET, ""))),
    ],
)
def test_temporary_messages(message: str) -> None:
    assert is_temporary(message)


@pytest.mark.parametrize(
    "message",
    [
        None,
        "",
        OPTED_OUT,
        ROBOTS_DISALLOWED,
        HASH_MISMATCH,
        "Image decoding error: truncated",
        "image too small",
        "Invalid URL",
    ],
)
def test_permanent_messages(message: str | None) -> None:
    assert not is_temporary(message)


def test_retry_after_as_seconds_and_as_a_date() -> None:
    assert parse_retry_after("120") == 120
    assert parse_retry_after(" 0 ") == 0
    assert 50 < parse_retry_after(email.utils.formatdate(time.time() + 60, usegmt=True)) <= 61
    assert parse_retry_after(email.utils.formatdate(time.time() - 60, usegmt=True)) == 0
    for nonsense in ("", "soon", "-3", "1.5", "9" * 500, "٣"):
        assert 0 <= parse_retry_after(nonsense) < 1e10
