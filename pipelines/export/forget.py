"""Takes samples out of exports: lists of uids, tars and Parquet lose them; what other files index by place is named as stale instead."""

import io
import json
import shlex
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from curate.forget import Work
from curate.forget_files import Eraser, Mask
from curate.forgotten import is_in
from curate.store import Store
from curate.tar import index_tar, split_name
from pipelines.export.repeat import UID_TYPE, parse_uids
from pipelines.export.target import EXPORT_FILE
from schemas.errors import InputError

# Formats whose files say by themselves which sample a part of them is; each file can lose samples and stay what it is.
_FILTERED = frozenset(["open-clip", "datacompdr", "parquet", "share", "hugging-face", "clip-retrieval"])
_SIZES_FILE = "sizes.json"
_CARD_FILE = "README.md"
_VECTORS = ("img_emb/img_emb_{}.npy", "text_emb/text_emb_{}.npy")


def check_exports(paths: Sequence[str]) -> None:
    """Raise InputError where a path is neither a subset file (.npy) nor the folder of an export."""
    for path in paths:
        if not _is_subset(path) and not _is_description(path) and not Store(path).exists(EXPORT_FILE):
            raise InputError(
                f"{path} is no export: it has no {EXPORT_FILE} and is no .npy file; give what `winnow export` printed"
            )


def forget_in_exports(work: Work) -> None:
    """Remove samples from the exports of a takedown; say which ones must be made anew."""
    for path in work.targets.exports:
        if _is_subset(path):
            _forget_in_subset(work.eraser, path, work.uids)
        elif _is_description(path):
            work.eraser.journal.leave(
                path,
                "it states digests of a dataset's files, which may have changed; it holds no sample",
                f"make it anew: winnow export croissant DATASET --out {shlex.quote(path)}",
            )
        else:
            _forget_in_folder(work.eraser, Store(path), work.uids)


def _is_subset(path: str) -> bool:
    return path.endswith(".npy")


def _is_description(path: str) -> bool:
    return path.endswith(".json")


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
        if content["kind"] == "clip-retrieval":
            _forget_vectors(eraser, store, path, uids)
        found = _forget_in_file(eraser, store, path, uids)
        num_gone, gone = num_gone + len(found), gone.union(found)
    if eraser.is_dry:
        return
    if store.exists(_SIZES_FILE) and _SIZES_FILE in content["files"]:
        sizes = {path: _count_samples(store, path) for path in json.loads(store.read_bytes(_SIZES_FILE))}
        eraser.replace(store, _SIZES_FILE, sorted(gone), (json.dumps(sizes, indent=2) + "\n").encode())
    _update_card(eraser, store, content, sorted(gone))
    files = {path: {"bytes": store.num_bytes(path), "sha256": store.sha256(path)} for path in content["files"]}
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
    if suffix == ".tar":  # its samples are named by their uid, or by UID-COPY
        with store.open_seekable(path) as file:
            keys = {key for member in index_tar(file) for key in split_name(member.name)[0]}
        gone = sorted(key for key in keys if key.partition("-")[0] in uids)
        return [key.partition("-")[0] for key in gone] if eraser.tar(store, path, frozenset(gone), gone) else []
    if suffix == ".parquet" and "uid" in store.read_footer(path).schema.to_arrow_schema().names:

        def find(table: pa.Table) -> Mask:
            return is_in(table["uid"], uids)

        return eraser.parquet(store, path, ["uid"], find, lambda table, mask: table.filter(pa.array(~mask)))
    return []


def _forget_vectors(eraser: Eraser, store: Store, path: str, uids: frozenset[str]) -> None:
    """Remove the vectors of samples, whose rows are those of the metadata file `path`; the metadata, which tells them, loses them later."""
    stem = PurePosixPath(path).stem
    if not stem.startswith("metadata_"):
        return
    found = store.read_table(path, ["uid"])["uid"].to_pylist()
    is_gone = np.array([uid in uids for uid in found], dtype=bool)
    if not is_gone.any():
        return
    gone = [uid for uid in found if uid in uids]
    for pattern in _VECTORS:
        name = pattern.format(stem.removeprefix("metadata_"))
        vectors = np.load(io.BytesIO(store.read_bytes(name)))
        # Shorter already: an attempt that was killed came so far.
        if len(vectors) == len(found):
            buffer = io.BytesIO()
            np.save(buffer, vectors[~is_gone])
            eraser.replace(store, name, gone, buffer.getvalue())


def _update_card(eraser: Eraser, store: Store, content: dict[str, Any], gone: Sequence[str]) -> None:
    """Bring the counts at the head of a Hugging Face card up to date, which `datasets` compares with what it reads."""
    if content["kind"] != "hugging-face" or not store.exists(_CARD_FILE):
        return
    head, _, body = store.read_bytes(_CARD_FILE).decode().removeprefix("---\n").partition("---\n")
    front = yaml.safe_load(head)
    tables = [path for path in content["files"] if path.endswith(".parquet")]
    num_rows = sum(store.read_footer(path).num_rows for path in tables)
    (split,) = front["dataset_info"]["splits"]
    if split["num_examples"] == num_rows:
        return
    num_bytes = sum(_memory_bytes(store, path) for path in tables)
    body = body.replace(f"{split['num_examples']:,} image-text pairs", f"{num_rows:,} image-text pairs")
    split |= {"num_bytes": num_bytes, "num_examples": num_rows}
    front["dataset_info"] |= {"download_size": sum(map(store.num_bytes, tables)), "dataset_size": num_bytes}
    text = f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n{body}"
    eraser.replace(store, _CARD_FILE, gone, text.encode())


def _memory_bytes(store: Store, path: str) -> int:
    with store.open(path) as file:
        return sum(batch.nbytes for batch in pq.ParquetFile(file).iter_batches())


def _count_all(store: Store, content: dict[str, Any], num_gone: int) -> int:
    """Return how many samples an export has now, by its files: an attempt that was killed may have removed some before."""
    tars = [path for path in content["files"] if path.endswith(".tar")]
    if tars:
        return sum(_count_samples(store, path) for path in tars)
    tables = [path for path in content["files"] if path.endswith(".parquet")]
    return sum(store.read_footer(path).num_rows for path in tables) if tables else content["num_samples"] - num_gone


def _count_samples(store: Store, path: str) -> int:
    with store.open_seekable(path) as file:
        return len({member.name.partition(".")[0] for member in index_tar(file)})


def _leave(eraser: Eraser, store: Store, content: dict[str, Any]) -> None:
    eraser.journal.leave(
        store.root,
        f"an export as {content['kind']} cannot lose samples: its files refer to each other by place; it may hold what was taken down",
        f"remove the folder and make it anew: winnow export {content['kind']} DATASET --out {shlex.quote(store.root)}",
    )
