"""Where an export is written: in a folder of its own beside the target, which takes the target's name when everything is there.

A killed export therefore leaves nothing that looks whole, and the same command goes on after the last finished part. In an object store,
which has no folders to rename, the files are copied to their names inside the store, `export.json` last.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from fsspec.core import url_to_fs

from curate.executor import Executor
from curate.fingerprint import canonical_json
from curate.store import Store
from schemas.errors import InputError, ShardError
from schemas.progress import Progress

logger = logging.getLogger(__name__)

EXPORT_FILE = "export.json"
_FORMAT = "winnow-export"
_VERSION = 1
PARTS = "parts"
_SUFFIX = ".exporting"
_CHUNK_BYTES = 8 << 20

Files = dict[str, dict[str, object]]


@dataclass(frozen=True)
class Part:
    """A piece of an export that one worker writes: rows `start` to `stop` (exclusive); `number` names its files."""

    number: int
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What an export left: `was_current` where it was there already, and proven the same."""

    format: str
    location: str
    num_samples: int  # written, repetitions included
    num_left_out: int = 0  # samples that lack what the format needs
    num_files: int = 1
    num_bytes: int = 0
    was_current: bool = False
    notes: Mapping[str, object] = field(default_factory=dict)  # what the format has to say: a command, caption keys


def split_evenly(num_rows: int, most: int) -> list[Part]:
    """Cut rows into as few parts of at most `most` as there can be; their sizes differ by at most one."""
    if most < 1:
        raise InputError(f"a file must hold at least 1 sample, not {most}")
    num_parts = max(1, -(-num_rows // most))
    size, longer = divmod(num_rows, num_parts)
    starts = [number * size + min(number, longer) for number in range(num_parts + 1)]
    return [Part(number, starts[number], starts[number + 1]) for number in range(num_parts)]


class Target:
    """A folder to be exported to; `identity` is everything that its bytes depend on."""

    def __init__(self, out: str, kind: str, identity: Mapping[str, object]) -> None:
        self.store = Store(out)
        self.kind = kind
        self.identity = hashlib.sha256(
            canonical_json({"format": kind, "version": _VERSION, **identity}).encode()
        ).hexdigest()
        parent, _, name = self.store.root.rstrip("/").rpartition("/")
        if not name or name.endswith(":") or parent.endswith(":/"):
            raise InputError(f"{out!r} cannot be exported to; give a folder of its own inside it")
        # The identity is in the name: what another export left half done is never mixed into this one.
        self.staging = Store(f"{parent}/.{name}.{self.identity[:12]}{_SUFFIX}")
        self._files: Files = {}

    def find(self) -> ExportReport | None:
        """Return the report of this export where it is there already and every byte is as written; raises InputError where another is."""
        whole = self._read(self.staging)
        # In an object store half of it may have been copied already.
        if whole is not None and not (self.store.is_local and self._is_taken()):
            self._finish(whole)
            return self._report(whole, was_current=False)
        if not self._is_taken():
            return None
        content = self._read(self.store)
        if content is None:
            raise InputError(f"{self.store.root} exists and is not empty; give another --out, or remove it")
        if content["identity"] != self.identity:
            raise InputError(
                f"{self.store.root} is an export of something else ({content['kind']} of {content['name']}, or other settings); give "
                "another --out, or remove it"
            )
        for path, entry in content["files"].items():
            if not self.store.exists(path) or self.store.sha256(path) != entry["sha256"]:
                raise InputError(
                    f"{self.store.locate(path)} is not as it was exported; remove {self.store.root} and export again"
                )
        return self._report(content, was_current=True)

    def run(
        self,
        function: Callable[[Store, Part], dict[str, Any]],
        parts: Sequence[Part],
        executor: Executor,
        progress: Progress,
    ) -> list[dict[str, Any]]:
        """Write the parts that are not done, on all workers, and return every part's result, in order.

        `function` writes into the store it is given and returns JSON, with the files it wrote as `files`. Raises `ShardError` where parts
        failed after every retry; the others stay done.
        """
        self.staging.remove_abandoned("")
        done = set(self.staging.list_names(PARTS, ".json"))
        missing = [part for part in parts if _record(part) not in done]
        failures: dict[str, str] = {}
        progress.start("export", sum(part.stop - part.start for part in missing), "samples")
        try:
            for outcome in executor.map(partial(_write_part, function, self.staging), missing):
                if outcome.error is not None:
                    failures[f"{outcome.unit.number:05d}"] = outcome.error
                    logger.error("part failed stage=export part=%05d error=%s", outcome.unit.number, outcome.error)
                progress.advance(outcome.unit.stop - outcome.unit.start)
        finally:
            progress.close()
        if failures:
            first = next(iter(failures))
            raise ShardError(
                f"export: {len(failures)} of {len(parts)} parts failed; {first}: {failures[first]}", failures
            )
        results: list[dict[str, Any]] = [
            json.loads(self.staging.read_bytes(f"{PARTS}/{_record(part)}")) for part in parts
        ]
        for result in results:
            self._files |= result["files"]
        return results

    def write(self, path: str, data: bytes) -> None:
        """Write a small file."""
        with write_file(self.staging, path, self._files) as file:
            file.write(data)

    def add(self, path: str, source: Path) -> None:
        """Take a finished local file in."""
        with write_file(self.staging, path, self._files) as file, source.open("rb") as data:
            shutil.copyfileobj(data, file, _CHUNK_BYTES)

    def publish(
        self, name: str, num_samples: int, *, num_left_out: int = 0, notes: Mapping[str, object] | None = None
    ) -> ExportReport:
        """Say what was exported in `export.json` and give the folder its name; from here on the export is there, and whole."""
        content = {
            "format": _FORMAT,
            "version": _VERSION,
            "kind": self.kind,
            "name": name,
            "identity": self.identity,
            "num_samples": num_samples,
            "num_left_out": num_left_out,
            "notes": dict(notes or {}),
            "files": {path: self._files[path] for path in sorted(self._files)},
        }
        self.staging.commit_json(EXPORT_FILE, content)
        self._finish(content)
        return self._report(content, was_current=False)

    def _finish(self, content: Mapping[str, Any]) -> None:
        """Give a whole export its name."""
        for record in self.staging.list_names(PARTS):
            self.staging.remove(f"{PARTS}/{record}")
        if self.staging.is_local:
            shutil.rmtree(Path(self.staging.root) / PARTS, ignore_errors=True)
            Path(self.staging.root).rename(self.store.root)
            return
        for path in [*content["files"], EXPORT_FILE]:
            _copy(self.staging.locate(path), self.store.locate(path))
        filesystem, folder = url_to_fs(self.staging.root)
        filesystem.rm(folder, recursive=True)

    def _is_taken(self) -> bool:
        if not self.store.exists(""):
            return False
        if self.store.is_local and not Path(self.store.root).is_dir():
            raise InputError(f"{self.store.root} is a file; give a folder as --out")
        return bool(self.store.list_names(""))

    @staticmethod
    def _read(store: Store) -> dict[str, Any] | None:
        if not store.exists(EXPORT_FILE):
            return None
        content: dict[str, Any] = json.loads(store.read_bytes(EXPORT_FILE))
        return content if content.get("format") == _FORMAT else None

    def _report(self, content: Mapping[str, Any], *, was_current: bool) -> ExportReport:
        return ExportReport(
            format=self.kind,
            location=self.store.root,
            num_samples=content["num_samples"],
            num_left_out=content["num_left_out"],
            num_files=len(content["files"]),
            num_bytes=sum(entry["bytes"] for entry in content["files"].values()),
            was_current=was_current,
            notes=content["notes"],
        )


class DigestingFile:
    """A file that is only written, front to back, and digested on the way."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._position = 0
        self.closed = False

    def write(self, data: Any) -> int:
        """Append bytes."""
        self._digest.update(data)
        self._position += memoryview(data).nbytes
        self._file.write(data)
        return memoryview(data).nbytes

    def tell(self) -> int:
        """Return the number of bytes written."""
        return self._position

    def flush(self) -> None:
        """Do nothing: the file is flushed when it gets its name."""

    def close(self) -> None:
        """Take no more."""
        self.closed = True

    def entry(self) -> dict[str, object]:
        """Return the size and the digest."""
        return {"bytes": self._position, "sha256": self._digest.hexdigest()}


@contextmanager
def write_file(store: Store, path: str, files: Files) -> Iterator[DigestingFile]:
    """Yield a file to write; it gets its name when the block ends well, and its size and digest are noted in `files`."""
    with store.commit(path) as file:
        digesting = DigestingFile(file)
        yield digesting
    files[path] = digesting.entry()


def write_single(out: str, write: Callable[[DigestingFile], None]) -> tuple[str, bool, int]:
    """Write an export that is one file; return where it is, whether it was there already, and its size.

    Raises InputError where a file of that name holds other bytes.
    """
    parent, _, name = out.rpartition("/")
    store = Store(parent or ("/" if out.startswith("/") else "."))
    if not name:
        raise InputError(f"{out!r} is a folder; give the name of a file as --out")
    files: Files = {}
    staged = f".{name}{_SUFFIX}"
    with write_file(store, staged, files) as file:
        write(file)
    try:
        if store.exists(name):
            if store.sha256(name) != files[staged]["sha256"]:
                raise InputError(
                    f"{store.locate(name)} exists and holds something else; give another --out, or remove it"
                )
            return store.locate(name), True, int(str(files[staged]["bytes"]))
        if store.is_local:
            Path(store.locate(staged)).rename(store.locate(name))
        else:
            _copy(store.locate(staged), store.locate(name))
    finally:
        store.remove(staged)
    return store.locate(name), False, int(str(files[staged]["bytes"]))


def _write_part(function: Callable[[Store, Part], dict[str, Any]], staging: Store, part: Part) -> None:
    result = function(staging, part)
    # After its files: a part with a record is whole.
    staging.commit_json(f"{PARTS}/{_record(part)}", result)


def _record(part: Part) -> str:
    return f"{part.number:05d}.json"


def _copy(source: str, target: str) -> None:
    """Copy inside an object store."""
    filesystem, source_path = url_to_fs(source)
    target_path = url_to_fs(target)[1]
    filesystem.makedirs(target_path.rpartition("/")[0], exist_ok=True)
    filesystem.cp_file(source_path, target_path)
