"""The rows of one shard from URLs to results: hosts side by side, each image decoded as it arrives, none after the deadline."""

import asyncio
import functools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from curate.fetch.addresses import Target, parse_url
from curate.fetch.client import Client, Visit
from curate.fetch.config import DownloadConfig
from curate.fetch.decoder import Decoder
from curate.fetch.errors import DEADLINE, OPTED_OUT, FetchError, PermanentError
from curate.fetch.transform import Transformed, failed_download, transform
from curate.fetch.writer import Spool
from schemas.sample import STATUS_SUCCESS


@dataclass(frozen=True, slots=True)
class Fetched:
    """A row's result and the origins that were asked for it; the image itself is in the spool."""

    result: Transformed
    origins: frozenset[str] = frozenset()


class RowFetch:
    """Fetches some rows of a shard; images of successes go to `spool`, and every finished row to `report`.

    `refuses` tells of a URL, one that a redirect names as well, whether it must not be asked. `on_ending` is called when no more rows
    are left than there are connections: others may use those that become free.
    """

    def __init__(
        self,
        rows: pa.Table,
        wanted: Sequence[int],
        config: DownloadConfig,
        spool: Spool,
        report: Callable[[Transformed], None],
        refuses: Callable[[str], bool] = lambda _: False,
    ) -> None:
        urls, self._uids, self._hashes = (rows[name].to_pylist() for name in ("url", "uid", "sha256"))
        self._wanted = wanted
        self._config = config
        self._spool = spool
        self._report = report
        self._fetched: dict[int, Fetched] = {}
        self._targets: dict[int, Target] = {}
        self._num_decoding = 0
        self._are_decoded = asyncio.Event()
        self._error: BaseException | None = None
        self._visit = Visit(refuses=refuses)
        self.on_ending: Callable[[], None] = lambda: None
        for row in wanted:
            try:
                self._targets[row] = parse_url(urls[row])
            except PermanentError as error:
                self._finish(row, failed_download(str(error)))
        self._num_left = len(self._targets)

    async def run(self, client: Client, decoder: Decoder) -> dict[int, Transformed]:
        """Return the result of every row; an error of the machine (not of a URL or an image) is raised."""
        self._end_if_few()
        await self._run_workers(client, decoder)
        while self._num_decoding:
            self._are_decoded.clear()
            await self._are_decoded.wait()
        if self._error is not None:
            raise self._error
        for row in self._wanted:
            if row not in self._fetched:
                self._finish(row, failed_download(DEADLINE))
        return {row: self._respect_opt_out(self._fetched[row]) for row in self._wanted}

    async def _run_workers(self, client: Client, decoder: Decoder) -> None:
        """Work off every host's queue side by side, and stop at the deadline; an exception of a worker is raised at the end."""

        async def drain(queue: list[int]) -> None:
            while queue:
                await self._fetch_row(queue.pop(), client, decoder)

        workers = [
            asyncio.create_task(drain(queue))
            for queue in _queue_by_host(self._targets)
            for _ in range(min(len(queue), client.connections_per_host))
        ]
        if not workers:
            return
        try:
            await asyncio.wait(workers, timeout=self._config.shard_seconds)
        finally:
            for worker in workers:
                worker.cancel()
        for outcome in await asyncio.gather(*workers, return_exceptions=True):
            if isinstance(outcome, BaseException) and not isinstance(outcome, asyncio.CancelledError):
                raise outcome

    async def _fetch_row(self, row: int, client: Client, decoder: Decoder) -> None:
        trail: set[str] = set()
        try:
            data = await client.fetch(self._targets[row], self._uids[row], trail, self._visit)
        except FetchError as error:
            self._finish(row, failed_download(str(error)), trail)
            return
        finally:
            self._num_left -= 1
            self._end_if_few()

        def keep(result: Transformed | BaseException) -> None:
            self._num_decoding -= 1
            if not self._num_decoding:
                self._are_decoded.set()
            if isinstance(result, BaseException):
                self._error = self._error or result
                return
            if result.status == STATUS_SUCCESS:
                self._spool.put(row, result.image)
            self._finish(row, replace(result, image=b""), trail)

        work = functools.partial(transform, data, self._hashes[row], self._config)
        await decoder.wait_for_room()
        self._num_decoding += 1
        decoder.submit(len(data), work, keep)

    def _end_if_few(self) -> None:
        if self._num_left <= self._config.connections:
            self.on_ending()

    def _finish(self, row: int, result: Transformed, trail: Collection[str] = ()) -> None:
        self._fetched[row] = Fetched(result, frozenset(trail))
        self._report(result)

    def _respect_opt_out(self, fetched: Fetched) -> Transformed:
        # A host says no for all of its images, those included that arrived before the answer that said so: the rows must not depend
        # on which answer came first.
        if self._visit.opted_out.intersection(fetched.origins):
            return failed_download(OPTED_OUT)
        return fetched.result


def _queue_by_host(targets: dict[int, Target]) -> list[list[int]]:
    """Return the rows of each host, last first, so that `pop` takes them in order."""
    queues: dict[str, list[int]] = {}
    for row in reversed(targets):
        queues.setdefault(targets[row].origin, []).append(row)
    return list(queues.values())[::-1]
