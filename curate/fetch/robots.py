"""What a host lets us do: robots.txt (RFC 9309) and the X-Robots-Tag header."""

from collections.abc import Iterable
from dataclasses import dataclass

from protego import Protego

# RFC 9309: a parser must read at least this much, and may stop there.
MAX_BYTES = 500 * 1024
# ... and must not use a copy for longer than a day.
CACHE_SECONDS = 24 * 3600.0

# Directives with a value; what stands before their colon is no user agent.
_VALUED_DIRECTIVES = frozenset(["unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"])


@dataclass(frozen=True)
class Rules:
    """What a host's robots.txt says to one user agent."""

    agent: str
    parser: Protego | None  # None: no file, everything is allowed

    def allows(self, url: str) -> bool:
        """Tell whether the URL may be requested."""
        return self.parser is None or bool(self.parser.can_fetch(url, self.agent))

    @property
    def crawl_delay(self) -> float:
        """Seconds between two requests, 0 where the file names none."""
        delay = None if self.parser is None else self.parser.crawl_delay(self.agent)
        return max(0.0, float(delay or 0.0))


def parse_robots(body: bytes, agent: str) -> Rules:
    """Read a robots.txt of any size and quality; what lies past the size limit, or is no UTF-8, is ignored."""
    text = body[:MAX_BYTES].decode("utf-8-sig", "replace").replace("\0", "")
    return Rules(agent, Protego.parse(text))


def is_opted_out(headers: Iterable[str], agent: str, directives: frozenset[str]) -> bool:
    """Tell whether X-Robots-Tag headers hold one of `directives` for every agent or for `agent` (lower case).

    A header is `noindex, noai` or `somebot: noindex`; a name holds for the directives after it, up to the next name.
    """
    for header in headers:
        scope = ""
        for part in header.lower().split(","):
            name, colon, rest = part.partition(":")
            if colon and name.strip() not in _VALUED_DIRECTIVES:
                scope, part = name.strip(), rest
            if part.strip() in directives and scope in {"", "*", agent}:
                return True
    return False
