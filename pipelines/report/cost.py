"""What was computed and what it cost: worker time, rows and errors by operator, and the size of what they wrote."""

import json
from dataclasses import dataclass

from curate.effort import sum_costs
from curate.expression import quote_name
from curate.store import Pool
from pipelines.report.facts import Facts
from schemas.annotation import ERROR_COLUMN


@dataclass(frozen=True, kw_only=True)
class OperatorCost:
    """One label: what its operator took and left."""

    label: str
    operator: str
    num_shards: int
    num_missing: int  # shards without a current annotation
    num_errors: int  # rows that could not be measured, those without a picture included
    num_bytes: int
    seconds: float  # of workers; a pass over several operators counts for each in equal parts
    num_measured: int  # rows that these seconds went into
    time_share: float


@dataclass(frozen=True, kw_only=True)
class Cost:
    """All labels, the dearest first, and the download."""

    operators: tuple[OperatorCost, ...]
    seconds: float
    num_bytes: int
    download_seconds: float  # of workers, as the shards' statistics say; 0 where they do not
    pool_bytes: int


def measure_cost(facts: Facts) -> Cost:
    """Return what the pool's labels cost, from the log of annotations and the files themselves."""
    seconds, rows = sum_costs(facts.pool)
    total = sum(seconds.values())
    found = []
    for label, target in facts.catalog.labels.items():
        if label not in facts.catalog.label_columns:
            continue
        short = target.fingerprint[:12]
        folder = facts.pool.annotation_folder(target.operator, target.fingerprint)
        ((num_errors,),) = facts.pool_query(f"SELECT count({quote_name(ERROR_COLUMN)}) FROM {quote_name(label)}")
        found.append(
            OperatorCost(
                label=label,
                operator=target.operator,
                num_shards=len(facts.catalog.shards),
                num_missing=len(facts.catalog.files(label).missing),
                num_errors=num_errors,
                num_bytes=sum(
                    facts.pool.num_bytes(f"{folder}/{name}") for name in facts.pool.list_names(folder, ".parquet")
                ),
                seconds=seconds[short],
                num_measured=rows[short],
                time_share=seconds[short] / total if total else 0.0,
            )
        )
    return Cost(
        operators=tuple(sorted(found, key=lambda entry: (-entry.seconds, entry.label))),
        seconds=sum(entry.seconds for entry in found),
        num_bytes=sum(entry.num_bytes for entry in found),
        download_seconds=_download_seconds(facts.pool),
        pool_bytes=sum(facts.pool.num_bytes(f"shards/{name}") for name in facts.pool.list_names("shards")),
    )


def _download_seconds(pool: Pool) -> float:
    total = 0.0
    for name in pool.list_names("shards", "_stats.json"):
        content = json.loads(pool.read_bytes(f"shards/{name}"))
        total += float(content.get("duration") or 0.0)
    return total
