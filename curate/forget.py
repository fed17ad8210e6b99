"""`winnow forget`: takes pictures down, from a pool, from datasets and selections made of it, and from caches, for good.

    forgotten/list.json               written first: what is never fetched again
    forgotten/pending/<id12>/         the request under way, and what it has changed; gone when it is finished
    forgotten/receipts/<time>-<id12>.json    written last

Rows are forever: a row that is forgotten stays in its shard, in every annotation and in every ledger with its uid and nothing else. So
uids still match, files still belong together, the identities stored in them stay, and nothing has to be computed again. Every step looks at
what the files hold now, so one that was killed is finished by any takedown that follows.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, count, repeat
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.build import Describe, no_documents
from curate.fetch.ingest import FOLDER as PLANS_FOLDER
from curate.fetch.ingest import load_plans
from curate.fingerprint import canonical_json
from curate.forget_dataset import DatasetFolder, find_datasets, forget_in_dataset
from curate.forget_files import Change, Eraser, Journal, Left
from curate.forget_hidden import forget_hidden
from curate.forget_pool import forget_in_annotations, forget_in_plans, forget_in_shard, read_texts
from curate.forget_selection import forget_in_selection
from curate.forgotten import Forgotten, add_forgotten, is_in, parse_domain, read_forgotten, url_digest
from curate.models.answer_cache import FILE_NAME as ANSWERS_FILE
from curate.models.answer_cache import AnswerCache
from curate.models.generation import CACHE_FOLDER
from curate.store import Pool, Store
from schemas.errors import InputError
from schemas.progress import Progress, SilentProgress
from schemas.sample import shard_name
from schemas.selection import SELECTION_FILE

PENDING_FOLDER = "forgotten/pending"
RECEIPTS_FOLDER = "forgotten/receipts"
_REQUEST_FILE = "request.json"
_CHANGES = "changes"
_FORMAT = "winnow-forget-receipt"
_VERSION = 1
_REMOTE_READERS = 16
_ROW_COLUMNS = ("uid", "url", "sha256")


@dataclass(frozen=True, kw_only=True)
class ForgetRequest:
    """What is to be forgotten; a sample that any of the values names is.

    ForgetRequest(urls=["https://example.org/me.jpg"])
    ForgetRequest(domains=["example.org"])              # the host and its subdomains
    ForgetRequest(sha256=[digest])                      # of the file as it was downloaded
    """

    urls: Sequence[str] = ()
    domains: Sequence[str] = ()
    sha256: Sequence[str] = ()
    uids: Sequence[str] = ()

    def digests(self) -> Forgotten:
        """Return the request as a pool keeps it; raises InputError where it names nothing, or something that cannot be."""
        found = Forgotten.of(urls=self.urls, domains=self.domains, sha256=self.sha256, uids=self.uids)
        if not found:
            raise InputError("nothing to forget was named; give --url, --domain, --sha256 or --uid")
        return found

    def hosts(self) -> list[str]:
        """Return the hosts of the URLs and domains, or none where a URL has none and every row must be looked at."""
        hosts = [*map(parse_domain, self.domains), *((urlsplit(url.strip()).hostname or "") for url in self.urls)]
        return [] if "" in hosts else hosts


@dataclass(frozen=True, kw_only=True)
class ForgetTargets:
    """Where else the samples may be: datasets (or folders of them), caches of answers or of columns, exports."""

    datasets: Sequence[str] = ()
    caches: Sequence[str] = ()
    exports: Sequence[str] = ()

    def __or__(self, other: "ForgetTargets") -> "ForgetTargets":
        return ForgetTargets(
            datasets=tuple(dict.fromkeys([*self.datasets, *other.datasets])),
            caches=tuple(dict.fromkeys([*self.caches, *other.caches])),
            exports=tuple(dict.fromkeys([*self.exports, *other.exports])),
        )


@dataclass(frozen=True, kw_only=True)
class ForgottenRow:
    """A sample that was named; `shard` and `row` are None where only a plan or a dataset has it."""

    uid: str
    shard: int | None = None
    row: int | None = None


@dataclass(frozen=True, kw_only=True)
class ForgetReport:
    """What a takedown did, or would do; `receipt` is its file's path in the pool, empty in a dry run."""

    asked: Mapping[str, Sequence[str]]  # digests by kind: what was asked is not kept in plain
    time: str
    rows: Sequence[ForgottenRow]
    files: Sequence[Change]
    not_done: Sequence[Left]
    related: Sequence[str]  # uids of samples with the same picture or URL, which were not named and stay
    targets: ForgetTargets = field(default_factory=ForgetTargets)
    receipt: str = ""

    def to_dict(self) -> dict[str, object]:
        """Return the receipt as JSON values."""
        return {"format": _FORMAT, "version": _VERSION, **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a step works on: every sample that the pool has forgotten, those of earlier takedowns included."""

    pool: Pool
    uids: frozenset[str]
    eraser: Eraser
    targets: ForgetTargets


@dataclass(frozen=True, kw_only=True)
class Further:
    """What is done beyond this package's own files: `steps` for what other parts of Winnow keep, documents beside datasets made anew."""

    steps: Sequence[Callable[[Work], None]] = ()
    describe: Describe = no_documents


def forget(
    pool: Pool,
    request: ForgetRequest,
    targets: ForgetTargets,
    *,
    further: Further = Further(),
    is_dry: bool = False,
    progress: Progress | None = None,
) -> ForgetReport:
    """Take down every sample that the request names, and note that it is never fetched again; a dry run only says what would be done.

    Whatever an earlier takedown left behind (it was killed, or files were made in between) is removed as well. Raises InputError where a
    value or a folder is not what it is given as; nothing is changed then.
    """
    asked = request.digests()
    if not pool.exists("shards") and not pool.exists(PLANS_FOLDER):
        raise InputError(
            f"{pool.root} is no pool: it has neither shards nor plans; give the folder that was downloaded into"
        )
    bar = progress or SilentProgress()
    datasets = find_datasets(targets.datasets)
    if not is_dry:
        _finish_pending(pool, asked, further, bar)
    found = _find(pool, asked, request.hosts(), datasets)
    folder = _pending_folder(asked)
    known = _read_pending(pool, folder)
    if known:
        found, targets = found.with_rows(known.rows), known.targets | targets
    now = known.time if known else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    report = ForgetReport(
        asked=asked.to_json(),
        time=now,
        rows=found.rows,
        files=(),
        not_done=(),
        related=(known and known.related) or found.related,
        targets=targets,
    )
    if is_dry:
        journal = Journal(pool, f"{folder}/{_CHANGES}", is_dry=True)
        uids = read_forgotten(pool).uids | found.digests.uids | asked.uids
        _sweep(Work(pool=pool, uids=uids, eraser=Eraser(journal), targets=targets), further, bar)
        return replace(report, files=journal.changes, not_done=journal.left)
    listed = (asked | found.digests).to_json()
    report = replace(report, receipt=known.receipt if known else _new_receipt(pool, folder, now))
    pool.commit_json(f"{folder}/{_REQUEST_FILE}", {**report.to_dict(), "listed": listed})
    return _run(pool, folder, further, bar)


@dataclass(frozen=True, kw_only=True)
class _Found:
    """The rows that a request names, the digests of their URLs, and who else has their picture or URL."""

    rows: Sequence[ForgottenRow]
    digests: Forgotten
    related: Sequence[str]

    def with_rows(self, rows: Sequence[ForgottenRow]) -> "_Found":
        """Return this with the rows that an attempt found before it was killed."""
        known = {row.uid for row in rows}
        return _Found(
            rows=[*rows, *(row for row in self.rows if row.uid not in known)],
            digests=self.digests | Forgotten(uids=frozenset(known)),
            related=self.related,
        )


def _find(pool: Pool, asked: Forgotten, hosts: Sequence[str], datasets: Sequence[DatasetFolder]) -> _Found:
    rows: dict[str, ForgottenRow] = {}
    urls: set[str] = set()
    pictures: set[str] = set()

    def look(table: pa.Table, shard: int | None) -> None:
        for row in np.flatnonzero(asked.find(table, hosts)).tolist():
            uid = table["uid"][row].as_py()
            rows.setdefault(uid, ForgottenRow(uid=uid, shard=shard, row=None if shard is None else row))
            urls.update(url for url in [table["url"][row].as_py()] if url is not None)
            if "sha256" in table.column_names:
                pictures.update(digest for digest in [table["sha256"][row].as_py()] if digest is not None)

    for shard, table in _read_shards(pool, _ROW_COLUMNS):
        look(table, shard)
    for path in find_plan_files(pool):
        look(pool.read_table(path, ["uid", "url", "sha256"]), None)
    for dataset in datasets:
        for sidecar in dataset.sidecars():
            look(dataset.store.read_table(sidecar, ["uid", "url"]), None)
    # Where a sample was asked for by its uid or its bytes, its URL must not bring it back.
    addresses = frozenset(map(url_digest, urls)) if asked.uids or asked.sha256 else frozenset[str]()
    related = _find_related(pool, set(rows), urls, pictures)
    return _Found(rows=list(rows.values()), digests=Forgotten(uids=frozenset(rows), urls=addresses), related=related)


def _find_related(pool: Pool, uids: set[str], urls: set[str], pictures: set[str]) -> list[str]:
    if not urls and not pictures:
        return []
    found = []
    for _, table in _read_shards(pool, _ROW_COLUMNS):
        is_same = pc.or_(
            pc.is_in(table["url"], value_set=pa.array(sorted(urls), pa.string())),
            pc.is_in(table["sha256"], value_set=pa.array(sorted(pictures), pa.string())),
        )
        found += [uid for uid in table["uid"].filter(is_same).to_pylist() if uid not in uids]
    return found


def _read_shards(pool: Pool, columns: Sequence[str]) -> Iterator[tuple[int, pa.Table]]:
    """Yield every shard with some of its columns; from an object store several are fetched side by side."""
    shards, num_readers = pool.shards(), 1 if pool.is_local else _REMOTE_READERS
    with ThreadPoolExecutor(num_readers) as readers:
        for start in range(0, len(shards), num_readers):
            some = shards[start : start + num_readers]
            paths = map(pool.shard_parquet, some)
            yield from zip(some, readers.map(pool.read_table, paths, repeat(list(columns))), strict=True)


def find_plan_files(pool: Pool) -> list[str]:
    """Return the files of planned rows, and of scans that an import left unfinished."""
    paths = []
    for name in pool.list_names(PLANS_FOLDER):
        for folder in (f"{PLANS_FOLDER}/{name}", f"{PLANS_FOLDER}/{name}/scan"):
            paths += (
                [f"{folder}/{file}" for file in pool.list_names(folder, ".parquet")] if _is_folder(pool, folder) else []
            )
    return paths


def _is_folder(pool: Pool, folder: str) -> bool:
    return not folder.endswith(".json") and (not pool.is_local or Path(pool.locate(folder)).is_dir())


def _run(pool: Pool, folder: str, further: Further, progress: Progress) -> ForgetReport:
    """Finish a request whose file is in `folder`: the list first, then every place, the receipt last."""
    pending = _read_pending(pool, folder)
    assert pending is not None, "it was written just now, or has been found"
    listed = json.loads(pool.read_bytes(f"{folder}/{_REQUEST_FILE}"))["listed"]
    together = add_forgotten(pool, Forgotten.from_json(listed))
    journal = Journal(pool, f"{folder}/{_CHANGES}")
    _sweep(Work(pool=pool, uids=together.uids, eraser=Eraser(journal), targets=pending.targets), further, progress)
    report = replace(pending, files=journal.changes, not_done=journal.left)
    pool.remove_abandoned(RECEIPTS_FOLDER)
    # It says that everything before is done; what is pending is only in the way from here on.
    pool.commit_json(report.receipt, report.to_dict())
    _close(pool, folder, journal)
    return report


def _close(pool: Pool, folder: str, journal: Journal) -> None:
    """Remove a request that has its receipt, after the notes that went into it."""
    journal.close()
    pool.remove_abandoned(folder)
    pool.remove(f"{folder}/{_REQUEST_FILE}")


def _finish_pending(pool: Pool, asked: Forgotten, further: Further, progress: Progress) -> None:
    """Finish what other requests left when they were killed, and remove what is left of any that has its receipt."""
    own = _pending_folder(asked)
    for name in pool.list_names(PENDING_FOLDER):
        folder = f"{PENDING_FOLDER}/{name}"
        pending = _read_pending(pool, folder)
        if pending is None:
            continue
        if pool.exists(pending.receipt):
            # Killed while its notes were removed: a receipt made of the others would say less than the one that is there.
            _close(pool, folder, Journal(pool, f"{folder}/{_CHANGES}"))
        elif folder != own:
            _run(pool, folder, further, progress)


def _new_receipt(pool: Pool, folder: str, now: str) -> str:
    """Return the path of a receipt that is not there yet: a request may be made twice within a second."""
    stem = f"{RECEIPTS_FOLDER}/{now.replace(':', '')}-{folder.rpartition('/')[2]}"
    names = chain([f"{stem}.json"], (f"{stem}-{number}.json" for number in count(2)))
    return next(name for name in names if not pool.exists(name))


def _read_pending(pool: Pool, folder: str) -> ForgetReport | None:
    path = f"{folder}/{_REQUEST_FILE}"
    if not pool.exists(path):
        return None
    content: dict[str, Any] = json.loads(pool.read_bytes(path))
    return ForgetReport(
        asked=content["asked"],
        time=content["time"],
        rows=[ForgottenRow(**row) for row in content["rows"]],
        files=(),
        not_done=(),
        related=content["related"],
        targets=ForgetTargets(**{name: tuple(values) for name, values in content["targets"].items()}),
        receipt=content["receipt"],
    )


def _pending_folder(asked: Forgotten) -> str:
    return f"{PENDING_FOLDER}/{hashlib.sha256(canonical_json(asked.to_json()).encode()).hexdigest()[:12]}"


def _sweep(work: Work, further: Further, progress: Progress) -> None:
    """Remove every sample of `work.uids` from every place; what holds none of them any more is left as it is."""
    pool = work.pool
    shards = [shard for shard, table in _read_shards(pool, ["uid"]) if is_in(table["uid"], work.uids).any()]
    progress.start("forget", len(shards) + 1, "shards")
    try:
        if not work.eraser.is_dry:
            _remove_abandoned(work)
        # Before the annotations, whose texts tell which answers of an old cache are meant.
        _forget_answers(work, shards)
        for shard in shards:
            forget_in_annotations(work.eraser, pool, shard, work.uids)
        for name in pool.list_names("selections"):
            if pool.exists(f"selections/{name}/{SELECTION_FILE}"):
                forget_in_selection(work.eraser, pool, f"selections/{name}", work.uids)
        for shard in shards:
            forget_in_shard(work.eraser, pool, shard, work.uids)
            progress.advance(1)
        # After the shards: a view says where members lie in their tars.
        moved = frozenset(pool.locate(pool.shard_tar(pool.shard_header(shard))) for shard in shards)
        for dataset in find_datasets(work.targets.datasets):
            forget_in_dataset(work.eraser, dataset, pool, work.uids, moved, further.describe)
        forget_in_plans(work.eraser, pool, find_plan_files(pool), work.uids)
        _name_lists(work, set(shards))
        for step in further.steps:
            step(work)
        forget_hidden(work.eraser, [pool.root, *work.targets.datasets, *work.targets.exports])
        progress.advance(1)
    finally:
        progress.close()


def _remove_abandoned(work: Work) -> None:
    """Remove what killed commands left half written: it may hold what is to go."""
    pool = work.pool
    folders = [f"selections/{name}" for name in pool.list_names("selections")]
    folders += [
        f"{PLANS_FOLDER}/{name}" for name in pool.list_names(PLANS_FOLDER) if _is_folder(pool, f"{PLANS_FOLDER}/{name}")
    ]
    for folder in ("shards", *folders):
        pool.remove_abandoned(folder)
    for dataset in find_datasets(work.targets.datasets):
        dataset.store.remove_abandoned("")


def _forget_answers(work: Work, shards: Sequence[int]) -> None:
    folders = [folder for folder in work.targets.caches if Path(folder, ANSWERS_FILE).is_file()]
    own = work.pool.locate(CACHE_FOLDER)
    if work.pool.is_local and Path(own, ANSWERS_FILE).is_file() and own not in folders:
        folders.append(own)
    if not folders:
        return
    texts = frozenset(text for shard in shards for text in read_texts(work.pool, shard, work.uids))
    for folder in folders:
        cache = AnswerCache(folder)
        try:
            found = cache.find(work.uids, texts)
            if found:
                _remove_answers(work, cache, folder, found)
        finally:
            cache.close()


def _remove_answers(work: Work, cache: AnswerCache, folder: str, keys: Sequence[bytes]) -> None:
    store, path = Store(folder), str(Path(folder, ANSWERS_FILE))
    if work.eraser.is_dry:
        work.eraser.journal.note(path, [])
        return
    before = store.sha256(ANSWERS_FILE)
    if not cache.forget(keys):
        work.eraser.journal.leave(
            path,
            "another process has it open, so its log may hold answers that were removed",
            "end that process and run the same command again",
        )
    work.eraser.journal.note(path, [], before, store.sha256(ANSWERS_FILE))


def _name_lists(work: Work, shards: set[int]) -> None:
    """Say which lists may name the samples still: they are not the pool's."""
    for plan in load_plans(work.pool).values():
        touched = sorted(shards.intersection(plan.shards))
        for path in plan.lists if touched else ():
            work.eraser.journal.leave(
                path,
                f"it was downloaded or imported into shard {shard_name(touched[0])} and may still name what was taken down",
                "remove the rows from it; nothing of them is fetched again if they stay",
            )
