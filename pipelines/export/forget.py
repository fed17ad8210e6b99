"""Takes samples out of exports: lists of uids, tars and Parquet lose them; what other files index by place is named as stale instead."""

import io
import json
import shlex
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from curate.forget import Work
from curate.forget_files import Eraser, Mask, digest_file, member_keys, open_seekable
from curate.store import Store
from curate.tar import index_tar
from pipelines.export.repeat import UID_TYPE, parse_uids
from pipelines.export.target import EXPORT_FILE
from schemas.errors import InputError

# Formats whose files say by themselves which sample a part of them is; each file can lose samples and stay what it is.
_FILTERED = frozenset(["open-clip", "parquet", "share"])
_SIZES_FILE = "sizes.json"


def check_exports(paths: Sequence[str]) -> None:
    """Raise InputError where a path is neither a subset file (.npy) nor the folder of an export."""
    for path in paths:
        if not _is_subset(path) and not Store(path).exists(EXPORT_FILE):
            raise InputError(
                f"{path} is no export: it has no {EXPORT_FILE} and is no .npy file; give what `winnow export` printed"
            )


def forget_in_exports(work: Work) -> None:
    """Remove samples from the exports of a takedown; say which ones must be made anew."""
    for path in work.targets.exports:
        if _is_subset(path):
            _forget_in_subset(work.eraser, path, work.uids)
        else:
            _forget_in_folder(work.eraser, Store(path), work.uids)


def _is_subset(path: str) -> bool:
    return path.endswith(".npy")


def _forget_in_subset(eraser: Eraser, path: str, uids: frozenset[str]) -> None:
    """Remove uids from DataComp's subset file, which stays sorted."""
    parent, _, name = path.rpartition("/")
    store = Store(parent or ("/" if path.startswith("/") else "."))
    if not store.exists(name):
        raise InputError(f"{path} does not exist; give the file that `winnow export datacomp` printed")
    stored = np.load(io.BytesIO(store.read_bytes(name)))
    if stored.dtype != UID_TYPE:
        raise InputError(f"{path} holds {stored.dtype}, not uids as pairs of 64-bit numbers; it is no subset file")
    gone = sorted(uids)
    is_gone = np.isin(stored.view("S16"), parse_uids(gone).view("S16")) if gone else np.zeros(len(stored), dtype=bool)
    if not is_gone.any():
        return
    buffer = io.BytesIO()
    np.save(buffer, stored[~is_gone])
    found = {f"{high:016x}{low:016x}" for high, low in stored[is_gone].tolist()}
    eraser.replace(store, name, sorted(found), buffer.getvalue())


def _forget_in_folder(eraser: Eraser, store: Store, uids: frozenset[str]) -> None:
    """Remove samples from the files of an export; `export.json`, which states every file's digest, is last."""
    content: dict[str, Any] = json.loads(store.read_bytes(EXPORT_FILE))
    if content["kind"] not in _FILTERED:
        _leave(eraser, store, content)
        return
    num_gone, gone = 0, set[str]()
    for path in content["files"]:
        found = _forget_in_file(eraser, store, path, uids)
        num_gone, gone = num_gone + len(found), gone.union(found)
    if eraser.is_dry:
        return
    if store.exists(_SIZES_FILE) and _SIZES_FILE in content["files"]:
        sizes = {path: _count_samples(store, path) for path in json.loads(store.read_bytes(_SIZES_FILE))}
        eraser.replace(store, _SIZES_FILE, sorted(gone), (json.dumps(sizes, indent=2) + "\n").encode())
    files = {path: {"bytes": store.num_bytes(path), "sha256": digest_file(store, path)} for path in content["files"]}
    if files == content["files"]:
        return
    before, after = content["num_samples"], _count_all(store, content, num_gone)
    notes = {
        name: text.replace(f"--train-num-samples {before}", f"--train-num-samples {after}")
        if isinstance(text, str)
        else text
        for name, text in content["notes"].items()
    }
    updated = {**content, "num_samples": after, "notes": notes, "files": files}
    eraser.replace(store, EXPORT_FILE, sorted(gone), (json.dumps(updated, indent=2, ensure_ascii=True) + "\n").encode())


def _forget_in_file(eraser: Eraser, store: Store, path: str, uids: frozenset[str]) -> list[str]:
    """Remove samples from one file; return the uid of everything that was removed, of each repetition again."""
    suffix = PurePosixPath(path).suffix
    if suffix == ".tar":
        with open_seekable(store, path) as file:
            keys = {key for member in index_tar(file) for key in member_keys(member)}
        # A sample's members are named UID-COPY.
        gone = sorted(key for key in keys if key.partition("-")[0] in uids)
        return [key.partition("-")[0] for key in gone] if eraser.tar(store, path, frozenset(gone), gone) else []
    if suffix == ".parquet" and "uid" in store.read_footer(path).schema.to_arrow_schema().names:

        def find(table: pa.Table) -> Mask:
            return np.array([uid in uids for uid in table["uid"].to_pylist()], dtype=bool)

        return eraser.parquet(store, path, ["uid"], find, lambda table, mask: table.filter(pa.array(~mask)))
    return []


def _count_all(store: Store, content: dict[str, Any], num_gone: int) -> int:
    """Return how many samples an export has now, by its files: an attempt that was killed may have removed some before."""
    tars = [path for path in content["files"] if path.endswith(".tar")]
    if tars:
        return sum(_count_samples(store, path) for path in tars)
    tables = [path for path in content["files"] if path.endswith(".parquet")]
    return sum(store.read_footer(path).num_rows for path in tables) if tables else content["num_samples"] - num_gone


def _count_samples(store: Store, path: str) -> int:
    with open_seekable(store, path) as file:
        return len({member.name.partition(".")[0] for member in index_tar(file)})


def _leave(eraser: Eraser, store: Store, content: dict[str, Any]) -> None:
    eraser.journal.leave(
        store.root,
        f"an export as {content['kind']} cannot lose samples: its files refer to each other by place; it may hold what was taken down",
        f"remove the folder and make it anew: winnow export {content['kind']} DATASET --out {shlex.quote(store.root)}",
    )
