"""The identity of a sample: 128 bits, written as 32 lower-case hex characters (the DataComp convention)."""

import hashlib
import re
from collections.abc import Iterable

UID_PATTERN = re.compile(r"[0-9a-f]{32}")


def sample_uid(url: str, alt_text: str | None) -> str:
    """Return the uid of a (url, alt-text) pair; a missing alt-text and an empty one are the same pair."""
    encoded = url.encode("utf-8", "surrogatepass")
    # The length prefix keeps ("ab", "c") and ("a", "bc") apart whatever characters a hostile URL holds.
    digest = hashlib.blake2b(len(encoded).to_bytes(8, "little"), digest_size=16)
    digest.update(encoded)
    digest.update((alt_text or "").encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def is_uid(text: str) -> bool:
    """Tell whether `text` is 32 lower-case hex characters."""
    return UID_PATTERN.fullmatch(text) is not None


def digest_uids(uids: Iterable[str]) -> str:
    """Return the sha256 hex digest of uids in order: equal digests mean that two files may be joined by position."""
    return hashlib.sha256("\n".join(uids).encode()).hexdigest()
