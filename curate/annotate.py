"""Annotation: adds the columns of operators to a pool, each shard read and decoded once for all of them.

What is there already is not computed again, so running the same command after an interruption goes on where it stopped, and adding an
operator to it computes that operator only.
"""

import functools
import json
import logging
import sys
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from curate.effort import LOG_FILE
from curate.executor import Executor, Outcome
from curate.lineage import note_lineage
from curate.operator import Operator, ShardOperator
from curate.outlook import explain_missing
from curate.parse import is_from_file
from curate.parse import parse_operator as parse_operator
from curate.plan import Planned, digest_headers, label_targets, missing_shards, open_plan
from curate.pool_pass import annotate_pool
from curate.row_pass import RowPass, ShardReport, annotate_shard, load_consumer, split_late, stream_shard
from curate.store import Pool, ShardHeader
from schemas.errors import ContractError, InputError, ShardError
from schemas.progress import Progress, SilentProgress
from schemas.sample import shard_name

logger = logging.getLogger(__name__)

_LISTED_SHARDS = 10


@dataclass(frozen=True, kw_only=True)
class OperatorReport:
    """What was done for one operator: shards written now and shards that were current before, rows and error rows written now."""

    sql_name: str
    operator: str
    fingerprint: str
    num_shards: int
    num_shards_current: int
    num_rows: int
    num_errors: int
    reason: str = ""  # why shards had to be computed; empty where none had


@dataclass(frozen=True, kw_only=True)
class AnnotateReport:
    """What was done, operator by operator in the order they ran."""

    operators: tuple[OperatorReport, ...]
    seconds: float


def annotate(
    pool: Pool, operators: Sequence[Operator], *, executor: Executor, progress: Progress | None = None
) -> AnnotateReport:
    """Compute the columns of `operators`, and of those they require, for every shard that lacks them.

    Raises ShardError when shards failed after every retry; everything else is committed by then. After Ctrl-C or a crash the same call
    goes on from what is committed.
    """
    started = time.monotonic()
    run = _Run(pool, operators, executor, progress or SilentProgress())
    try:
        run.go()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"annotate was interrupted: {run.describe()}; the same command goes on from there"
        ) from None
    return AnnotateReport(operators=tuple(run.reports()), seconds=time.monotonic() - started)


class _Run:
    """One call of `annotate`: passes over the shards and pool-wide operators by turns."""

    def __init__(self, pool: Pool, operators: Sequence[Operator], executor: Executor, progress: Progress) -> None:
        self._pool = pool
        self._executor = executor
        self._progress = progress
        self._headers, self._plan = open_plan(pool, operators)
        self._digest = digest_headers(self._headers)
        self._missing = {p.fingerprint: missing_shards(pool, p, self._headers, self._digest) for p in self._plan}
        self._reasons = explain_missing(pool, self._plan, self._headers, self._missing)
        # Shard -> error rows, for what this run committed.
        self._done: dict[str, dict[int, int]] = {planned.fingerprint: {} for planned in self._plan}

    def go(self) -> None:
        note_lineage(self._pool, self._plan)
        # Set first, not last: a selection must be able to say how many shards a label lacks.
        self._pool.set_labels(label_targets(self._plan))
        self._remove_abandoned()
        for planned in self._plan:
            if is_from_file(planned.operator):
                self._executor.share_module(sys.modules[type(planned.operator).__module__])
        for phase in sorted({planned.phase for planned in self._plan}):
            members = [p for p in self._plan if p.phase == phase and self._missing[p.fingerprint]]
            if phase % 2 == 0:
                self._run_rows(members)
            else:
                for planned in members:
                    self._run_pool(planned)

        self._remove_abandoned()  # what workers that died left behind

    def describe(self) -> str:
        """Return what is committed, for a person who just pressed Ctrl-C."""
        total = len(self._headers)
        # Asked of the disk: a worker may have committed what it had not reported yet.
        left = {p.labels[0]: len(missing_shards(self._pool, p, self._headers, self._digest)) for p in self._plan}
        return ", ".join(f"{label} {total - missing} of {total} shards" for label, missing in left.items())

    def reports(self) -> Iterator[OperatorReport]:
        """Yield a report for every label."""
        for planned in self._plan:
            done = self._done[planned.fingerprint]
            for label in planned.labels:
                yield OperatorReport(
                    sql_name=label,
                    operator=planned.operator.name,
                    fingerprint=planned.fingerprint,
                    num_shards=len(done),
                    num_shards_current=len(self._headers) - len(self._missing[planned.fingerprint]),
                    num_rows=sum(self._headers[shard].num_rows for shard in done),
                    num_errors=sum(done.values()),
                    reason=self._reasons[planned.fingerprint],
                )

    def _remove_abandoned(self) -> None:
        for planned in self._plan:
            self._pool.remove_abandoned(self._pool.annotation_folder(planned.operator.name, planned.fingerprint))

    def _run_rows(self, members: list[Planned]) -> None:
        lacking = [(planned, set(self._missing[planned.fingerprint])) for planned in members]
        wanted = {shard: [planned for planned, shards in lacking if shard in shards] for shard in self._headers}
        units = [self._headers[shard] for shard, missing in wanted.items() if missing]
        if not units:
            return
        with_model = [unit for unit in units if split_late(wanted[unit.shard])]
        without = [unit for unit in units if not split_late(wanted[unit.shard])]
        row_pass = RowPass(pool=self._pool, plan=tuple(members), pool_digest=self._digest)
        outcomes = self._start(row_pass, without, with_model)
        failures: dict[str, str] = {}
        num_errors = 0
        self._progress.start("annotate", sum(unit.num_rows for unit in units), "samples")
        with closing(self._progress), closing(outcomes):
            for outcome in outcomes:
                if outcome.result is None:
                    if isinstance(outcome.cause, ContractError | InputError):
                        raise outcome.cause  # every shard would say the same
                    failures[shard_name(outcome.unit.shard)] = outcome.error or ""
                    continue
                self._record(row_pass, outcome.result)
                num_errors += sum(outcome.result.num_errors.values())
                self._progress.advance(outcome.result.num_rows, errors=str(num_errors))
        if failures:
            raise _shard_error(failures, len(units))

    def _start(
        self, row_pass: RowPass, without: list[ShardHeader], with_model: list[ShardHeader]
    ) -> Generator[Outcome[ShardHeader, ShardReport], None, None]:
        if without:
            yield from self._executor.map(functools.partial(annotate_shard, row_pass), without)
        if with_model:
            models = [p.operator for p in row_pass.plan if isinstance(p.operator, ShardOperator) and p.has_model]
            yield from self._executor.map_streams(
                functools.partial(stream_shard, row_pass),
                functools.partial(load_consumer, row_pass),
                with_model,
                gpus=max(operator.resources.gpus for operator in models),
            )

    def _run_pool(self, planned: Planned) -> None:
        missing = self._missing[planned.fingerprint]
        self._progress.start(
            f"annotate {planned.labels[0]}", sum(h.num_rows for h in self._headers.values()), "samples"
        )
        try:
            report = annotate_pool(
                self._pool, planned, self._headers, missing, self._digest, self._executor, self._progress
            )
        finally:
            self._progress.close()
        self._done[planned.fingerprint] |= report.num_errors
        num_rows = sum(header.num_rows for header in self._headers.values())
        num_errors = sum(report.num_errors.values())
        self._log([planned], None, num_rows, num_errors, report.seconds, {planned.fingerprint: report.seconds})

    def _record(self, row_pass: RowPass, report: ShardReport) -> None:
        for fingerprint, num_errors in report.num_errors.items():
            self._done[fingerprint][report.shard] = num_errors
        ran = [planned for planned in row_pass.plan if planned.fingerprint in report.num_errors]
        num_errors = sum(report.num_errors.values())
        self._log(ran, report.shard, report.num_rows, num_errors, report.seconds, report.spent)

    def _log(
        self,
        ran: Sequence[Planned],
        shard: int | None,
        rows: int,
        errors: int,
        seconds: float,
        spent: Mapping[str, float],
    ) -> None:
        """Note what a shard cost, for `winnow status` and estimates; a remote pool keeps no such notes, object stores cannot append."""
        if not self._pool.is_local:
            return
        line = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "operators": [planned.labels[0] for planned in ran],
            "names": [planned.operator.name for planned in ran],
            "fingerprints": [planned.fingerprint[:12] for planned in ran],
            "shard": shard,
            "rows": rows,
            "errors": errors,
            "seconds": round(seconds, 3),
            "operator_seconds": [round(spent.get(planned.fingerprint, 0.0), 4) for planned in ran],
            "reads_pictures": any(planned.reads_pictures for planned in ran),
        }
        path = Path(self._pool.locate(LOG_FILE))
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def _shard_error(failures: Mapping[str, str], num_shards: int) -> ShardError:
    listed = [f"  {shard}: {error}" for shard, error in sorted(failures.items())[:_LISTED_SHARDS]]
    if len(failures) > _LISTED_SHARDS:
        listed.append(f"  and {len(failures) - _LISTED_SHARDS} more")
    return ShardError(
        f"annotate failed for {len(failures)} of {num_shards} shards after every retry; the others are committed, and the same command "
        f"tries these again:\n" + "\n".join(listed),
        failures,
    )
