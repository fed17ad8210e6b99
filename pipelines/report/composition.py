"""What a pool is made of, before and after a selection: languages and hosts; and how the download went, by host and by error."""

from collections.abc import Sequence
from dataclasses import dataclass

from curate.expression import quote_text
from pipelines.report.facts import FACTS, Facts
from schemas.sample import STATUS_SUCCESS
from schemas.selection import LEDGER_FILE

MAX_LANGUAGES = 15
MAX_HOSTS = 20
MAX_ERRORS = 12
_HOSTS = "report_hosts"
# scheme, then perhaps a user, then the host, then perhaps a port; a `www.` in front says nothing.
_HOST = r"^[A-Za-z][A-Za-z0-9+.-]*://(?:[^/?#@]*@)?(?:www\.)?(\[[^\]/?#]*\]|[^/?#:]*)"


@dataclass(frozen=True, kw_only=True)
class Share:
    """A language or a host: its rows in the pool, and those with a picture that are kept."""

    name: str
    num_rows: int
    num_kept: int
    row_share: float  # of all rows counted
    kept_share: float  # of all rows kept


@dataclass(frozen=True, kw_only=True)
class Composition:
    """The most frequent names, the sum of all others, and how many names there are."""

    rows: tuple[Share, ...]
    num_names: int
    num_rows: int
    num_kept: int
    largest: float  # the largest share of any row: what bars are drawn against


@dataclass(frozen=True, kw_only=True)
class HostHealth:
    """How the download from a host went; `errors` are its most frequent messages."""

    host: str
    num_rows: int
    num_failed: int
    errors: tuple[tuple[str, int], ...]


@dataclass(frozen=True, kw_only=True)
class Health:
    """How the download went."""

    num_rows: int
    num_failed: int
    num_hosts: int
    errors: tuple[tuple[str, int], ...]  # every kind of message up to `MAX_ERRORS`
    num_other_errors: int  # rows with any other message
    worst: tuple[HostHealth, ...]  # the hosts with the most failures


def count_languages(facts: Facts) -> Composition | None:
    """Return the languages of the captions of rows with a picture, or None where no operator has told them."""
    if facts.language is None:
        return None
    rows = facts.query(
        f"SELECT language, count(*), count_if(kept) FROM {FACTS} WHERE ok AND language IS NOT NULL GROUP BY language "
        "ORDER BY 2 DESC, 1"
    )
    return _compose(rows, MAX_LANGUAGES)


def count_hosts(facts: Facts) -> Composition | None:
    """Return the hosts of the rows' URLs, or None where no row has one; a leading `www.` is left out."""
    _tabulate_hosts(facts)
    rows = facts.query(f"SELECT host, num_rows, num_kept FROM {_HOSTS} ORDER BY num_rows DESC, host LIMIT {MAX_HOSTS}")
    ((names, total, kept),) = facts.query(f"SELECT count(*), sum(num_rows), sum(num_kept) FROM {_HOSTS}")
    if not rows:
        return None
    return _compose(rows, MAX_HOSTS, names=names, total=int(total), kept=int(kept))


def measure_health(facts: Facts) -> Health:
    """Return how the download went; counts are of rows."""
    _tabulate_hosts(facts)
    errors = facts.pool_query(
        f"SELECT coalesce(error_message, 'no message'), count(*) FROM samples WHERE status <> '{STATUS_SUCCESS}' "
        "GROUP BY 1 ORDER BY 2 DESC, 1"
    )
    hosts = facts.query(
        f"SELECT host, num_rows, num_failed FROM {_HOSTS} WHERE num_failed > 0 ORDER BY num_failed DESC, host LIMIT {MAX_ERRORS}"
    )
    ((num_hosts,),) = facts.query(f"SELECT count(*) FROM {_HOSTS}")
    messages: dict[str, list[tuple[str, int]]] = {host: [] for host, _, _ in hosts}
    if hosts:
        listed = ", ".join(quote_text(host) for host in messages)
        for host, message, count in facts.pool_query(
            f"SELECT {_host('url')} AS host, coalesce(error_message, 'no message'), count(*) FROM samples "
            f"WHERE status <> '{STATUS_SUCCESS}' AND {_host('url')} IN ({listed}) GROUP BY 1, 2 ORDER BY 3 DESC, 2"
        ):
            messages[host].append((message, count))
    num_failed = sum(count for _, count in errors)
    return Health(
        num_rows=facts.num_rows,
        num_failed=num_failed,
        num_hosts=num_hosts,
        errors=tuple(errors[:MAX_ERRORS]),
        num_other_errors=sum(count for _, count in errors[MAX_ERRORS:]),
        worst=tuple(
            HostHealth(host=host, num_rows=rows, num_failed=failed, errors=tuple(messages[host][:3]))
            for host, rows, failed in hosts
        ),
    )


def _tabulate_hosts(facts: Facts) -> None:
    """Count rows by host once; the ledger has every URL beside its verdict, so nothing has to be joined."""
    if facts.query(f"SELECT 1 FROM duckdb_tables() WHERE table_name = '{_HOSTS}'"):
        return
    if facts.choice:
        source = f"read_parquet({quote_text(facts.pool.locate(f'{facts.choice.folder}/{LEDGER_FILE}'))})"
        kept = "count_if(kept)"
    else:
        source, kept = "samples", f"count_if(status = '{STATUS_SUCCESS}')"
    facts.query(
        f"CREATE TEMP TABLE {_HOSTS} AS SELECT {_host('url')} AS host, count(*) AS num_rows, {kept} AS num_kept, "
        f"count_if(status <> '{STATUS_SUCCESS}') AS num_failed FROM {source} GROUP BY host HAVING host <> ''"
    )


def _host(column: str) -> str:
    return f"lower(regexp_extract({column}, {quote_text(_HOST)}, 1))"


def _compose(
    rows: Sequence[tuple[str, int, int]],
    most: int,
    *,
    names: int | None = None,
    total: int | None = None,
    kept: int | None = None,
) -> Composition:
    """Return the first `most` rows as shares of all."""
    num_rows = sum(count for _, count, _ in rows) if total is None else total
    num_kept = sum(count for _, _, count in rows) if kept is None else kept
    shares = tuple(
        Share(
            name=name,
            num_rows=count,
            num_kept=count_kept,
            row_share=count / num_rows if num_rows else 0.0,
            kept_share=count_kept / num_kept if num_kept else 0.0,
        )
        for name, count, count_kept in rows[:most]
    )
    return Composition(
        rows=shares,
        num_names=len(rows) if names is None else names,
        num_rows=num_rows,
        num_kept=num_kept,
        largest=max((max(each.row_share, each.kept_share) for each in shares), default=1.0) or 1.0,
    )
