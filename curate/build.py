"""Makes a dataset of a selection: WebDataset tars of equal size with Parquet sidecars, or a view over the pool's own tars.

A shard whose sidecar exists is done, and `index.json` is written last, so a build that is interrupted goes on where it was.
"""

import hashlib
import itertools
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curate.carry import find_columns
from curate.executor import Executor
from curate.fingerprint import canonical_json
from curate.pack import PackPlan, PackUnit, Survey, pack, read_entry, survey, view
from curate.selection import ELEMENTS
from curate.store import LabelTarget, Pool, Store
from schemas.dataset import INDEX_FILE, DatasetIndex
from schemas.errors import InputError, ShardError, StaleDatasetError
from schemas.progress import Progress
from schemas.sample import shard_name
from schemas.selection import SELECTED_FILE, SELECTION_FILE

logger = logging.getLogger(__name__)

SIZES_FILE = "sizes.json"
_LAYOUT = 1  # part of the fingerprint: raised when the same selection would be written as other bytes
# What open_clip and the Hub read; a picture in another format would be left out without a word.
_STOCK_SUFFIXES = ("jpg", "png", "webp")
_FALLBACK = "alt_text"


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """How a dataset is laid out.

    BuildConfig()                                  # tars of at most 10,000 samples
    BuildConfig(shard_size=1000)                   # more shards: open_clip wants at least workers x processes of them
    BuildConfig(view=True)                         # nothing copied: an index over the pool's tars
    BuildConfig(image_format="jpg")                # pictures in other formats are converted
    BuildConfig(columns=("clusters.cluster_id", "source"))    # what training samples by, or losses read
    """

    shard_size: int = 10_000  # most samples per tar; shards differ by at most one sample
    view: bool = False  # write no tars: the index points into the pool's own
    image_format: str | None = None  # jpg, png or webp: re-encode pictures of other formats; null: bytes as stored
    blur: str | None = (
        None  # column of boxes to blur, such as face_boxes.face_bboxes; pictures without any keep their bytes
    )
    columns: tuple[
        str, ...
    ] = ()  # columns that the sidecars carry for training: LABEL.COLUMN, or one of the pool's own

    def __post_init__(self) -> None:
        if self.shard_size < 1:
            raise InputError(f"build shard_size is {self.shard_size}; it must be at least 1")
        if self.image_format not in (None, *_STOCK_SUFFIXES):
            raise InputError(
                f"build image_format is {self.image_format!r}; it must be {', '.join(_STOCK_SUFFIXES)}, or left out"
            )
        if self.view and (self.image_format or self.blur):
            raise InputError(
                "a view copies nothing, so it cannot change pictures; leave view, or image_format and blur, out"
            )


@dataclass(frozen=True, kw_only=True)
class BuildReport:
    """What a build made; `folder` is a path or URL, `num_written` counts the shards that were not there before."""

    folder: str
    fingerprint: str
    num_samples: int
    num_shards: int
    num_written: int
    num_bytes: int


# Given the pool, the selection's folder, the dataset's folder and its index: small files that go beside a dataset, by name.
Describe = Callable[[Pool, str, Store, DatasetIndex], Mapping[str, bytes]]


def no_documents(*_: object) -> Mapping[str, bytes]:
    """Return no documents: nothing is put beside a dataset."""
    return {}


def build(
    pool: Pool,
    selection: str,
    out: str,
    config: BuildConfig,
    *,
    executor: Executor,
    progress: Progress,
    describe: Describe = no_documents,
) -> BuildReport:
    """Write the dataset of a selection (its name or its folder) into `out/<name>-<fp12>/`; a complete one is left as it is.

    Raises `InputError` where the selection is unknown, empty, or holds pictures of several formats, and `ShardError` where shards
    failed after every retry (the others are committed).
    """
    folder = find_selection(pool, selection)
    content = json.loads(pool.read_bytes(f"{folder}/{SELECTION_FILE}"))
    if not content["num_kept"]:
        raise InputError(
            f"selection {folder} keeps no rows, so there is nothing to build; loosen its rules and select again"
        )
    plan = _make_plan(pool, folder, content, Store(out), config)
    location = plan.out.locate(plan.folder)
    plan.out.remove_abandoned(plan.folder)
    if plan.out.exists(f"{plan.folder}/{INDEX_FILE}"):
        index = DatasetIndex.from_json(plan.out.read_bytes(f"{plan.folder}/{INDEX_FILE}").decode(), path=location)
        _check_complete(pool, location, index, content["num_kept"])
        return _report(location, index, num_written=0)
    units = _view_units(pool, folder) if config.view else _equal_units(content["num_kept"], config.shard_size)
    tars = {unit: _tar_of(plan, unit, config) for unit in units}
    entries = {unit: entry for unit in units if (entry := read_entry(plan, unit, tars[unit])) is not None}
    missing = [unit for unit in units if unit not in entries]
    if missing:
        surveys = _run(partial(survey, plan), units, executor, progress, "survey")
        plan = replace(plan, list_lengths=_list_lengths(content, surveys), carried=_carried(surveys))
        if not config.view:
            _check_formats(sum((found.suffixes for found in surveys.values()), Counter()), config)
        entries |= _run(partial(view if config.view else pack, plan), missing, executor, progress, "build")
    index = DatasetIndex(
        name=content["name"],
        fingerprint=plan.fingerprint,
        kind="view" if config.view else "build",
        num_samples=content["num_kept"],
        captions=dict(content["captions"]),
        shards=[entries[unit] for unit in units],
        selection=content,
    )
    if not config.view:
        # open_clip finds the number of samples here; a folder that img2dataset may write to never gets such a file.
        plan.out.commit_json(f"{plan.folder}/{SIZES_FILE}", {entry.tar: entry.num_samples for entry in index.shards})
    for name, data in describe(pool, folder, Store(location), index).items():
        plan.out.commit_bytes(f"{plan.folder}/{name}", data)
    plan.out.commit_bytes(f"{plan.folder}/{INDEX_FILE}", index.to_json().encode())
    return _report(location, index, num_written=len(missing))


def find_dataset(pool: Pool, selection: str, out: str, config: BuildConfig) -> str:
    """Return the folder of the dataset that `build` would leave as it is because it is complete, or ""; writes nothing."""
    folder = find_selection(pool, selection)
    content = json.loads(pool.read_bytes(f"{folder}/{SELECTION_FILE}"))
    if not content["num_kept"]:
        return ""
    plan = _make_plan(pool, folder, content, Store(out), config)
    return plan.out.locate(plan.folder) if plan.out.exists(f"{plan.folder}/{INDEX_FILE}") else ""


def find_selection(pool: Pool, selection: str) -> str:
    """Return the folder (relative to the pool) of a selection given by name, by `name-fp12`, or by its path."""
    complete = [folder.removeprefix("selections/") for folder in pool.selections()]
    wanted = selection.rstrip("/").rsplit("/", 1)[-1]
    if wanted in complete:
        return f"selections/{wanted}"
    found = [name for name in complete if re.fullmatch(rf"{re.escape(wanted)}-[0-9a-f]{{12}}", name)]
    if len(found) == 1:
        return f"selections/{found[0]}"
    if found:
        raise InputError(
            f"selection {selection!r} stands for {len(found)} folders of {pool.locate('selections')}: {', '.join(found)}; "
            "give one of these names in full"
        )
    raise InputError(
        f"no selection {selection!r} in {pool.locate('selections')}, which has {', '.join(complete) or 'none'}; "
        f"make it with `winnow select --pool {pool.root} --name {wanted} ...`"
    )


def read_index(dataset: Store) -> DatasetIndex:
    """Return the index of a dataset's folder; raises `InputError` where it has none."""
    if not dataset.exists(INDEX_FILE):
        raise InputError(
            f"{dataset.root} is not a dataset: it has no {INDEX_FILE}; give the folder that `winnow build` printed"
        )
    return DatasetIndex.from_json(dataset.read_bytes(INDEX_FILE).decode(), path=dataset.locate(INDEX_FILE))


def _make_plan(pool: Pool, folder: str, content: Mapping[str, Any], out: Store, config: BuildConfig) -> PackPlan:
    out.require_folder()
    kind = {"view": True} if config.view else {"shard_size": config.shard_size, "image_format": config.image_format}
    boxes = _find_boxes(pool, config.blur) if config.blur else {}
    blur = {"blur": [config.blur, *(target.fingerprint for target in boxes.values())]} if boxes else {}
    labels = {label: LabelTarget(**target) for label, target in content["labels"].items()}
    columns = find_columns(pool, config.columns, labels)
    carried = (
        {"columns": [[name, target and target.fingerprint] for name, target in columns.items()]} if columns else {}
    )
    identity = {"layout": _LAYOUT, "selection": content["fingerprint"], **kind, **blur, **carried}
    fingerprint = hashlib.sha256(canonical_json(identity).encode()).hexdigest()
    shares = dict(content["captions"])
    # The likeliest caption is the one that KEY.txt holds; the web text fills in where a sample lacks it.
    ordered = sorted(shares, key=lambda name: -shares[name])
    sources = {name.removesuffix(ELEMENTS): content["caption_sources"][name.removesuffix(ELEMENTS)] for name in ordered}
    num_shards = -(-content["num_kept"] // config.shard_size)
    return PackPlan(
        pool=pool,
        out=out,
        folder=f"{content['name']}-{fingerprint[:12]}",
        selection=folder,
        fingerprint=fingerprint,
        captions={**sources, _FALLBACK: _FALLBACK} if _FALLBACK not in sources else sources,
        labels=labels | boxes | {name.rpartition(".")[0]: target for name, target in columns.items() if target},
        samples_per_shard=-(-content["num_kept"] // num_shards),
        image_format=config.image_format,
        blur=config.blur or "",
        columns={name: name for name in columns},
    )


def _find_boxes(pool: Pool, column: str) -> dict[str, LabelTarget]:
    """Return the annotation that a column of boxes, `label.column`, belongs to; raises InputError where there is none."""
    label, _, name = column.rpartition(".")
    target = pool.labels().get(label)
    if target is None:
        known = ", ".join(sorted(pool.labels())) or "none"
        raise InputError(
            f"build blur is {column!r}, and the pool has no annotation {label!r} (it has {known}); write LABEL.COLUMN, such as "
            "face_boxes.face_bboxes"
        )
    path = pool.annotation_path(target.operator, target.fingerprint, pool.shards()[0])
    schema = pool.read_footer(path).schema.to_arrow_schema() if pool.exists(path) else pa.schema([])
    kind = schema.field(name).type if name in schema.names else None
    if kind is None or not pa.types.is_list(kind) or not pa.types.is_list(kind.value_type):
        raise InputError(f"build blur is {column!r}, which is {kind or 'no column'}, not a list of boxes")
    return {label: target}


def _equal_units(num_samples: int, shard_size: int) -> list[PackUnit]:
    """Cut the selection into as few shards as fit; readers draw shards evenly, so their sizes differ by at most one."""
    num_shards = -(-num_samples // shard_size)
    size, longer = divmod(num_samples, num_shards)
    starts = [shard * size + min(shard, longer) for shard in range(num_shards + 1)]
    return [PackUnit(shard, start, stop) for shard, (start, stop) in enumerate(itertools.pairwise(starts))]


def _view_units(pool: Pool, folder: str) -> list[PackUnit]:
    with pool.open(f"{folder}/{SELECTED_FILE}") as file:
        shards = pq.ParquetFile(file).read(columns=["shard"])["shard"].to_numpy()
    starts = [0, *(np.flatnonzero(np.diff(shards)) + 1).tolist(), len(shards)]
    return [PackUnit(int(shards[start]), start, stop) for start, stop in itertools.pairwise(starts) if start < stop]


def _tar_of(plan: PackPlan, unit: PackUnit, config: BuildConfig) -> str:
    if config.view:
        return plan.pool.locate(plan.pool.shard_tar(plan.pool.shard_header(unit.shard)))
    return f"{shard_name(unit.shard)}.tar"


def _list_lengths(content: Mapping[str, Any], surveys: Mapping[PackUnit, Survey]) -> dict[str, int]:
    lists = [name.removesuffix(ELEMENTS) for name, _ in content["captions"] if name.endswith(ELEMENTS)]
    return {name: max(found.list_lengths.get(name, 0) for found in surveys.values()) for name in lists}


def _carried(surveys: Mapping[PackUnit, Survey]) -> tuple[str, ...]:
    return tuple(sorted(frozenset[str]().union(*(found.carried for found in surveys.values()))))


def _check_formats(suffixes: Counter[str], config: BuildConfig) -> None:
    if config.image_format or (len(suffixes) == 1 and next(iter(suffixes)) in _STOCK_SUFFIXES):
        return
    counts = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common())
    raise InputError(
        f"the selected pictures are {counts}; stock readers need one format of {', '.join(_STOCK_SUFFIXES)} in a dataset: give "
        "`--image-format jpg` to convert the others, or `--view`, which Winnow's own trainer reads as it is"
    )


def _run(
    function: Callable[[PackUnit], Any], units: Sequence[PackUnit], executor: Executor, progress: Progress, stage: str
) -> dict[PackUnit, Any]:
    results, failures = {}, {}
    progress.start(stage, sum(unit.stop - unit.start for unit in units), "samples")
    try:
        for outcome in executor.map(function, units):
            if outcome.error is not None:
                failures[shard_name(outcome.unit.shard)] = outcome.error
                logger.error(
                    "shard failed stage=%s shard=%s error=%s", stage, shard_name(outcome.unit.shard), outcome.error
                )
            else:
                results[outcome.unit] = outcome.result
            progress.advance(outcome.unit.stop - outcome.unit.start)
    finally:
        progress.close()
    if failures:
        first = next(iter(failures))
        raise ShardError(
            f"{stage}: {len(failures)} of {len(units)} shards failed; {first}: {failures[first]}", failures
        )
    return results


def _check_complete(pool: Pool, location: str, index: DatasetIndex, num_kept: int) -> None:
    if index.num_samples != num_kept:
        raise StaleDatasetError(
            f"{location} holds {index.num_samples} samples and its selection keeps {num_kept}: some were taken down since; make the same "
            f"request again with it, `winnow forget --pool {pool.root} --dataset {location} ...`, or remove it and build again"
        )


def _report(location: str, index: DatasetIndex, *, num_written: int) -> BuildReport:
    return BuildReport(
        folder=location,
        fingerprint=index.fingerprint,
        num_samples=index.num_samples,
        num_shards=len(index.shards),
        num_written=num_written,
        num_bytes=sum(entry.tar_bytes for entry in index.shards),
    )
