"""Answers kept on disk, so that none is asked, or paid, for twice: one SQLite file in a folder that several processes may share.

A kill at any instant loses no answer that was put before it, and damages nothing: every put is a transaction in SQLite's write-ahead log.
Failures are not kept. The file must lie on a local disk: SQLite's locks do not hold on most network file systems.
"""

import hashlib
import sqlite3
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from curate.fingerprint import canonical_json
from curate.models.engine import Answer, Engine, Request, Sampling
from schemas.errors import InputError

FILE_NAME = "answers-v1.sqlite"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key BLOB PRIMARY KEY, text TEXT NOT NULL, finish_reason TEXT NOT NULL, log_probability REAL,
    num_prompt_tokens INTEGER NOT NULL, num_new_tokens INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS samples (uid TEXT, key BLOB, PRIMARY KEY (uid, key)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS spending (
    engine TEXT PRIMARY KEY, num_prompt_tokens INTEGER NOT NULL, num_new_tokens INTEGER NOT NULL
) WITHOUT ROWID;
"""
_SPEND = """
INSERT INTO spending VALUES (?, ?, ?) ON CONFLICT (engine) DO UPDATE SET
    num_prompt_tokens = num_prompt_tokens + excluded.num_prompt_tokens,
    num_new_tokens = num_new_tokens + excluded.num_new_tokens
"""
_KEYS_PER_QUERY = 500
# A writer holds the file for microseconds; only a machine that swaps makes anybody wait long.
_WAIT_SECONDS = 120.0


class AnswerCache:
    """The answers in a folder; may be used from several threads."""

    def __init__(self, folder: str | Path) -> None:
        self._path = Path(folder, FILE_NAME)
        self._lock = threading.Lock()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                self._path, timeout=_WAIT_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._connection.execute("PRAGMA journal_mode = WAL")
            # The log is flushed at checkpoints: the machine's end may cost the last answers, a process's end none, and neither the file.
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self._connection.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from error

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Answer]:
        """Return the answers that are there, by key."""
        found: dict[bytes, Answer] = {}
        rows = self._in("SELECT * FROM answers WHERE key IN", keys)
        for key, text, reason, log_probability, num_prompt, num_new in rows:
            found[key] = Answer(
                text=text,
                finish_reason=reason,
                log_probability=log_probability,
                num_prompt_tokens=num_prompt,
                num_new_tokens=num_new,
                is_cached=True,
            )
        return found

    def put(
        self, engine: str, answers: Iterable[tuple[bytes, Answer]], samples: Iterable[tuple[str, bytes]] = ()
    ) -> None:
        """Keep answers, all or none of them, and note what they cost; of a failed one only the cost is noted.

        `samples` are uids with the keys of answers about them, which `find` goes by.
        """
        rows, num_prompt, num_new = [], 0, 0
        for key, answer in answers:
            num_prompt, num_new = num_prompt + answer.num_prompt_tokens, num_new + answer.num_new_tokens
            if answer.text is not None:
                rows.append((
                    *(key, answer.text, answer.finish_reason, answer.log_probability),
                    *(answer.num_prompt_tokens, answer.num_new_tokens),
                ))
        if not rows and not num_prompt and not num_new:
            return
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                # The first answer stays: what was written from it must not change.
                self._connection.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?)", rows)
                self._connection.executemany("INSERT OR IGNORE INTO samples VALUES (?, ?)", list(samples))
                self._connection.execute(_SPEND, (engine, num_prompt, num_new))
                self._connection.execute("COMMIT")
            except sqlite3.Error as error:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise self._unusable(error) from error

    def spent(self, engine: str) -> tuple[int, int]:
        """Return the tokens of prompts, and of answers, that an engine was asked for since the folder was new."""
        rows = self._all("SELECT num_prompt_tokens, num_new_tokens FROM spending WHERE engine = ?", (engine,))
        return (int(rows[0][0]), int(rows[0][1])) if rows else (0, 0)

    def find(self, uids: Collection[str], texts: Collection[str]) -> list[bytes]:
        """Return the keys of the answers about samples, and of those that are one of the texts (blanks around them do not count).

        A cache of an earlier release does not say what its answers are about: there the texts find them.
        """
        found = dict.fromkeys(key for (key,) in self._in("SELECT key FROM samples WHERE uid IN", list(uids)))
        if texts:
            query = "SELECT key, text FROM answers WHERE key NOT IN (SELECT key FROM samples)"
            found |= dict.fromkeys(key for key, text in self._all(query, ()) if text.strip() in texts)
        return list(found)

    def forget(self, keys: Sequence[bytes]) -> bool:
        """Remove answers so that no byte of them stays in the file; False where another process keeps the file's log from being emptied."""
        values = [(key,) for key in keys]
        with self._lock:
            try:
                # Removed rows are overwritten, not only unlinked.
                self._connection.execute("PRAGMA secure_delete = ON")
                self._connection.execute("BEGIN IMMEDIATE")
                self._connection.executemany("DELETE FROM answers WHERE key = ?", values)
                self._connection.executemany("DELETE FROM samples WHERE key = ?", values)
                self._connection.execute("COMMIT")
                (is_busy, _, _) = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            except sqlite3.Error as error:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise self._unusable(error) from error
        return not is_busy

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def _in(self, query: str, values: Sequence[Any]) -> Iterator[Any]:
        """Yield the rows of a query that ends with IN, which is asked for a part of the values at a time."""
        for start in range(0, len(values), _KEYS_PER_QUERY):
            part = values[start : start + _KEYS_PER_QUERY]
            yield from self._all(f"{query} ({','.join('?' * len(part))})", part)

    def _all(self, query: str, values: Sequence[Any]) -> list[Any]:
        with self._lock:
            try:
                return self._connection.execute(query, values).fetchall()
            except sqlite3.Error as error:
                raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> InputError:
        return InputError(
            f"the cache of answers {self._path} cannot be used: {error}; give another folder with cache=FOLDER on a local disk, or move "
            f"the file away where it is damaged"
        )


class CachedEngine(Engine):
    """Asks another engine only what the cache does not hold and nobody in this process is asking already."""

    def __init__(self, engine: Engine, cache: AnswerCache) -> None:
        self._engine = engine
        self._cache = cache
        self._digest = engine_digest(engine.identity())
        self._lock = threading.Lock()
        self._asked: dict[bytes, Future[Answer | None]] = {}

    def identity(self) -> Mapping[str, Any]:
        """Return the other engine's identity."""
        return self._engine.identity()

    def close(self) -> None:
        """Close the other engine and the cache."""
        self._engine.close()
        self._cache.close()

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Answer]:
        """Return an answer for every request; each new one is on disk before the next is looked at."""
        keys = request_keys(self._digest, requests, sampling)
        wanted = {key: request for key, request in zip(keys, requests, strict=True)}
        samples: dict[bytes, set[str]] = {}
        for key, request in zip(keys, requests, strict=True):
            if request.sample:
                samples.setdefault(key, set()).add(request.sample)
        known = self._cache.get(list(wanted))
        while len(known) < len(wanted):
            # Looked up again once it is claimed: an answer that came in between is on disk now.
            mine, theirs = self._claim([key for key in wanted if key not in known])
            try:
                for key, answer in self._find({key: wanted[key] for key in mine}, sampling, samples):
                    known[key] = answer
                    self._release(key, answer)
            finally:
                for key in mine:
                    if key not in known:
                        self._release(key, None)
            for key, future in theirs.items():
                answer_of_another = future.result()
                # None: its asker was stopped before it came; it is asked for here, then.
                if answer_of_another is not None:
                    known[key] = replace(answer_of_another, is_cached=True)
        return [known[key] for key in keys]

    def _find(
        self, requests: Mapping[bytes, Request], sampling: Sampling, samples: Mapping[bytes, Collection[str]]
    ) -> Iterator[tuple[bytes, Answer]]:
        found = self._cache.get(list(requests))
        yield from found.items()
        missing = [key for key in requests if key not in found]
        if not missing:
            return
        for together in self._engine.stream([requests[key] for key in missing], sampling):
            came = [(missing[number], answer) for number, answer in together]
            self._cache.put(self._digest, came, ((uid, key) for key, _ in came for uid in samples.get(key, ())))
            yield from came

    def _claim(
        self, keys: Iterable[bytes]
    ) -> tuple[dict[bytes, "Future[Answer | None]"], dict[bytes, "Future[Answer | None]"]]:
        """Return the keys that are asked for from here, and those that another thread is asking for."""
        mine: dict[bytes, Future[Answer | None]] = {}
        theirs: dict[bytes, Future[Answer | None]] = {}
        with self._lock:
            for key in keys:
                if key in self._asked:
                    theirs[key] = self._asked[key]
                else:
                    mine[key] = self._asked[key] = Future()
        return mine, theirs

    def _release(self, key: bytes, answer: Answer | None) -> None:
        with self._lock:
            future = self._asked.pop(key)
        future.set_result(answer)


def engine_digest(identity: Mapping[str, Any]) -> str:
    """Return the sha256 hex digest of an engine's identity."""
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()


def request_keys(engine: str, requests: Sequence[Request], sampling: Sampling) -> list[bytes]:
    """Return what identifies the answer of each request: 32 bytes over the engine's digest, sampling, messages, picture and seed.

    What has no effect is no part of it: of a greedy answer neither the seed nor `top_p` and `top_k`.
    """
    settings = {
        "engine": engine,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p if sampling.is_drawn else 1.0,
        "top_k": sampling.top_k if sampling.is_drawn else 0,
        "num_beams": sampling.num_beams,
        "max_new_tokens": sampling.max_new_tokens,
        "stop": list(sampling.stop),
        "log_probabilities": sampling.log_probabilities,
    }
    start = hashlib.sha256(canonical_json(settings).encode())
    keys = []
    for request in requests:
        digest = start.copy()
        digest.update(b"%d " % (request.seed if sampling.is_drawn else 0))
        digest.update(hashlib.sha256(request.image).digest() if request.image else b"none")
        for message in request.messages:
            # Lengths first: no text can look like the end of one message and the start of another.
            text = message.text.encode("utf-8", "surrogatepass")
            digest.update(b"%s %d " % (message.role.encode(), len(text)))
            digest.update(text)
        keys.append(digest.digest())
    return keys
