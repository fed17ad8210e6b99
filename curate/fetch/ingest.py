"""From URL lists to the rows a pool will hold: merged, named, and cut into shards under `pool/ingest/<fingerprint>/`.

    ingest/settings.json              what the pool's shards are stored with
    ingest/<fingerprint12>/plan.json  written last: the shards of one list, and what became of its rows
    ingest/<fingerprint12>/NNNNN.parquet

Rows with equal uids become one with `num_occurrences`; the first stays where it was. Rows already in the pool are left alone, so a
second list appends what it adds. Memory stays bounded: the list is read twice, and between the readings only 32 bytes per row
lie on disk and one byte per row in memory.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.fetch.config import DownloadConfig
from curate.fetch.lists import UrlList, find_lists, infer_text_type, merge_types
from curate.fetch.merge import MergePlan, Merger
from curate.store import Pool
from schemas.errors import InputError
from schemas.sample import INGEST_COLUMNS, RESERVED_COLUMNS, shard_name
from schemas.uid import is_uid, sample_uid

logger = logging.getLogger(__name__)

FOLDER = "ingest"
PLAN_FILE = "plan.json"
SETTINGS_FILE = f"{FOLDER}/settings.json"

_URL_NAMES = ("url", "image_url", "img_url", "link", "image")
_CAPTION_NAMES = ("caption", "text", "alt_text", "alt", "title")
# `shard` and `row` are SQL's words for where a sample lies.
_TAKEN = RESERVED_COLUMNS | {name for name, _ in INGEST_COLUMNS} | {"shard", "row", "alt_text"}
_RENAMED_PREFIX = "source_"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one list adds to a pool."""

    fingerprint: str
    lists: Sequence[str]
    first_shard: int
    num_shards: int
    num_rows: int  # of the list
    num_samples: int  # planned: the list's rows less copies of each other and rows the pool had
    num_known: int  # distinct samples of the list that the pool had already
    has_captions: bool
    shard_size: int
    columns: dict[str, str] = field(default_factory=dict)  # carried column -> its name in the list, where they differ

    @property
    def folder(self) -> str:
        """The plan's folder in the pool."""
        return f"{FOLDER}/{self.fingerprint[:12]}"

    @property
    def shards(self) -> range:
        """The shards planned."""
        return range(self.first_shard, self.first_shard + self.num_shards)

    def shard_rows(self, shard: int) -> int:
        """Return how many rows a shard is to have."""
        return min(self.shard_size, self.num_samples - (shard - self.first_shard) * self.shard_size)

    def rows_path(self, shard: int) -> str:
        """Return the path of a shard's rows: uid, num_occurrences, carried columns, caption, url, sha256 (expected)."""
        return f"{self.folder}/{shard_name(shard)}.parquet"


def ingest(urls: str | Sequence[str], pool: Pool, config: DownloadConfig) -> Plan:
    """Plan the shards of a list, or return the plan that exists for it."""
    found = find_plan(urls, pool, config)
    if found is not None:
        return found
    lists = find_lists(urls, config.input_format, config.encoding)
    fingerprint = _fingerprint(lists, config)
    plans = load_plans(pool)
    source = _Source(lists, config)
    merge = _merge(source, pool, plans)
    taken = [plan.shards.stop for plan in plans.values()] + [shard + 1 for shard in pool.shards()]
    num_shards = -(-merge.num_kept // config.shard_size)
    plan = Plan(
        fingerprint=fingerprint,
        lists=[item.path for item in lists],
        first_shard=max(taken, default=0),
        num_shards=num_shards,
        num_rows=merge.num_rows,
        num_samples=merge.num_kept,
        num_known=merge.num_known,
        has_captions=source.has_captions,
        shard_size=config.shard_size,
        columns={new: old for old, new in source.renamed.items() if new != old},
    )
    pool.remove_abandoned(plan.folder)
    for shard, table in zip(plan.shards, _cut(source, merge, config.shard_size), strict=True):
        pool.commit_table(plan.rows_path(shard), table)
    if not pool.exists(SETTINGS_FILE):
        pool.commit_json(SETTINGS_FILE, config.stored_settings())
    pool.commit_json(f"{plan.folder}/{PLAN_FILE}", asdict(plan))
    logger.info(
        "ingested lists=%d rows=%d samples=%d known=%d shards=%d",
        len(lists),
        plan.num_rows,
        plan.num_samples,
        plan.num_known,
        num_shards,
    )
    return plan


def find_plan(urls: str | Sequence[str], pool: Pool, config: DownloadConfig) -> Plan | None:
    """Return the plan that exists for a list, or None; writes nothing."""
    lists = find_lists(urls, config.input_format, config.encoding)
    check_settings(pool, config)
    return load_plans(pool).get(_fingerprint(lists, config))


def load_plans(pool: Pool) -> dict[str, Plan]:
    """Return the finished plans of a pool by fingerprint, in shard order."""
    plans = []
    for name in pool.list_names(FOLDER):
        path = f"{FOLDER}/{name}/{PLAN_FILE}"
        if not name.endswith(".json") and pool.exists(path):
            content = json.loads(pool.read_bytes(path))
            plans.append(Plan(**{f.name: content[f.name] for f in fields(Plan)}))
    return {plan.fingerprint: plan for plan in sorted(plans, key=lambda plan: plan.first_shard)}


def check_settings(pool: Pool, config: DownloadConfig) -> None:
    """Raise where the pool's shards were stored with other settings: a pool of two kinds is no use to anyone."""
    if not pool.exists(SETTINGS_FILE):
        return
    stored = json.loads(pool.read_bytes(SETTINGS_FILE))
    wanted = json.loads(json.dumps(config.stored_settings()))
    changed = [name for name in wanted if stored.get(name) != wanted[name]]
    if changed:
        texts = ", ".join(f"{name} {stored.get(name)!r} (now {wanted[name]!r})" for name in changed)
        raise InputError(f"{pool.root} was downloaded with {texts}; use the same settings, or another --pool")


def _fingerprint(lists: Sequence[UrlList], config: DownloadConfig) -> str:
    identity = {
        "lists": [(item.format, item.encoding, item.identity()) for item in lists],
        "columns": [
            config.url_column,
            config.caption_column,
            config.uid_column,
            config.sha256_column,
            *config.extra_columns,
        ],
        "shard_size": config.shard_size,
    }
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


class _Source:
    """The lists as one stream of rows under the pool's names; types and columns are known after the first reading."""

    def __init__(self, lists: Sequence[UrlList], config: DownloadConfig) -> None:
        self._lists = lists
        self._config = config
        self.types: dict[str, pa.DataType] = {}  # of the carried columns, by their name in the list
        self.renamed: dict[str, str] = {}  # name in the list -> name in the pool
        self.has_captions = False

    def scan(self) -> Iterator[pa.Table]:
        """First reading: yield uid, and learn which columns there are and their types."""
        for item in self._lists:
            is_text = item.format in ("csv", "tsv")
            for table in item.read():
                roles = self._roles(table.column_names, item)
                for name in self._carried(table.column_names, roles):
                    kind = infer_text_type(table[name]) if is_text else _value_type(table[name].type)
                    known = self.types.get(name, pa.null())
                    self.types[name] = merge_types(name, known, kind, is_text=is_text)
                yield self._identify(table, roles, item)
        # Nothing but nulls: a string column, because readers of the pool dislike a column without a type.
        self.types = {name: pa.string() if pa.types.is_null(kind) else kind for name, kind in self.types.items()}
        for name in self.types:
            self.renamed[name] = _pool_name(name, set(self.renamed.values()))

    def rows(self) -> Iterator[pa.Table]:
        """Second reading: yield every row as uid, carried columns, caption, url, sha256."""
        for item in self._lists:
            for table in item.read(self.types):
                roles = self._roles(table.column_names, item)
                identified = self._identify(table, roles, item)
                columns = {"uid": identified["uid"]}
                for name, kind in self.types.items():
                    values = table[name].cast(kind) if name in table.column_names else pa.nulls(len(table), kind)
                    columns[self.renamed[name]] = values
                columns |= {name: identified[name] for name in ("caption", "url")}
                columns["sha256"] = (
                    pc.utf8_lower(_strings(table[roles["sha256"]]))
                    if "sha256" in roles
                    else pa.nulls(len(table), pa.string())
                )
                yield pa.table(columns)

    def _identify(self, table: pa.Table, roles: dict[str, str], item: UrlList) -> pa.Table:
        urls = [(url or "").strip() for url in _strings(table[roles["url"]]).to_pylist()]
        captions = _strings(table[roles["caption"]]).to_pylist() if "caption" in roles else [None] * len(urls)
        pairs = [sample_uid(url, caption) for url, caption in zip(urls, captions, strict=True)]
        uids = pairs
        if "uid" in roles:
            uids = _strings(table[roles["uid"]]).to_pylist()
            wrong = next((uid for uid in uids if uid is None or not is_uid(uid)), "")
            if wrong != "":
                raise InputError(
                    f"{item.path}: column {roles['uid']!r} holds {wrong!r}, which is not 32 lower-case hex characters; "
                    "rename it, or make identities from url and alt-text with --uid-column ''"
                )
        self.has_captions |= "caption" in roles
        return pa.table({
            "uid": pa.array(uids, pa.string()),
            "pair": pa.array(pairs, pa.string()),
            "caption": pa.array(captions, pa.string()),
            "url": pa.array(urls, pa.string()),
        })

    def _roles(self, names: Sequence[str], item: UrlList) -> dict[str, str]:
        config = self._config
        roles = {
            "url": _find(names, config.url_column, _URL_NAMES),
            "caption": _find(names, config.caption_column, _CAPTION_NAMES),
            "uid": _find(names, "", (config.uid_column,)) if config.uid_column else None,
            "sha256": _find(names, "", (config.sha256_column,)) if config.sha256_column else None,
        }
        for role, wanted in (("url", config.url_column), ("caption", config.caption_column)):
            if roles[role] is None and (wanted or role == "url"):
                flag = f"--{role}-column"
                raise InputError(
                    f"{item.path} has no {role} column{f' {wanted!r}' if wanted else ''}; it has {list(names)}; name it with {flag}"
                )
        return {role: name for role, name in roles.items() if name is not None}

    def _carried(self, names: Sequence[str], roles: dict[str, str]) -> list[str]:
        used = set(roles.values())
        if "*" in self._config.extra_columns:
            return [name for name in names if name not in used]
        taken = [name for name in self._config.extra_columns if name.lower() in _TAKEN and name not in used]
        if taken:
            raise InputError(
                f"extra_columns names {taken}, which the pool keeps for itself; rename them in the list (reserved: {sorted(_TAKEN)})"
            )
        missing = [name for name in self._config.extra_columns if name not in names]
        if missing:
            raise InputError(f"extra_columns names {missing}, which the list does not have; it has {list(names)}")
        return [name for name in self._config.extra_columns if name not in used]


def _find(names: Sequence[str], wanted: str, usual: Sequence[str]) -> str | None:
    if wanted:
        return wanted if wanted in names else None
    lowered = {name.lower(): name for name in reversed(names)}
    return next((lowered[name.lower()] for name in usual if name.lower() in lowered), None)


def _pool_name(name: str, others: set[str]) -> str:
    # SQL does not tell WIDTH from width: a carried column that would hide one of the pool's own gets a prefix.
    lowered = {other.lower() for other in others}
    candidate = name
    while candidate.lower() in _TAKEN or candidate.lower() in lowered:
        candidate = f"{_RENAMED_PREFIX}{candidate.lower()}"
    if candidate != name:
        logger.warning("column renamed from=%s to=%s reason=the pool keeps that name for itself", name, candidate)
    return candidate


def _value_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _strings(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column if column.type == pa.string() else column.cast(pa.string())


def _merge(source: _Source, pool: Pool, plans: dict[str, Plan]) -> MergePlan:
    with Merger() as merger:
        for shard in pool.shards():
            merger.add_known(pool.read_table(pool.shard_parquet(shard), columns=["uid"])["uid"].to_pylist())
        committed = set(pool.shards())
        for plan in plans.values():
            for shard in plan.shards:
                if shard not in committed:
                    merger.add_known(pool.read_table(plan.rows_path(shard), columns=["uid"])["uid"].to_pylist())
        for table in source.scan():
            merger.add(table["uid"].to_pylist(), table["pair"].to_pylist())
        return merger.finish()


def _cut(source: _Source, merge: MergePlan, shard_size: int) -> Iterator[pa.Table]:
    """Yield the kept rows in list order, `shard_size` at a time."""
    waiting: list[pa.Table] = []
    num_waiting = 0
    start = 0
    for table in source.rows():
        stop = start + len(table)
        rows = np.flatnonzero(merge.kept[start:stop])
        counts = pa.array(merge.occurrences(start + rows), pa.int32())
        start = stop
        kept = table.take(pa.array(rows)).add_column(1, "num_occurrences", counts)
        waiting.append(kept)
        num_waiting += len(kept)
        while num_waiting >= shard_size:
            joined = pa.concat_tables(waiting).combine_chunks()
            yield joined.slice(0, shard_size)
            waiting = [joined.slice(shard_size)]
            num_waiting -= shard_size
    if start != merge.num_rows:
        raise InputError(
            f"the list changed while it was read: {merge.num_rows} rows, then {start}; run the command again"
        )
    if num_waiting:
        yield pa.concat_tables(waiting).combine_chunks()
