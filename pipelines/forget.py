"""`winnow forget` as a whole: the pool and what is made of it, then what the trainer keeps and what was exported."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from curate.forget import ForgetReport, ForgetRequest, ForgetTargets, Further, Work
from curate.forget import forget as forget_samples
from curate.store import Pool, Store
from pipelines.card import CARD_FILE, FACTS_FILE
from pipelines.documents import make_documents
from pipelines.export.croissant import CROISSANT_FILE
from pipelines.export.forget import check_exports, forget_in_exports
from schemas.dataset import DatasetIndex
from schemas.errors import InputError
from schemas.progress import Progress
from train.cache import find_tables
from train.index import own_temporary_folder
from train.made_once import remove_folder

_NUM_SHOWN = 20


def forget(
    pool: Pool,
    request: ForgetRequest,
    targets: ForgetTargets,
    *,
    is_dry: bool = False,
    progress: Progress | None = None,
) -> ForgetReport:
    """Take down every sample that the request names, in the pool and in the targets; see `curate.forget`.

    The trainer's columns in the system's temporary folder are looked at without being named.
    """
    for cache in targets.caches:
        if not Path(cache).is_dir():
            raise InputError(
                f"--cache {cache} is not a folder of this machine; give a folder of answers, or train.cache of a recipe"
            )
    check_exports(targets.exports)
    located = ForgetTargets(
        datasets=tuple(Store(path).root for path in targets.datasets),
        caches=tuple(str(Path(path).absolute()) for path in targets.caches),
        exports=tuple(Store(path).root for path in targets.exports),
    )
    further = Further(steps=(forget_in_columns, forget_in_exports), describe=remake_documents)
    return forget_samples(pool, request, located, further=further, is_dry=is_dry, progress=progress)


def remake_documents(pool: Pool, folder: str, dataset: Store, index: DatasetIndex) -> dict[str, bytes]:
    """Return the documents beside a dataset anew, those that are there."""
    names = [name for name in (FACTS_FILE, CARD_FILE, CROISSANT_FILE) if dataset.exists(name)]
    made = make_documents(pool, folder, dataset, index) if names else {}
    return {name: made[name] for name in names}


def forget_in_columns(work: Work) -> None:
    """Remove the trainer's mapped columns of datasets that held a sample."""
    for cache in dict.fromkeys([*work.targets.caches, own_temporary_folder()]):
        for folder in find_tables(cache, work.uids):
            work.eraser.journal.note(folder, [])
            if not work.eraser.is_dry:
                remove_folder(folder)


def describe_forget(report: ForgetReport, *, is_dry: bool) -> str:
    """Return what a takedown did, or would do, as lines of text."""
    verb = "would be " if is_dry else ""
    lines = []
    if not report.rows:
        lines.append("no sample of the pool or the datasets matches")
    for row in report.rows[:_NUM_SHOWN]:
        where = (
            "not fetched yet, or in a dataset only" if row.shard is None else f"shard {row.shard:05d}, row {row.row}"
        )
        lines.append(f"{row.uid}  {where}")
    if len(report.rows) > _NUM_SHOWN:
        lines.append(f"... and {len(report.rows) - _NUM_SHOWN:,} more")
    lines += _describe_files(report, verb)
    lines += [f"not done: {left.path}: {left.reason}; {left.remedy}" for left in report.not_done]
    if report.related:
        shown = ", ".join(report.related[:_NUM_SHOWN])
        lines.append(
            f"{len(report.related):,} more samples have the same picture or URL under other captions and stay: {shown}; "
            "--sha256 or --url takes all of them"
        )
    listed = ", ".join(f"{len(digests)} {kind}" for kind, digests in report.asked.items() if digests)
    lines.append(f"{'would never be' if is_dry else 'never'} fetched again: {listed}")
    return "\n".join(lines)


def _describe_files(report: ForgetReport, verb: str) -> Sequence[str]:
    counts: Mapping[str, int] = {change.path: len(change.uids) for change in report.files}
    return [f"{verb}rewritten: {path} ({count:,} samples)" for path, count in counts.items()]
