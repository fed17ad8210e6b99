"""`winnow import`: brings what is already on disk into a pool, every row accounted for.

    tars            img2dataset output or WebDataset tars: read where they lie, nothing is copied
    folder          pictures with a table of captions, or with a text file each: copied into new tars
    huggingface     a folder that `datasets` saved, as Arrow or as Parquet with pictures: copied into new tars

Several captions of one picture (a column that holds lists) stay together: the first is `alt_text`, all of them are the column
`captions`. Rows that are equal, or that the pool has already, are counted and not repeated. A second run finds its plan under
`pool/ingest/` and does what is missing.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from curate.executor import Executor
from curate.fetch.importing_folder import (
    TABLE_FORMATS,
    FolderColumns,
    find_dataset_files,
    find_table,
    scan_dataset,
    scan_table,
    scan_texts,
    write_copies,
)
from curate.fetch.importing_rows import SCAN_COLUMNS, cast_column, merge_types
from curate.fetch.importing_tar import TarColumns, scan_tar
from curate.fetch.ingest import FOLDER, PLAN_FILE, Plan, load_plans
from curate.fetch.lists import UrlList
from curate.fetch.merge import MergePlan, Merger
from curate.forgotten import PLANNED_COLUMNS, bury, read_forgotten
from curate.store import Pool, Store
from schemas.errors import InputError, ShardError, WinnowError
from schemas.progress import Progress
from schemas.sample import (
    FETCH_COLUMNS,
    SHARD_DIGEST_KEY,
    STATUS_SUCCESS,
    TAR_LOCATION_KEY,
    UID_DIGEST_KEY,
    sample_schema,
    shard_digest,
    shard_name,
)
from schemas.uid import digest_uids

logger = logging.getLogger(__name__)

ImportKind = Literal["auto", "tars", "folder", "huggingface"]
_KINDS: tuple[ImportKind, ...] = ("auto", "tars", "folder", "huggingface")


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """How a folder is read.

    ImportConfig()                                            # whatever the folder holds
    ImportConfig(table="coco.jsonl")                          # a folder of pictures with several tables
    ImportConfig(caption_column="description", file_column="img")
    """

    kind: ImportKind = "auto"  # tars, folder, huggingface, or auto: by what the folder holds
    table: str = ""  # file with the captions of a folder of pictures; empty: metadata.*, captions.* or the only one
    file_column: str = ""  # column of picture files; empty: by the usual names (file_name, image, filepath, ...)
    url_column: str = ""  # column or JSON key of URLs; empty: url, image_url, img_url or link, else the file's path
    caption_column: str = ""  # column or JSON key of captions; empty: by the usual names (caption, text, alt, ...)
    uid_column: str = "uid"  # brings identities where all are 32 hex characters; else they come from url and caption
    shard_size: int = 10_000  # rows per new shard, where pictures are copied

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise InputError(f"import kind is {self.kind!r}; use one of {', '.join(_KINDS)}")
        if self.shard_size < 1:
            raise InputError(f"import shard_size is {self.shard_size}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """What an import brought: `num_rows` of the source are `num_samples` of the pool, the rest equal one of them or were known."""

    kind: str
    num_shards: int
    num_shards_written: int
    num_rows: int
    num_samples: int
    num_known: int  # distinct samples of the source that the pool had already
    num_successes: int
    messages: dict[str, int] = field(default_factory=dict)  # error_message -> rows, most frequent first


@dataclass(frozen=True, kw_only=True)
class _Source:
    """What is imported: tars of a folder or URL, or files of a local folder."""

    kind: str
    root: str
    paths: Sequence[str]  # relative to root
    identity: Sequence[object]


def import_dir(
    source: str, pool: Pool, config: ImportConfig, *, progress: Progress, executor: Executor
) -> ImportReport:
    """Bring a folder (or a table of captions inside one) into `pool`; run again, it does nothing more.

    Raises `InputError` naming file, row and remedy where something cannot be read or a path leads out of the folder, and `ShardError`
    where shards failed after every retry.
    """
    found = _find_source(source, config)
    if (found.kind != "folder" or not found.paths) and f"{pool.root}/".startswith(f"{found.root.rstrip('/')}/"):
        raise InputError(
            f"pool {pool.root} lies inside {found.root}, which would import it into itself; put the pool elsewhere"
        )
    fingerprint = _fingerprint(found, config)
    plan = load_plans(pool).get(fingerprint) or _make_plan(pool, found, config, fingerprint, executor, progress)
    committed = set(pool.shards())
    missing = [shard for shard in plan.shards if shard not in committed]
    pool.remove_abandoned("shards")
    if found.kind == "tars":
        for shard in missing:
            _commit_in_place(pool, plan, shard)
    else:
        write = partial(_write_copy, pool, plan, found.root)
        sizes = [pool.read_footer(plan.rows_path(shard)).num_rows for shard in missing]
        _run(write, missing, executor, progress, "import", sizes)
    return _report(pool, plan, found.kind, len(missing))


def _find_source(source: str, config: ImportConfig) -> _Source:
    store = Store(source)
    if not store.exists(""):
        raise InputError(f"{source} does not exist; give the folder to import")
    path = Path(store.root)
    if store.is_local and path.is_file():
        if path.suffix == ".tar":
            parent = Store(path.parent)
            return _Source(kind="tars", root=parent.root, paths=(path.name,), identity=[_stamp(parent, path.name)])
        if path.suffix.lower() not in TABLE_FORMATS or config.table:
            raise InputError(
                f"{source} is a file; give a folder, a .tar, or a table of captions ({', '.join(TABLE_FORMATS)})"
            )
        return _find_folder(path.parent, path.name)
    tars = _find_tars(store) if config.kind in ("auto", "tars") and not config.table else []
    if tars or config.kind == "tars":
        if not tars:
            raise InputError(f"{source} holds no .tar files; give the folder that does")
        return _Source(kind="tars", root=store.root, paths=tars, identity=[_stamp(store, tar) for tar in tars])
    if not store.is_local:
        raise InputError(
            f"{source} holds no .tar files, and pictures are imported from local folders only; copy the folder here"
        )
    files = find_dataset_files(path) if config.kind in ("auto", "huggingface") and not config.table else []
    if files or config.kind == "huggingface":
        if not files:
            raise InputError(
                f"{source} holds no .arrow files and no .parquet files with pictures; give a folder that `datasets` saved"
            )
        names = [file.relative_to(path).as_posix() for file in files]
        return _Source(
            kind="huggingface", root=store.root, paths=names, identity=[_stamp(store, name) for name in names]
        )
    return _find_folder(path, config.table)


def _find_folder(root: Path, table: str) -> _Source:
    found = find_table(root, table)
    if found is None:
        return _Source(kind="folder", root=str(root), paths=(), identity=["texts"])
    listed = UrlList(str(found), TABLE_FORMATS[found.suffix.lower()])
    name = found.relative_to(root).as_posix()
    return _Source(kind="folder", root=str(root), paths=(name,), identity=[name, listed.identity()])


def _find_tars(store: Store) -> list[str]:
    if not store.is_local:
        prefix = str(store.filesystem._strip_protocol(store.root)).rstrip("/")
        names = [str(name) for name in store.filesystem.find(prefix) if str(name).endswith(".tar")]
        return sorted(name[name.index(prefix) + len(prefix) + 1 :] for name in names)
    root = Path(store.root)
    tars = sorted(path for path in root.rglob("*.tar") if path.is_file())
    for tar in tars:
        if not tar.resolve().is_relative_to(root.resolve()):
            raise InputError(f"{tar} is a link that leads out of {root}; import the folder that holds the file itself")
    return [tar.relative_to(root).as_posix() for tar in tars]


def _stamp(store: Store, name: str) -> list[object]:
    changed = Path(store.locate(name)).stat().st_mtime_ns if store.is_local else 0
    return [name, store.num_bytes(name), changed]


def _fingerprint(source: _Source, config: ImportConfig) -> str:
    columns = {name: value for name, value in asdict(config).items() if name.endswith("_column")}
    size = 0 if source.kind == "tars" else config.shard_size
    identity: dict[str, Any] = {"import": source.kind, "files": source.identity, "columns": columns, "shard_size": size}
    if source.kind == "folder" and not source.paths:
        names = sorted(path for path in Path(source.root).rglob("*") if path.is_file())
        identity["files"] = [(str(path.relative_to(source.root)), path.stat().st_size) for path in names]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def _make_plan(
    pool: Pool, source: _Source, config: ImportConfig, fingerprint: str, executor: Executor, progress: Progress
) -> Plan:
    """Scan the source, find equal rows, and write the rows of every new shard; `plan.json` goes last."""
    folder = f"{FOLDER}/{fingerprint[:12]}"
    pool.remove_abandoned(f"{folder}/scan")
    scans = [f"{folder}/scan/{index:05d}.parquet" for index in range(max(1, len(source.paths)))]
    if source.kind == "tars":
        columns = TarColumns(url=config.url_column, caption=config.caption_column, uid=config.uid_column)
        missing = [index for index, path in enumerate(scans) if not pool.exists(path)]
        scan = partial(_scan_one_tar, pool, Store(source.root), columns, source.paths, scans)
        _run(scan, missing, executor, progress, "scan", [1] * len(missing))
    else:
        for path, tables in zip(scans, _scan_folder(source, config), strict=True):
            pool.commit_table(path, tables)
    plans = load_plans(pool)
    merge = _merge(pool, plans, scans)
    schemas = [pool.read_footer(path).schema.to_arrow_schema() for path in scans]
    kinds = merge_types(schemas)
    taken = [plan.shards.stop for plan in plans.values()] + [shard + 1 for shard in pool.shards()]
    first = max(taken, default=0)
    size = None if source.kind == "tars" else config.shard_size
    tars = [Store(source.root).locate(path) for path in source.paths] if source.kind == "tars" else []
    num_shards = 0
    for index, rows in _cut(pool, scans, merge, kinds, size):
        metadata = {TAR_LOCATION_KEY: tars[index].encode()} if tars else None
        pool.commit_table(f"{folder}/{shard_name(first + num_shards)}.parquet", rows.replace_schema_metadata(metadata))
        num_shards += 1
    plan = Plan(
        fingerprint=fingerprint,
        lists=[f"{source.root}/{path}" for path in source.paths] or [source.root],
        first_shard=first,
        num_shards=num_shards,
        num_rows=merge.num_rows,
        num_samples=merge.num_kept,
        num_known=merge.num_known,
        has_captions=True,
        shard_size=config.shard_size,
    )
    pool.commit_json(f"{folder}/{PLAN_FILE}", asdict(plan))
    for path in scans:
        pool.remove(path)
    return plan


def _scan_one_tar(
    pool: Pool, source: Store, columns: TarColumns, tars: Sequence[str], scans: Sequence[str], index: int
) -> int:
    table = scan_tar(source, tars[index], columns)
    pool.commit_table(scans[index], table)
    return int(table.num_rows)


def _scan_folder(source: _Source, config: ImportConfig) -> Iterator[pa.Table]:
    """Yield the rows of each file of the source."""
    root = Path(source.root)
    columns = FolderColumns(
        file=config.file_column, url=config.url_column, caption=config.caption_column, uid=config.uid_column
    )
    if not source.paths:
        yield _join(list(scan_texts(root)))
    for path in source.paths:
        scan = scan_dataset if source.kind == "huggingface" else scan_table
        yield _join(list(scan(root, root / path, columns)))


def _join(tables: Sequence[pa.Table]) -> pa.Table:
    if not tables:
        raise InputError("the table of captions has no rows; there is nothing to import")
    kinds = merge_types([table.schema for table in tables])
    return pa.concat_tables([_shape(table, kinds) for table in tables])


def _shape(table: pa.Table, kinds: dict[str, pa.DataType]) -> pa.Table:
    """Return a scan with the carried columns `kinds`, null where it lacks one."""
    columns = {name: table[name] for name, _ in SCAN_COLUMNS}
    for name, kind in kinds.items():
        has_it = name in table.column_names
        columns[name] = cast_column(table[name], kind) if has_it else pa.nulls(table.num_rows, kind)
    return pa.table(columns)


def _merge(pool: Pool, plans: dict[str, Plan], scans: Sequence[str]) -> MergePlan:
    committed = set(pool.shards())
    with Merger() as merger:
        for shard in committed:
            merger.add_known(pool.read_table(pool.shard_parquet(shard), ["uid"])["uid"].to_pylist())
        for plan in plans.values():
            for shard in plan.shards:
                if shard not in committed:
                    merger.add_known(pool.read_table(plan.rows_path(shard), ["uid"])["uid"].to_pylist())
        for path in scans:
            table = pool.read_table(path, ["uid", "pair"])
            merger.add(table["uid"].to_pylist(), table["pair"].to_pylist())
        return merger.finish()


def _cut(
    pool: Pool, scans: Sequence[str], merge: MergePlan, kinds: dict[str, pa.DataType], shard_size: int | None
) -> Iterator[tuple[int, pa.Table]]:
    """Yield (scan, rows of a shard): a shard per scan, or of `shard_size` rows across them; scans without a new row have none."""
    start, waiting = 0, None
    for index, path in enumerate(scans):
        table = _shape(pool.read_table(path), kinds)
        kept = np.flatnonzero(merge.kept[start : start + table.num_rows])
        counts = pa.array(merge.occurrences(start + kept), pa.int32())
        start += table.num_rows
        rows = table.take(pa.array(kept)).append_column("num_occurrences", counts)
        if shard_size is None:
            if rows.num_rows:
                yield index, rows
            continue
        waiting = rows if waiting is None else pa.concat_tables([waiting, rows])
        while waiting.num_rows >= shard_size:
            yield index, waiting.slice(0, shard_size)
            waiting = waiting.slice(shard_size)
    if waiting is not None and waiting.num_rows:
        yield len(scans) - 1, waiting


def _commit_in_place(pool: Pool, plan: Plan, shard: int) -> None:
    rows = pool.read_table(plan.rows_path(shard))
    own = {name for name, _ in (*SCAN_COLUMNS, *FETCH_COLUMNS)} | {"num_occurrences"}
    extra = [field for field in rows.schema if field.name not in own]
    schema = sample_schema(extra)
    table = pa.table([rows[name] for name in schema.names], schema=schema)
    is_forgotten = read_forgotten(pool).find(table)
    table = bury(table, is_forgotten)
    metadata = {
        SHARD_DIGEST_KEY: shard_digest(table).encode(),
        UID_DIGEST_KEY: digest_uids(table["uid"].to_pylist()).encode(),
        TAR_LOCATION_KEY: rows.schema.metadata[TAR_LOCATION_KEY],
    }
    pool.commit_table(pool.shard_parquet(shard), table.replace_schema_metadata(metadata))
    if is_forgotten.any():
        pool.commit_table(plan.rows_path(shard), bury(rows, is_forgotten, keep=PLANNED_COLUMNS))


def _write_copy(pool: Pool, plan: Plan, root: str, shard: int) -> int:
    return write_copies(pool, plan.rows_path(shard), root, shard, plan.shard_size).num_rows


def _run(
    function: Callable[[int], int],
    units: Sequence[int],
    executor: Executor,
    progress: Progress,
    stage: str,
    sizes: Sequence[int],
) -> None:
    if not units:
        return
    failures: dict[str, str] = {}
    progress.start(stage, sum(sizes), "tars" if stage == "scan" else "images")
    try:
        for outcome in executor.map(function, units):
            if isinstance(outcome.cause, WinnowError):
                raise outcome.cause
            if outcome.error is not None:
                failures[shard_name(outcome.unit)] = outcome.error
                logger.error("shard failed stage=%s shard=%s error=%s", stage, shard_name(outcome.unit), outcome.error)
            progress.advance(1 if stage == "scan" else outcome.result or 0)
    finally:
        progress.close()
    if failures:
        first = next(iter(failures))
        raise ShardError(f"{stage}: {len(failures)} of {len(units)} failed; {first}: {failures[first]}", failures)


def _report(pool: Pool, plan: Plan, kind: str, num_written: int) -> ImportReport:
    messages: dict[str, int] = {}
    successes = 0
    for shard in plan.shards:
        table = pool.read_table(pool.shard_parquet(shard), ["status", "error_message"])
        for status, message in zip(table["status"].to_pylist(), table["error_message"].to_pylist(), strict=True):
            if status == STATUS_SUCCESS:
                successes += 1
            else:
                messages[message or status] = messages.get(message or status, 0) + 1
    return ImportReport(
        kind=kind,
        num_shards=plan.num_shards,
        num_shards_written=num_written,
        num_rows=plan.num_rows,
        num_samples=plan.num_samples,
        num_known=plan.num_known,
        num_successes=successes,
        messages=dict(sorted(messages.items(), key=lambda item: -item[1])),
    )
