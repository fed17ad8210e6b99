"""Reading a response body within a limit, compressed or not."""

import zlib

from curate.fetch.errors import PermanentError

_PLAIN = frozenset(["", "identity", "none", "binary"])
# 32 + 15: zlib tells gzip from zlib streams by their header.
_ZLIB_ENCODINGS = {"gzip": 47, "x-gzip": 47, "deflate": 47}


class Inflater:
    """Undoes a Content-Encoding chunk by chunk and never yields more than `max_bytes` in all."""

    def __init__(self, encoding: str, max_bytes: int) -> None:
        self._left = max_bytes
        self._max_bytes = max_bytes
        self._decoder = None
        encoding = encoding.strip().lower()
        if encoding in _PLAIN:
            return
        if encoding not in _ZLIB_ENCODINGS:
            raise PermanentError("Content-Encoding not supported")
        self._decoder = zlib.decompressobj(_ZLIB_ENCODINGS[encoding])

    def feed(self, chunk: bytes) -> bytes:
        """Return the plain bytes of a chunk; raises PermanentError past the limit or on damage."""
        if self._decoder is not None:
            try:
                chunk = self._decoder.decompress(chunk, self._left + 1)
            except zlib.error as error:
                raise PermanentError("Content-Encoding is corrupt") from error
        self._left -= len(chunk)
        if self._left < 0:
            raise too_large(self._max_bytes)
        return chunk


def too_large(max_bytes: int) -> PermanentError:
    """Return the error of a file over the size limit."""
    return PermanentError(f"body larger than {max_bytes} bytes")


class Body:
    """Collects the body of a response; one larger than `max_bytes` is cut there or, by default, refused as early as it shows."""

    def __init__(self, encoding: str, content_length: int | None, max_bytes: int, *, cut: bool = False) -> None:
        if not cut and (content_length or 0) > max_bytes:
            raise too_large(max_bytes)
        self._inflater = Inflater(encoding, max_bytes)
        self._chunks: list[bytes] = []
        self._cut = cut
        self.is_cut = False  # nothing more is wanted

    def feed(self, chunk: bytes) -> None:
        """Take a piece; raises PermanentError past the limit or on damage."""
        try:
            self._chunks.append(self._inflater.feed(chunk))
        except PermanentError:
            if not self._cut:
                raise
            self.is_cut = True

    def read(self) -> bytes:
        """Return the bytes so far; of a single piece this makes no copy."""
        return b"".join(self._chunks)
