"""What goes wrong with a URL, in few words that can be counted, and which of it may go right another time.

The words are img2dataset's where it has any (`HTTP Error 404: Not Found`), so that the same searches find them.
"""

import email.utils
import errno
import http
import re
import socket
import time

TIMED_OUT = "timed out"
OPTED_OUT = "Use of image disallowed by X-Robots-Tag directive"
HASH_MISMATCH = "hash mismatch"
ROBOTS_DISALLOWED = "Disallowed by robots.txt"
ROBOTS_UNREACHABLE = "robots.txt unreachable"
DEADLINE = "shard deadline exceeded"
CUT_OFF = "IncompleteRead: the body ended early"
DISCONNECTED = "Remote end closed connection without response"

_HTTP_ERROR = re.compile(r"HTTP Error (\d{3})")
_TEMPORARY_STATUSES = frozenset([408, 425, 429, 500, 502, 503, 504, *range(520, 531)])
_TEMPORARY_PREFIXES = (
    TIMED_OUT,
    ROBOTS_UNREACHABLE,
    DEADLINE,
    "IncompleteRead",
    DISCONNECTED,
    "Temporary failure in name resolution",
    "Connection reset by peer",
    "Connection refused",
    "Connection failed",
    "Network is unreachable",
    "No route to host",
    "Server disconnected",
)
_ERRNO_TEXTS = {
    errno.ECONNRESET: "Connection reset by peer",
    errno.EPIPE: "Connection reset by peer",
    errno.ECONNABORTED: "Connection reset by peer",
    errno.ECONNREFUSED: "Connection refused",
    errno.ENETUNREACH: "Network is unreachable",
    errno.EHOSTUNREACH: "No route to host",
    errno.ETIMEDOUT: TIMED_OUT,
}


class FetchError(Exception):
    """A URL that gave no bytes; the text becomes the row's `error_message`."""


class PermanentError(FetchError):
    """Asking again would give the same answer."""


class TemporaryError(FetchError):
    """Asking again may help; `retry_after` is the wait in seconds that the server asked for, 0 where it named none.

    `is_spent` says that the attempts have been made already.
    """

    def __init__(self, message: str, retry_after: float = 0.0, *, is_spent: bool = False) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.is_spent = is_spent


class OptedOutError(PermanentError):
    """The host does not want its images used."""


def is_temporary(error_message: str | None) -> bool:
    """Tell whether a row that failed with this message is worth fetching again."""
    if not error_message:
        return False
    status = _HTTP_ERROR.match(error_message)
    if status:
        return int(status[1]) in _TEMPORARY_STATUSES
    return error_message.startswith(_TEMPORARY_PREFIXES)


def http_error(status: int, retry_after: float = 0.0) -> FetchError:
    """Return the error of a response that is no success."""
    try:
        phrase = http.HTTPStatus(status).phrase
    except ValueError:
        phrase = "Unknown"
    message = f"HTTP Error {status}: {phrase}"
    return TemporaryError(message, retry_after) if is_temporary(message) else PermanentError(message)


def os_error(error: OSError) -> FetchError:
    """Return the error of a connection that could not be made or broke."""
    return TemporaryError(_ERRNO_TEXTS.get(error.errno or 0, "Connection failed"))


def gai_error(error: socket.gaierror) -> FetchError:
    """Return the error of a name that could not be resolved."""
    if error.errno in (socket.EAI_AGAIN, socket.EAI_FAIL, socket.EAI_SYSTEM, socket.EAI_MEMORY):
        return TemporaryError("Temporary failure in name resolution")
    return PermanentError("Name or service not known")


def parse_retry_after(value: str) -> float:
    """Return the seconds that a Retry-After header asks for, as a number or as a date; 0 where it makes no sense."""
    value = value.strip()
    if not value:
        return 0.0
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        date = email.utils.parsedate_to_datetime(value)
        return max(0.0, date.timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0
