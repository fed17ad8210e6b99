"""Reads evaluation sets out of the cache of Hugging Face `datasets`, where DataComp's download script leaves three of its tasks.

hf_cache/nlphuji___{set}/TEST/{version}/{hash}/{set}-test.arrow, or its parts {set}-test-00000-of-00002.arrow; beside them dataset_info.json, written
last. They are Arrow streams, in which an image is a struct of `bytes` and `path`. Sets that a loading script made, as these were, hold paths of
files in hf_cache/downloads; those that came as Parquet hold bytes. Retrieval sets have `image` and `caption`, a text or a list of them; WinoGAViL has
`cue`, `candidates`, `associations` and `candidate_images`. The library itself is not needed.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa

from schemas.errors import InputError
from train.evaluate.task import Association, AssociationTask, EvaluationData, ImageSet, RetrievalTask, Task
from train.reader import TarFile

_DONE_FILE = "dataset_info.json"
_PART = re.compile(r".+-test(?:-(\d{5})-of-(\d{5}))?\.arrow")
_RETRIEVAL = ("image", "caption")
_GAMES = ("candidate_images", "cue", "candidates", "associations")


def is_cached_set(root: str) -> bool:
    """Return whether a folder is a dataset's, NAMESPACE___NAME, in a cache of `datasets`, with a split `test`."""
    folder = root.rstrip("/")
    return "___" in folder.rsplit("/", 1)[-1] and bool(_find_versions(folder))


def read_cached_set(root: str) -> EvaluationData:
    """Open the split `test` of a dataset in a cache of `datasets`; local, or any fsspec URL."""
    folder = root.rstrip("/")
    tables = [_Table.open(location) for location in _list_parts(folder)]
    columns = set(tables[0].rows.column_names)
    images = _Images(cache=folder.rpartition("/")[0] or ".")
    if columns >= set(_GAMES):
        task: Task = _read_games(tables, images)
    elif columns >= set(_RETRIEVAL):
        task = _read_retrieval(tables, images)
    else:
        raise InputError(
            f"{folder} has neither the columns {', '.join(_RETRIEVAL)} nor {', '.join(_GAMES)}; it has {', '.join(sorted(columns))}"
        )
    return EvaluationData(name=folder.rsplit("/", 1)[-1], tasks=[task])


def _find_versions(folder: str) -> dict[str, list[str]]:
    """Return the finished versions of a dataset's split `test`: the folder of each, and the names of its Arrow files."""
    filesystem, bare = fsspec.core.url_to_fs(folder)
    names: dict[str, list[str]] = defaultdict(list)
    for path in filesystem.find(bare):
        place, _, name = path.removeprefix(bare.rstrip("/")).rpartition("/")
        names[f"{folder}{place}"].append(name)
    found = {
        place: sorted(name for name in own if _PART.fullmatch(name))
        for place, own in names.items()
        if _DONE_FILE in own
    }
    return {place: own for place, own in found.items() if own}


def _list_parts(folder: str) -> list[str]:
    versions = _find_versions(folder)
    if len(versions) != 1:
        raise InputError(
            f"{folder} holds {len(versions)} finished downloads of a test split ({', '.join(sorted(versions)) or 'none'}); leave one"
        )
    ((place, names),) = versions.items()
    numbers = [match.groups() for name in names if (match := _PART.fullmatch(name)) is not None]
    count = int(numbers[0][1] or 1)
    if [int(number or 0) for number, _ in numbers] != list(range(count)):
        raise InputError(f"{place} holds {len(names)} of the {count} parts of its test split; download it again")
    return [f"{place}/{name}" for name in names]


@dataclass(frozen=True)
class _Table:
    """An Arrow file, opened: its rows lie in `content`, so that where their bytes lie in the file is known."""

    location: str
    content: pa.Buffer
    rows: pa.Table

    @classmethod
    def open(cls, location: str) -> "_Table":
        try:
            if "://" in location:
                with fsspec.open(location, "rb") as file:
                    content = pa.py_buffer(file.read())
            else:
                content = pa.memory_map(location).read_buffer()
            rows = pa.ipc.open_stream(pa.BufferReader(content)).read_all()
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{location} is no Arrow stream or is cut off ({error}); download it again") from error
        return cls(location, content, rows)

    def read(self, image_column: str, *columns: str) -> Iterator[tuple[str, Any, list[Any]]]:
        """Yield the rows: a name for each, its images (one, or a list), and the values of the other columns."""
        images = [image for chunk in self.rows.column(image_column).chunks for image in self._find_images(chunk)]
        others = zip(*(self.rows.column(name).to_pylist() for name in columns), strict=True)
        for number, (own, values) in enumerate(zip(images, others, strict=True), start=1):
            yield f"{self.location} row {number}", own, list(values)

    def _find_images(self, chunk: pa.Array) -> list[Any]:
        """Return an array's images or lists of images, without touching their bytes."""
        if pa.types.is_list(chunk.type) or pa.types.is_large_list(chunk.type):
            images = iter(self._find_images(chunk.flatten()))
            return [list(islice(images, length)) for length in chunk.value_lengths().fill_null(0).to_pylist()]
        if not pa.types.is_struct(chunk.type) or {"bytes", "path"} - {part.name for part in chunk.type}:
            raise InputError(f"{self.location} has no images but {chunk.type}; cast the column to datasets.Image()")
        offsets, sizes = self._find_values(chunk.field("bytes"))
        paths = chunk.field("path").to_pylist()
        return [_Stored(path or "", offset, size) for path, offset, size in zip(paths, offsets, sizes, strict=True)]

    def _find_values(self, data: pa.Array) -> tuple[list[int], list[int]]:
        """Return where each value lies in the file, and how many bytes it has; nulls have none."""
        _, marks, values = data.buffers()
        if marks is None or values is None or not values.size:
            return [0] * len(data), [0] * len(data)
        kind = np.int64 if pa.types.is_large_binary(data.type) else np.int32
        bounds = np.frombuffer(marks, dtype=kind)[data.offset : data.offset + len(data) + 1].astype(np.int64)
        if not 0 <= values.address - self.content.address <= self.content.size - values.size:
            raise InputError(f"{self.location} is compressed; write it again without compression")
        return (bounds[:-1] + (values.address - self.content.address)).tolist(), np.diff(bounds).tolist()


@dataclass(frozen=True)
class _Stored:
    """An image as a row has it: so many bytes at a place in the Arrow file, or else the path of a file."""

    path: str
    offset: int
    size: int


@dataclass
class _Images:
    """Where images lie; one that comes again under its name has its place already."""

    cache: str
    files: dict[str, int] = field(default_factory=dict)
    places: dict[tuple[str, str, int], int] = field(default_factory=dict)
    rows: list[tuple[int, int, int]] = field(default_factory=list)
    folders: dict[str, str] = field(default_factory=dict)  # of the stored paths -> where they are

    def add(self, table: _Table, image: _Stored, name: str, where: str) -> int:
        """Return the position of an image among the different ones."""
        if not image.size and not image.path:
            raise InputError(f"{where} lacks an image; download the set again")
        location = table.location if image.size else self._locate(image.path, where)
        position = self.places.setdefault((name, "" if image.size else location, image.size), len(self.rows))
        if position == len(self.rows):
            self.rows.append((self.files.setdefault(location, len(self.files)), image.offset, image.size))
        return position

    def _locate(self, path: str, where: str) -> str:
        """Return where a file lies that a loading script unpacked: the cache may have been moved since."""
        folder, _, name = path.rpartition("/")
        if "::" not in path and "://" not in path and folder not in self.folders:
            _, mark, tail = f"/{folder}".rpartition("/downloads/")
            for place in [f"{self.cache}/downloads/{tail}"] * bool(mark) + [folder]:
                filesystem, bare = fsspec.core.url_to_fs(place)
                if filesystem.exists(f"{bare}/{name}"):
                    self.folders[folder] = place
                    break
        if folder not in self.folders:
            raise InputError(
                f"{where}: image {path} is neither there nor in {self.cache}/downloads; download the set again"
            )
        return f"{self.folders[folder]}/{name}"

    def collect(self) -> ImageSet:
        shards, offsets, sizes = np.array(self.rows, dtype=np.int64).reshape(-1, 3).T
        return ImageSet(
            tars=[TarFile(location) for location in self.files],
            shards=shards,
            offsets=offsets,
            sizes=sizes,
            are_files=True,
            on_white=False,
        )


def _read_retrieval(tables: list[_Table], images: _Images) -> RetrievalTask:
    captions = []
    for table in tables:
        for where, image, (value,) in table.read(*_RETRIEVAL):
            images.add(table, image, where, where)
            own = [
                text.strip() for text in ([value] if isinstance(value, str) else value or []) if text and text.strip()
            ]
            if not own:
                raise InputError(f"{where} has no caption")
            captions.append(own)
    if not captions:
        raise InputError(f"{tables[0].location} holds no images")
    return RetrievalTask(images=images.collect(), captions=captions)


def _read_games(tables: list[_Table], images: _Images) -> AssociationTask:
    instances = []
    for table in tables:
        for where, found, (cue, candidates, associations) in table.read(*_GAMES):
            names, wanted = candidates or [], set(associations or [])
            if len(names) != len(found) or not wanted & set(names) or not cue:
                raise InputError(
                    f"{where} is no game: it needs a cue, an image for each of its candidates and associations among them"
                )
            positions = [images.add(table, image, name, where) for name, image in zip(names, found, strict=True)]
            right = frozenset(position for name, position in zip(names, positions, strict=True) if name in wanted)
            instances.append(Association(cue, positions, right))
    if not instances:
        raise InputError(f"{tables[0].location} holds no games")
    return AssociationTask(images=images.collect(), instances=instances)
