"""Where files lie and how they are committed: a local folder or any fsspec URL, one code path.

A file appears under its final name only when it is whole (written beside it, flushed to disk, renamed), so "it exists" means "it is
done" and resuming needs no progress database. Object stores give the same promise by making an upload visible at its end.
"""

import hashlib
import json
import logging
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractBufferedFile

from schemas.annotation import AnnotationHeader
from schemas.errors import InputError, StaleDatasetError
from schemas.sample import SHARD_DIGEST_KEY, TAR_LOCATION_KEY, UID_DIGEST_KEY, shard_name
from schemas.selection import SELECTION_FILE

logger = logging.getLogger(__name__)

STAGING_SUFFIX = ".staging"
_ABANDONED_SECONDS = 24 * 3600
# Compressed enough for object stores, fast enough to be invisible beside a decode; part of the bytes, so never read from the environment.
_COMPRESSION = "zstd"
_ROW_GROUP_ROWS = 65_536
_REMOTE_BYTES = 8 << 20


class Store:
    """A folder on a local disk or an fsspec URL (`s3://bucket/pool`); paths given to it are relative to its root, with `/`."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        # A listing that is remembered does not know what other processes have committed since.
        self._fs, path = fsspec.core.url_to_fs(os.fspath(root), use_listings_cache=False)
        self.is_local = isinstance(self._fs, LocalFileSystem)
        self.root: str = str(Path(path).absolute()) if self.is_local else self._fs.unstrip_protocol(path)
        self._path = self.root if self.is_local else path

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.root!r})"

    def __reduce__(self) -> tuple[type["Store"], tuple[str]]:
        # File system objects hold locks and sockets; a worker opens its own.
        return type(self), (self.root,)

    @property
    def filesystem(self) -> Any:
        """The fsspec file system, for readers that take one."""
        return self._fs

    def require_folder(self) -> None:
        """Raise `InputError` where a file lies in the root's place, before work is done that could not be kept."""
        if self.is_local and os.path.isfile(self.root):  # noqa: PTH113
            raise InputError(f"{self.root} is a file, and a folder is needed there; give another folder")

    def locate(self, path: str) -> str:
        """Return the full path (local) or URL of `path`, as other tools take it; an absolute path or URL stays as it is."""
        if path.startswith("/") or "://" in path:
            return path
        return f"{self.root}/{path}" if path else self.root

    def exists(self, path: str) -> bool:
        """Tell whether the file or folder exists."""
        return os.path.exists(self.locate(path)) if self.is_local else bool(self._fs.exists(self._full(path)))  # noqa: PTH110

    def list_names(self, folder: str, suffix: str = "") -> list[str]:
        """Return the sorted names in a folder that end with `suffix`, staging files left out; a missing folder is empty."""
        if self.is_local:
            try:
                names = [entry.name for entry in os.scandir(self.locate(folder))]
            except FileNotFoundError:
                return []
        else:
            try:
                names = [
                    str(entry).rstrip("/").rsplit("/", 1)[-1]
                    for entry in self._fs.ls(self._full(folder), detail=False, refresh=True)
                ]
            except FileNotFoundError:
                return []
        return sorted(name for name in names if name.endswith(suffix) and not name.endswith(STAGING_SUFFIX))

    def open(self, path: str) -> BinaryIO:
        """Open a file for reading bytes."""
        if self.is_local and "://" not in path:
            return Path(self.locate(path)).open("rb")
        if "://" in path:
            return cast(BinaryIO, fsspec.open(path, "rb").open())
        return cast(BinaryIO, self._fs.open(self._full(path), "rb"))

    @contextmanager
    def open_seekable(self, path: str) -> Iterator[BinaryIO]:
        """Open a file to jump about in; one behind a network is fetched whole, in large pieces, for each jump would cost a request."""
        with self.open(path) as file:
            if self.is_local and "://" not in path:
                yield file
                return
            with tempfile.TemporaryFile() as local:
                shutil.copyfileobj(file, local, _REMOTE_BYTES)
                local.seek(0)
                yield local

    def read_bytes(self, path: str) -> bytes:
        """Return a whole file."""
        with self.open(path) as file:
            return file.read()

    def sha256(self, path: str) -> str:
        """Return the sha256 of a file, which is read in pieces."""
        digest = hashlib.sha256()
        with self.open(path) as file:
            while chunk := file.read(_REMOTE_BYTES):
                digest.update(chunk)
        return digest.hexdigest()

    def num_bytes(self, path: str) -> int:
        """Return the size of a file in bytes."""
        return Path(self.locate(path)).stat().st_size if self.is_local else int(self._fs.size(self._full(path)))

    def remove(self, path: str) -> None:
        """Remove a file if it exists."""
        if self.is_local:
            Path(self.locate(path)).unlink(missing_ok=True)
        elif self._fs.exists(self._full(path)):
            self._fs.rm_file(self._full(path))

    @contextmanager
    def commit(self, path: str) -> Iterator[BinaryIO]:
        """Yield a file to write; it gets its name when the block ends well, and leaves nothing behind when it raises."""
        if self.is_local:
            with self.commit_path(path) as staging, staging.open("wb") as file:
                yield file
            return
        # fsspec's writers publish on close; discarding instead of closing keeps a half-written object invisible.
        file = self._fs.open(self._full(path), "wb")
        try:
            yield cast(BinaryIO, file)
        except BaseException:
            discard: Callable[[], None] | None = getattr(file, "discard", None)
            if discard is not None:
                discard()
            if isinstance(file, AbstractBufferedFile):
                # What is open when it is collected is flushed, and nothing is left to flush.
                file.closed = True
            raise
        file.close()

    @contextmanager
    def commit_path(self, path: str) -> Iterator[Path]:
        """Yield a local path to write, for libraries that want a name; it becomes `path` when the block ends well."""
        target = Path(self.locate(path)) if self.is_local else Path(tempfile.gettempdir()) / Path(path).name
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = target.with_name(
            f".{target.name}.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}{STAGING_SUFFIX}"
        )
        try:
            yield staging
            if self.is_local:
                publish(staging, target)
            else:
                self._fs.put_file(str(staging), self._full(path))
        finally:
            staging.unlink(missing_ok=True)

    def commit_bytes(self, path: str, data: bytes) -> None:
        """Write a small file whole."""
        with self.commit(path) as file:
            file.write(data)

    def commit_json(self, path: str, content: object) -> None:
        """Write JSON whole: two-space indent, ASCII, the keys in the order given."""
        self.commit_bytes(path, (json.dumps(content, indent=2, ensure_ascii=True) + "\n").encode())

    def commit_table(self, path: str, table: pa.Table) -> None:
        """Write an Arrow table as Parquet (zstd, statistics, its schema metadata kept)."""
        with self.commit(path) as file:
            pq.write_table(table, file, compression=_COMPRESSION, row_group_size=_ROW_GROUP_ROWS)

    def read_table(self, path: str, columns: list[str] | None = None) -> pa.Table:
        """Read a Parquet file, or some of its columns."""
        with self.open(path) as file:
            return pq.ParquetFile(file).read(columns=columns)

    def read_footer(self, path: str) -> pq.FileMetaData:
        """Read a Parquet footer: row count, schema metadata."""
        try:
            with self.open(path) as file:
                return pq.read_metadata(file)
        except pa.ArrowInvalid as error:
            raise StaleDatasetError(
                f"{self.locate(path)} is not a Parquet file ({error}); remove it and run the stage again"
            ) from error

    def remove_abandoned(self, folder: str) -> None:
        """Remove staging files whose writer is gone: a dead process of this host, or anything over a day old."""
        if not self.is_local or not self.exists(folder):
            return
        for entry in os.scandir(self.locate(folder)):
            if entry.name.endswith(STAGING_SUFFIX) and _is_abandoned(entry):
                logger.info("removing abandoned staging file path=%s", entry.path)
                Path(entry.path).unlink(missing_ok=True)

    def _full(self, path: str) -> str:
        return f"{self._path}/{path}" if path else self._path


@dataclass(frozen=True, kw_only=True)
class ShardHeader:
    """What a shard's Parquet footer says: its identity, its row count, and where its tar lies (empty: beside it)."""

    shard: int
    num_rows: int
    shard_digest: str
    uid_digest: str
    tar: str


@dataclass(frozen=True, kw_only=True)
class LabelTarget:
    """The annotation a SQL label stands for."""

    operator: str
    fingerprint: str


class Pool(Store):
    """A pool: `shards/`, `annotations/<operator>/<fingerprint12>/`, `selections/`."""

    def shards(self) -> list[int]:
        """Return the committed shards in order; a shard is committed when its Parquet exists."""
        names = self.list_names("shards", ".parquet")
        try:
            return sorted(int(name.removesuffix(".parquet")) for name in names)
        except ValueError as error:
            raise InputError(
                f"{self.locate('shards')} holds a Parquet file that is not a shard: {error}; move it elsewhere"
            ) from error

    def require_shards(self) -> list[int]:
        """Return the shards, or raise an error that says how to get some."""
        shards = self.shards()
        if not shards:
            raise InputError(
                f"no shards in {self.locate('shards')}; make some with `winnow download URLS --pool {self.root}` or `winnow import`"
            )
        return shards

    def shard_parquet(self, shard: int) -> str:
        """Return the path of a shard's Parquet."""
        return f"shards/{shard_name(shard)}.parquet"

    def shard_tar(self, header: ShardHeader) -> str:
        """Return the path of a shard's tar, which an import may have left outside the pool."""
        return header.tar or f"shards/{shard_name(header.shard)}.tar"

    def shard_header(self, shard: int) -> ShardHeader:
        """Read a shard's footer."""
        footer = self.read_footer(self.shard_parquet(shard))
        metadata: Mapping[bytes, bytes] = footer.metadata or {}
        if SHARD_DIGEST_KEY not in metadata:
            raise InputError(
                f"{self.locate(self.shard_parquet(shard))} was not written by Winnow; bring the folder in with `winnow import`"
            )
        return ShardHeader(
            shard=shard,
            num_rows=footer.num_rows,
            shard_digest=metadata[SHARD_DIGEST_KEY].decode(),
            uid_digest=metadata[UID_DIGEST_KEY].decode(),
            tar=metadata.get(TAR_LOCATION_KEY, b"").decode(),
        )

    def selections(self) -> list[str]:
        """Return the folders of the selections in order; one is there when its `selection.json`, which is written last, exists."""
        folders = [f"selections/{name}" for name in self.list_names("selections")]
        return [folder for folder in folders if self.exists(f"{folder}/{SELECTION_FILE}")]

    def annotation_folder(self, operator: str, fingerprint: str) -> str:
        """Return the folder of an operator's files; the fingerprint's first 12 characters name it."""
        return f"annotations/{operator}/{fingerprint[:12]}"

    def annotation_path(self, operator: str, fingerprint: str, shard: int) -> str:
        """Return the path of an operator's file for a shard."""
        return f"{self.annotation_folder(operator, fingerprint)}/{shard_name(shard)}.parquet"

    def annotation_header(self, operator: str, fingerprint: str, shard: int) -> AnnotationHeader | None:
        """Read an annotation's header, or return None where there is no file."""
        path = self.annotation_path(operator, fingerprint, shard)
        return AnnotationHeader.from_metadata(self.read_footer(path).metadata) if self.exists(path) else None

    def missing(
        self, operator: str, fingerprint: str, shards: Mapping[int, ShardHeader], pool_digest: str = ""
    ) -> list[int]:
        """Return the shards whose annotation is absent or was computed from other rows: this is all that resuming needs."""
        present = set(self.list_names(self.annotation_folder(operator, fingerprint), ".parquet"))

        def is_current(shard: int) -> bool:
            if f"{shard_name(shard)}.parquet" not in present:
                return False
            header = self.annotation_header(operator, fingerprint, shard)
            return (
                header is not None
                and header.fingerprint == fingerprint
                and header.shard_digest == shards[shard].shard_digest
                and header.pool_digest == pool_digest
            )

        return [shard for shard in shards if not is_current(shard)]

    def labels(self) -> dict[str, LabelTarget]:
        """Return what each SQL label stands for."""
        if not self.exists("annotations/labels.json"):
            return {}
        content = json.loads(self.read_bytes("annotations/labels.json"))
        return {label: LabelTarget(**target) for label, target in content.items()}

    def set_labels(self, targets: Mapping[str, LabelTarget]) -> None:
        """Point labels at annotations; labels not named stay as they are."""
        known = self.labels()
        merged = {**known, **targets}
        if merged == known:
            return
        content = {
            label: {"operator": merged[label].operator, "fingerprint": merged[label].fingerprint}
            for label in sorted(merged)
        }
        self.commit_json("annotations/labels.json", content)


def publish(staging: Path, target: Path) -> None:
    """Flush a finished file to disk and give it its final name; after this the name survives a power cut."""
    with staging.open("rb") as file:
        os.fsync(file.fileno())
    staging.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _is_abandoned(entry: "os.DirEntry[str]") -> bool:
    try:
        prefix, pid, _ = entry.name.removesuffix(STAGING_SUFFIX).rsplit(".", 2)
        if time.time() - entry.stat().st_mtime > _ABANDONED_SECONDS:
            return True
    except (ValueError, FileNotFoundError):
        return False
    return prefix.endswith(f".{socket.gethostname()}") and pid.isdigit() and not _is_running(int(pid))


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
