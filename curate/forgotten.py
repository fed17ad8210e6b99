"""What a pool must not hold and never fetch again: a list of digests in the pool, and rows emptied of all but their identity.

    forgotten/list.json        digests of URLs and domains, sha256 of pictures, uids: nothing that names anybody
    forgotten/receipts/*.json  what each takedown did

`winnow forget` writes the list before it removes anything; downloads, retries and imports ask it before they fetch or copy.
"""

import functools
import hashlib
import ipaddress
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import idna
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from curate.fetch.addresses import parse_url
from curate.fetch.errors import PermanentError
from curate.store import Pool
from schemas.errors import InputError, StaleDatasetError
from schemas.sample import STATUS_FORGOTTEN
from schemas.uid import is_uid

LIST_FILE = "forgotten/list.json"
KINDS = ("url", "domain", "sha256", "uid")
# The `error_message` of a row, and the `error` of its annotations.
MESSAGE = "forgotten: taken down on request"
ERROR = "forgotten"

_FORMAT = "winnow-forgotten"
_VERSION = 1
_SHA256 = re.compile(r"[0-9a-f]{64}")
_KEY = re.compile(r"[0-9]*")
# What says which row it is; everything else is emptied.
PLANNED_COLUMNS = frozenset(["uid", "num_occurrences", "pair"])
# And where an import's picture lies until it is copied.
_UNFINISHED_COLUMNS = PLANNED_COLUMNS | {"source_file_", "source_row_"}
_HOSTS = 65_536
# More hosts than this and a pattern of them would be slower than looking at every URL.
_MAX_HOSTS_IN_PATTERN = 64


@dataclass(frozen=True, kw_only=True)
class Forgotten:
    """What is to be gone: digests of URLs and of domains, sha256 of pictures as downloaded, uids."""

    urls: frozenset[str] = frozenset()
    domains: frozenset[str] = frozenset()
    sha256: frozenset[str] = frozenset()
    uids: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.urls or self.domains or self.sha256 or self.uids)

    def __or__(self, other: "Forgotten") -> "Forgotten":
        return Forgotten(
            urls=self.urls | other.urls,
            domains=self.domains | other.domains,
            sha256=self.sha256 | other.sha256,
            uids=self.uids | other.uids,
        )

    def names(self, uid: str, url: str | None, sha256: str | None = None) -> bool:
        """Tell whether a row is to be gone; `sha256` is of its picture as downloaded, None where that is not known."""
        if uid in self.uids or (sha256 is not None and sha256.strip().lower() in self.sha256):
            return True
        if url is None or not (self.urls or self.domains):
            return False
        return url_digest(url) in self.urls or not self.domains.isdisjoint(_domain_digests(url))

    def find(self, table: pa.Table, hosts: Iterable[str] = ()) -> npt.NDArray[np.bool_]:
        """Tell of every row of a table with `uid`, and perhaps `url` and `sha256`, whether it is to be gone.

        `hosts` are those of all URLs and domains that this was made of, where they are known: they save looking at most URLs.
        """
        found = is_in(table["uid"], self.uids)
        if "sha256" in table.column_names and self.sha256:
            found |= is_in(pc.utf8_lower(table["sha256"]), self.sha256)
        if "url" in table.column_names and (self.urls or self.domains):
            candidates = _candidates(table["url"], list(hosts)) & ~found
            for row in np.flatnonzero(candidates).tolist():
                url = table["url"][row].as_py()
                found[row] = url is not None and self.names("", url)
        return found

    def to_json(self) -> dict[str, list[str]]:
        """Return the digests by kind, sorted."""
        values = zip(KINDS, (self.urls, self.domains, self.sha256, self.uids), strict=True)
        return {kind: sorted(digests) for kind, digests in values}

    @classmethod
    def from_json(cls, content: Mapping[str, Sequence[str]]) -> "Forgotten":
        """Return what `to_json` described."""
        urls, domains, sha256, uids = (frozenset(content.get(kind, ())) for kind in KINDS)
        return cls(urls=urls, domains=domains, sha256=sha256, uids=uids)

    @classmethod
    def of(
        cls,
        *,
        urls: Sequence[str] = (),
        domains: Sequence[str] = (),
        sha256: Sequence[str] = (),
        uids: Sequence[str] = (),
    ) -> "Forgotten":
        """Return what a request asks for; raises InputError where a value is not what it is given as."""
        for url in urls:
            if not url.strip():
                raise InputError("--url is empty; give the address of the picture")
        for digest in sha256:
            if not _SHA256.fullmatch(digest.strip().lower()):
                raise InputError(
                    f"--sha256 {digest!r} is not 64 hex characters; it is the digest of the file as downloaded"
                )
        for uid in uids:
            if not is_uid(uid):
                raise InputError(
                    f"--uid {uid!r} is not 32 lower-case hex characters; `winnow why URL` shows a sample's uid"
                )
        return cls(
            urls=frozenset(map(url_digest, urls)),
            domains=frozenset(_digest(parse_domain(domain)) for domain in domains),
            sha256=frozenset(digest.strip().lower() for digest in sha256),
            uids=frozenset(uids),
        )


def read_forgotten(pool: Pool) -> Forgotten:
    """Return what a pool must not hold; nothing where nobody asked yet. Raises StaleDatasetError where the list cannot be read."""
    if not pool.exists(LIST_FILE):
        return Forgotten()
    place = pool.locate(LIST_FILE)
    try:
        content = json.loads(pool.read_bytes(LIST_FILE))
    except json.JSONDecodeError as error:
        # Without it, what was taken down might be fetched again.
        raise StaleDatasetError(
            f"{place} is not JSON ({error}); restore it from a copy: it says what must not be fetched"
        ) from error
    if content.get("format") != _FORMAT or content.get("version") != _VERSION:
        raise StaleDatasetError(f"{place} is not a list that this release reads; restore it, or upgrade")
    return Forgotten.from_json(content)


def add_forgotten(pool: Pool, more: Forgotten) -> Forgotten:
    """Put more on a pool's list and return all of it."""
    pool.remove_abandoned(LIST_FILE.rpartition("/")[0])
    known = read_forgotten(pool)
    together = known | more
    if together != known or not pool.exists(LIST_FILE):
        pool.commit_json(LIST_FILE, {"format": _FORMAT, "version": _VERSION, **together.to_json()})
    return together


def bury(table: pa.Table, is_forgotten: npt.NDArray[np.bool_], keep: frozenset[str] = _UNFINISHED_COLUMNS) -> pa.Table:
    """Return the rows of a shard or of a plan with the forgotten ones emptied: the row stays, with its uid, what it held does not.

    `keep` names the columns that stay; of a shard that is finished these are PLANNED_COLUMNS.
    """
    if not is_forgotten.any():
        return table
    hidden = pa.array(is_forgotten)
    emptied = table.take(pa.array(np.arange(table.num_rows), mask=is_forgotten))
    columns = []
    for field in table.schema:
        values = table[field.name]
        if field.name == "status":
            columns.append(pc.if_else(hidden, STATUS_FORGOTTEN, values))
        elif field.name == "error_message":
            columns.append(pc.if_else(hidden, MESSAGE, values))
        elif field.name == "key":
            # Numbers say nothing; a key that an imported tar brought may be somebody's name.
            keys = [
                key if not is_gone or (key and _KEY.fullmatch(key)) else None
                for key, is_gone in zip(values.to_pylist(), is_forgotten.tolist(), strict=True)
            ]
            columns.append(pa.array(keys, pa.string()))
        else:
            columns.append(values if field.name in keep else emptied[field.name])
    return pa.table(columns, schema=table.schema)


def is_in(values: pa.ChunkedArray, wanted: Collection[str]) -> npt.NDArray[np.bool_]:
    """Tell of every text of a column whether it is one of the wanted; of a null it is not."""
    if not wanted:
        return np.zeros(len(values), dtype=bool)
    found = pc.is_in(values, value_set=pa.array(list(wanted), pa.string()))
    return np.array(found.to_numpy(), dtype=bool)


def url_digest(url: str) -> str:
    """Return the sha256 of a URL as a request would send it, without its scheme: http and https lead to the same picture."""
    try:
        text = parse_url(url).url.partition("://")[2]
    except PermanentError:
        text = url.strip()  # an import names files in the place of URLs
    return _digest(text)


def parse_domain(text: str) -> str:
    """Return a domain in the form in which hosts are compared; raises InputError where it is none, or would take half the web."""
    domain = text.strip().strip(".").lower()
    try:
        domain = domain if domain.isascii() else idna.encode(domain, uts46=True).decode()
    except (idna.IDNAError, UnicodeError) as error:
        raise InputError(f"--domain {text!r} is not a domain: {error}") from error
    if not domain or re.search(r"[^a-z0-9._:-]", domain):
        raise InputError(f"--domain {text!r} is not a domain; write example.com, without https:// and without a path")
    if not _is_address(domain) and "." not in domain and domain != "localhost":
        raise InputError(
            f"--domain {text!r} is a top-level domain, every site under it would go; write example.{domain}"
        )
    return domain


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _domain_digests(url: str) -> tuple[str, ...]:
    try:
        return _host_digests(parse_url(url).host)
    except PermanentError:
        return ()


@functools.lru_cache(_HOSTS)
def _host_digests(host: str) -> tuple[str, ...]:
    """Return the digests of a host and of the domains it belongs to."""
    host = host.rstrip(".")
    if _is_address(host):
        return (_digest(host),)
    labels = host.split(".")
    return tuple(_digest(".".join(labels[start:])) for start in range(len(labels)))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _candidates(urls: pa.ChunkedArray, hosts: list[str]) -> npt.NDArray[np.bool_]:
    """Return the URLs worth a closer look: those that hold one of the hosts' names, or a letter that an IDN host may be spelled with."""
    if not hosts or len(hosts) > _MAX_HOSTS_IN_PATTERN:
        return np.ones(len(urls), dtype=bool)
    pattern = "|".join([*(re.escape(host) for host in hosts), r"[^\x00-\x7f]"])
    matched = pc.match_substring_regex(urls, pattern, ignore_case=True)
    return np.array(pc.fill_null(matched, False).to_numpy(), dtype=bool)
