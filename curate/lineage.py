"""Which annotations read which: `annotations/lineage.json`, so that a change of one can name those made from it before.

No fingerprint depends on the file: without it nothing is computed differently, only said less of.
"""

import json
from collections.abc import Iterable, Mapping, Sequence

from curate.plan import Planned
from curate.store import Pool

LINEAGE_FILE = "annotations/lineage.json"


def note_lineage(pool: Pool, plan: Sequence[Planned]) -> None:
    """Note the annotations that each operator of a plan reads."""
    known = read_lineage(pool)
    merged = {**known, **{planned.fingerprint: sorted(planned.upstream) for planned in plan}}
    if merged != known:
        pool.commit_json(LINEAGE_FILE, dict(sorted(merged.items())))


def read_lineage(pool: Pool) -> dict[str, list[str]]:
    """Return the fingerprints that each annotation reads, by its own."""
    if not pool.exists(LINEAGE_FILE):
        return {}
    content: dict[str, list[str]] = json.loads(pool.read_bytes(LINEAGE_FILE))
    return content


def find_outdated(pool: Pool, plan: Sequence[Planned]) -> dict[str, list[str]]:
    """Return the labels outside a plan that were made from an annotation which the plan replaces, and the labels they were made from."""
    labels = pool.labels()
    own = {label: planned for planned in plan for label in planned.labels}
    replaced = {
        labels[label].fingerprint: label
        for label, planned in own.items()
        if label in labels and labels[label].fingerprint != planned.fingerprint
    }
    current = {planned.fingerprint for planned in plan}
    lineage = read_lineage(pool)
    outdated = {}
    for label, target in labels.items():
        found = sorted({replaced[name] for name in _ancestors(lineage, [target.fingerprint]) if name in replaced})
        if label not in own and target.fingerprint not in current and found:
            outdated[label] = found
    return outdated


def _ancestors(lineage: Mapping[str, Sequence[str]], fingerprints: Iterable[str]) -> set[str]:
    found: set[str] = set()
    waiting = [name for fingerprint in fingerprints for name in lineage.get(fingerprint, ())]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += lineage.get(name, ())
    return found
