"""DataComp's subset file (Gadre et al. 2023, arXiv 2304.14108): the sorted uids that its resharder keeps, repeated as often as wanted.

    python resharder.py -i SHARDS -o OUT -s subset.npy -n COUNT --shard-format '{:05d}.tar' --shard-stats-format '{:05d}_stats.json'

It looks every sample of the tars up by the uid in its JSON. The file is sorted in pieces on disk, so its size is not bound by memory.
"""

import re
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipelines.export.render import COMMAND_NOTE
from pipelines.export.repeat import NO_REPETITION, UID_TYPE, Repeats, parse_uids, plan_repeats
from pipelines.export.source import DatasetSource, Source
from pipelines.export.target import DigestingFile, ExportReport, write_single
from schemas.sample import shard_name

FORMAT = "datacomp"
_BUCKETS = 64
_TAR_NAME = re.compile(r"\d{5,}\.tar")
_ROW = np.dtype([("uid", UID_TYPE), ("weight", "<f8")])


def export(source: Source, out: str, *, num_samples: int = 0, is_weighted: bool = True) -> ExportReport:
    """Write the uids of a selection or a dataset to the file `out`.

    A sample is there `weight / mean weight * num_samples / all` times, rounded by its uid; `num_samples` 0 means as many as are selected.
    Without `is_weighted` every uid is there once.
    """
    with tempfile.TemporaryDirectory(prefix="winnow-export-") as folder:
        repeats = plan_repeats((w for _, w in source.weights()), num_samples) if is_weighted else Repeats(scale=0.0)
        _spread(source, Path(folder))
        total = num_left_out = 0
        for uids, num_dropped in _sorted(Path(folder), repeats):
            total, num_left_out = total + len(uids), num_left_out + num_dropped

        def write(file: DigestingFile) -> None:
            np.lib.format.write_array_header_1_0(
                file, {"descr": np.lib.format.dtype_to_descr(UID_TYPE), "fortran_order": False, "shape": (total,)}
            )
            for uids, _ in _sorted(Path(folder), repeats):
                file.write(uids.tobytes())

        location, was_current, num_bytes = write_single(out, write)
    command = resharder_command(source, location)
    return ExportReport(
        format=FORMAT,
        location=location,
        num_samples=total,
        num_left_out=num_left_out,
        num_bytes=num_bytes,
        was_current=was_current,
        notes={"left_out": NO_REPETITION, **({COMMAND_NOTE: command} if command else {})},
    )


def resharder_command(source: Source, subset: str) -> str:
    """Return the command that makes tars of the subset; empty where the samples' tars are not numbered files of one folder.

    The resharder expects names of eight digits, counts shards by halving unless it is told their number, and wants its folder to be there.
    """
    if isinstance(source, DatasetSource):
        tars = [source.store.locate(entry.tar) for entry in source.index.shards]
    else:
        tars = [source.pool.locate(f"shards/{shard_name(shard)}.tar") for shard in source.pool.shards()]
    folders, names = {tar.rpartition("/")[0] for tar in tars}, [tar.rpartition("/")[2] for tar in tars]
    if len(folders) != 1 or not all(map(_TAR_NAME.fullmatch, names)):
        return ""
    last = max(int(name.removesuffix(".tar")) for name in names)
    arguments = ["-i", folders.pop(), "-o", "OUT", "-s", subset, "-n", str(last + 1)]
    formats = ["--shard-format", "{:05d}.tar", "--shard-stats-format", "{:05d}_stats.json"]
    return f"mkdir OUT && python {shlex.join(['resharder.py', *arguments, *formats])}"


def _spread(source: Source, folder: Path) -> None:
    """Put every uid with its weight into one of a few files, by its highest bits: one file after the other, they are in order."""
    with ExitStack() as stack:
        files = [stack.enter_context((folder / f"{bucket}.bin").open("wb")) for bucket in range(_BUCKETS)]
        for uids, weights in source.weights():
            rows = np.empty(len(uids), _ROW)
            rows["uid"], rows["weight"] = parse_uids(uids), weights
            buckets = (rows["uid"]["f0"] >> np.uint64(58)).astype(np.int64)
            for bucket in np.unique(buckets).tolist():
                files[bucket].write(rows[buckets == bucket].tobytes())


def _sorted(folder: Path, repeats: Repeats) -> Iterator[tuple[npt.NDArray[np.void], int]]:
    """Yield uids in order, repeated, and how many of their range come to no repetition."""
    for bucket in range(_BUCKETS):
        rows = np.fromfile(folder / f"{bucket}.bin", _ROW)
        uids = np.ascontiguousarray(rows["uid"])
        order = np.lexsort((uids["f1"], uids["f0"]))
        uids, weights = uids[order], rows["weight"][order]
        counts = repeats.count_parsed(uids, weights)
        yield np.repeat(uids, counts), int((counts == 0).sum())
