"""Folders of files that are made once and then mapped by every process of a machine, and by later runs."""

import fcntl
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

logger = logging.getLogger(__name__)

_UNUSED_SECONDS = 30 * 24 * 3600
_NAME_DIGITS = 24
_NAME = re.compile(rf"[0-9a-f]{{{_NAME_DIGITS}}}")
_REMOVED_SUFFIX = ".removed.staging"
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def name_folder(*identity: object) -> str:
    """Return the name of a folder whose content follows from `identity`."""
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:_NAME_DIGITS]


def make_once(target: Path, make: Callable[[Path], None], *, mark: str) -> None:
    """Make the folder `target` where it is not there yet: `make` fills a staging folder, which gets its name when it is whole.

    Several processes may call this at once: one makes the files, the others wait for it. Folders beside it that `make_once` made too (a
    name of `name_folder`, and a file `mark` inside) and that were not opened for 30 days are removed then, so that they do not pile up.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        with _locked(target.with_name(f".{target.name}.lock")):
            if not target.exists():
                _remove_abandoned(target)
                _remove_unused(target.parent, mark)
                _make(target, make)
    with suppress(OSError):  # another user's
        os.utime(target)


def removed_folders(parent: str) -> list[str]:
    """Return what a kill left of removals in a folder of such folders."""
    return [str(path) for path in sorted(Path(parent).glob(f".*{_REMOVED_SUFFIX}"))]


def remove_folder(folder: str) -> None:
    """Remove a folder that `make_once` made; processes that map its files keep what they have."""
    path = Path(folder)
    if not path.name.endswith(_REMOVED_SUFFIX):
        # Out of sight at once: half a folder must not look like a whole one.
        target = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_REMOVED_SUFFIX}")
        path.rename(target)
        path = target
    shutil.rmtree(path)


def read_ahead(function: Callable[[_Item], _Result], items: Iterable[_Item], *, num_threads: int) -> Iterator[_Result]:
    """Yield `function` of each item in order, computed by threads that are at most as many items ahead."""
    with ThreadPoolExecutor(num_threads) as threads:
        ahead: deque[Future[_Result]] = deque()
        for item in items:
            ahead.append(threads.submit(function, item))
            if len(ahead) > num_threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that the system drops when its holder dies."""
    with path.open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except (
            OSError
        ) as error:  # some network file systems have none; then several processes may do the same work, safely
            logger.warning("cannot lock path=%s error=%s", path, error)
        yield


def _remove_abandoned(target: Path) -> None:
    for folder in target.parent.glob(f".{target.name}.*.staging"):
        shutil.rmtree(folder, ignore_errors=True)


def _remove_unused(parent: Path, mark: str) -> None:
    oldest = time.time() - _UNUSED_SECONDS
    for file in parent.glob(f"*/{mark}"):
        folder = file.parent
        try:
            if _NAME.fullmatch(folder.name) and folder.stat().st_mtime < oldest:
                remove_folder(str(folder))
                logger.info("removed folder=%s which nothing opened for 30 days", folder)
        except OSError as error:  # another user's, or removed by another process
            logger.warning("cannot remove folder=%s error=%s", folder, error)


def _make(target: Path, make: Callable[[Path], None]) -> None:
    staging = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.staging")
    staging.mkdir()
    try:
        make(staging)
        for path in staging.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        try:
            staging.rename(target)
        except OSError:
            if not target.exists():  # another machine that shares the folder was faster
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
