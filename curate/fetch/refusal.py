"""Keeps what was taken down from coming back: rows on the pool's list are refused before they are fetched, pictures after."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from curate.fetch.transform import Transformed
from curate.forgotten import MESSAGE, bury, read_forgotten
from curate.store import Pool
from schemas.sample import STATUS_FORGOTTEN

REFUSED = Transformed(STATUS_FORGOTTEN, MESSAGE)


class Refusal:
    """What may not be fetched of a shard's rows.

    refusal = Refusal(pool, rows_path, rows, wanted)
    results = refusal.complete(fetch(rows, refusal.allowed))    # of every wanted row
    """

    def __init__(self, pool: Pool, rows_path: str, rows: pa.Table, wanted: Sequence[int]) -> None:
        self._pool = pool
        self._rows_path = rows_path
        self._rows = rows
        self._forgotten = read_forgotten(pool)
        urls, uids, hashes = (rows[name].to_pylist() for name in ("url", "uid", "sha256"))
        # A takedown emptied rows that were planned and not yet fetched.
        self._refused = [
            row for row in wanted if urls[row] is None or self._forgotten.names(uids[row], urls[row], hashes[row])
        ]
        refused = set(self._refused)
        self.allowed: Sequence[int] = [row for row in wanted if row not in refused] if refused else wanted

    def refuses(self, url: str) -> bool:
        """Tell whether a URL was taken down; redirects are asked about, too."""
        return self._forgotten.names("", url)

    def complete(self, results: Mapping[int, Transformed]) -> dict[int, Transformed]:
        """Return the results of the allowed rows with those of the refused ones; pictures that were taken down are refused, too.

        Refused rows are emptied in the plan as well: a list that names them again brings nothing back.
        """
        refused = {*self._refused, *(row for row, result in results.items() if self._is_refused(result))}
        is_refused = np.array([row in refused for row in range(len(self._rows))], dtype=bool)
        if (is_refused & self._rows["url"].is_valid().to_numpy()).any():
            self._pool.commit_table(self._rows_path, bury(self._rows, is_refused))
        return {**results, **dict.fromkeys(refused, REFUSED)}

    def _is_refused(self, result: Transformed) -> bool:
        return result.sha256 in self._forgotten.sha256 or result.error_message == MESSAGE
