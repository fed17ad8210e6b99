"""What an annotation would do, before it does it: which shards, why, and what that may cost."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from curate.effort import Rate, Rates, sum_known
from curate.fingerprint import source_of
from curate.lineage import find_outdated
from curate.operator import Operator
from curate.plan import Planned, digest_headers, missing_shards, open_plan
from curate.store import LabelTarget, Pool, ShardHeader
from schemas.annotation import AnnotationHeader

NEVER = "not annotated yet"


@dataclass(frozen=True, kw_only=True)
class OperatorOutlook:
    """What one operator would do; seconds are worker seconds, None where nobody measured it."""

    label: str
    operator: str
    fingerprint: str
    is_pool_wide: bool
    num_done: int  # shards
    num_todo: int
    num_rows: int  # rows it would compute: of a pool-wide operator every row of the pool
    reason: str  # empty where nothing is to do
    seconds: float | None
    rate_source: str


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What a call of `annotate` would do."""

    operators: tuple[OperatorOutlook, ...]
    num_shards: int
    pass_seconds: float  # reading, decoding and writing, in worker seconds
    outdated: Mapping[str, Sequence[str]]  # labels not named that were made from what changes: what they were made from
    rows_per_second: float  # of everything together, on one worker; 0 where it is not known

    @property
    def is_current(self) -> bool:
        """Whether nothing is to do."""
        return not any(entry.num_todo for entry in self.operators)

    @property
    def seconds(self) -> float:
        """Worker seconds of everything whose rate is known."""
        return self.pass_seconds + sum(entry.seconds or 0.0 for entry in self.operators)

    @property
    def unmeasured(self) -> tuple[str, ...]:
        """The labels whose cost nobody knows."""
        return tuple(entry.label for entry in self.operators if entry.num_todo and entry.seconds is None)


def preview(pool: Pool, operators: Sequence[Operator]) -> Outlook:
    """Return what `annotate` would do for the same operators; writes nothing, and reads footers only."""
    headers, plan = open_plan(pool, operators)
    digest = digest_headers(headers)
    missing = {planned.fingerprint: missing_shards(pool, planned, headers, digest) for planned in plan}
    reasons = explain_missing(pool, plan, headers, missing)
    rates = Rates(pool)
    found = [
        _look_at(planned, headers, missing[planned.fingerprint], reasons[planned.fingerprint], rates.of(planned))
        for planned in plan
    ]
    per_row = sum_known([rates.of(planned) for planned in plan])
    per_row += rates.of_pass(reads_pictures=any(p.reads_pictures for p in plan)).seconds or 0.0
    return Outlook(
        operators=tuple(found),
        num_shards=len(headers),
        pass_seconds=_pass_seconds(plan, headers, missing, rates),
        outdated=find_outdated(pool, plan),
        rows_per_second=1 / per_row if per_row else 0.0,
    )


def explain_missing(
    pool: Pool, plan: Sequence[Planned], headers: Mapping[int, ShardHeader], missing: Mapping[str, Sequence[int]]
) -> dict[str, str]:
    """Return why each operator of a plan lacks the shards it does, by fingerprint; empty where it lacks none."""
    targets = pool.labels()
    labels = {planned.fingerprint: planned.labels[0] for planned in plan}
    reasons: dict[str, str] = {}
    for planned in plan:
        lacking = missing[planned.fingerprint]
        target = targets.get(planned.labels[0])
        inputs = [labels[name] for name in sorted(planned.upstream, key=str) if reasons.get(name)]
        if not lacking:
            reasons[planned.fingerprint] = ""
        elif target is None:
            reasons[planned.fingerprint] = NEVER
        elif target.fingerprint == planned.fingerprint:
            reasons[planned.fingerprint] = _explain_shards(pool, planned, headers, lacking, inputs)
        else:
            reasons[planned.fingerprint] = _explain_change(pool, planned, target, inputs)
    return reasons


def _explain_shards(
    pool: Pool, planned: Planned, headers: Mapping[int, ShardHeader], lacking: Sequence[int], inputs: Sequence[str]
) -> str:
    """Say what happened to the pool since an operator that has not changed itself was run."""
    name, fingerprint = planned.operator.name, planned.fingerprint
    stored = {shard: pool.annotation_header(name, fingerprint, shard) for shard in lacking}
    absent = [shard for shard, header in stored.items() if header is None]
    changed = [
        shard for shard, header in stored.items() if header and header.shard_digest != headers[shard].shard_digest
    ]
    if len(absent) == len(headers):
        return NEVER
    # Shards are appended: those that lie behind every one that is done are new, a gap is where a run was stopped.
    last = max((shard for shard in headers if shard not in absent), default=-1)
    new = [shard for shard in absent if shard > last]
    parts = [f"{_count(new)} new"] if new else []
    parts += [f"{_count(changed)} changed"] if changed else []
    if len(absent) > len(new):
        parts.append(f"{_count([shard for shard in absent if shard <= last])} left by a run that stopped")
    why = ", ".join(parts)
    if not planned.follows_pool:
        return why
    if not planned.is_pool_wide:
        read = ", ".join(inputs) or "a pool-wide operator"
        return f"{f'{why}; ' if why else ''}reads {read}, which is computed from all rows"
    if len(lacking) < len(headers):
        return f"{why or 'a run stopped'}; pool-wide: computed from all rows, written where it is missing"
    return f"{why or 'its inputs changed'}; pool-wide: every row is computed again, for each may decide about others"


def _explain_change(pool: Pool, planned: Planned, target: LabelTarget, inputs: Sequence[str]) -> str:
    """Say what makes an operator another one than its label stood for."""
    folder = pool.annotation_folder(target.operator, target.fingerprint)
    files = pool.list_names(folder, ".parquet")
    header = AnnotationHeader.from_metadata(pool.read_footer(f"{folder}/{files[0]}").metadata) if files else None
    if header is None:
        return NEVER
    parts = []
    if header.version != str(planned.operator.version):
        parts.append(f"version {header.version} became {planned.operator.version}")
    # As the file has them: what JSON makes of the parameters.
    before, now = json.loads(header.parameters), json.loads(json.dumps(dict(planned.operator.identity())))
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if names:
        parts.append(f"{', '.join(sorted(names))} changed")
    if inputs:
        parts.append(f"reads {', '.join(inputs)}, which changed")
    if not parts:
        parts.append("its file changed" if source_of(planned.operator) else "reads other columns")
    return "; ".join(parts)


def _look_at(
    planned: Planned, headers: Mapping[int, ShardHeader], missing: Sequence[int], reason: str, rate: Rate
) -> OperatorOutlook:
    shards = headers if planned.is_pool_wide and missing else missing
    num_rows = sum(headers[shard].num_rows for shard in shards)
    return OperatorOutlook(
        label=planned.labels[0],
        operator=planned.operator.name,
        fingerprint=planned.fingerprint,
        is_pool_wide=planned.is_pool_wide,
        num_done=len(headers) - len(missing),
        num_todo=len(missing),
        num_rows=num_rows,
        reason=reason,
        seconds=None if rate.seconds is None else rate.seconds * num_rows,
        rate_source=rate.source,
    )


def _pass_seconds(
    plan: Sequence[Planned], headers: Mapping[int, ShardHeader], missing: Mapping[str, Sequence[int]], rates: Rates
) -> float:
    """Return what reading and decoding take: once per shard and pass, whatever number of operators share it."""
    seconds = 0.0
    for phase in {planned.phase for planned in plan if not planned.is_pool_wide}:
        members = [planned for planned in plan if planned.phase == phase]
        for shard, header in headers.items():
            wanted = [planned for planned in members if shard in missing[planned.fingerprint]]
            if wanted:
                rate = rates.of_pass(reads_pictures=any(planned.reads_pictures for planned in wanted))
                seconds += (rate.seconds or 0.0) * header.num_rows
    return seconds


def _count(shards: Sequence[int]) -> str:
    return f"{len(shards):,} shard{'' if len(shards) == 1 else 's'}"
