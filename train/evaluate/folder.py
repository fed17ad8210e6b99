"""Reads evaluation sets in CLIP_benchmark's layout.

ROOT/test/{0,1,...}.tar with KEY.{webp,png,jpg} and KEY.cls (a class number) or, in retrieval sets, KEY.txt (a caption per line);
ROOT/test/nshards.txt; in ROOT `classnames.txt` and `zeroshot_classification_templates.txt`, or `dataset_type.txt` saying "retrieval".
ROOT/train, of the same shape, is what a linear probe is fitted on. DataComp's sets with groups have KEY.npy, a vector of numbers.
WinoGAViL has a file of games in ROOT, `winogavil.jsonl`, which name images by KEY.
"""

import io
import logging
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import fsspec
import numpy as np
import numpy.typing as npt

from schemas.errors import InputError
from schemas.sample import IMAGE_SUFFIXES
from train.datacomp import find_task
from train.evaluate.association import ASSOCIATIONS_FILE, read_associations
from train.evaluate.task import (
    AssociationTask,
    EvaluationData,
    Groups,
    ImageSet,
    ProbeTask,
    RetrievalTask,
    Task,
    ZeroShotTask,
)
from train.evaluate.zeroshot import DEFAULT_TEMPLATES
from train.reader import TarFile

logger = logging.getLogger(__name__)


@dataclass
class _Members:
    """What a tar holds of one sample."""

    shard: int
    key: str = ""
    offset: int = -1
    size: int = 0
    others: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class _Split:
    """The images of a split, and what else its tars hold of them."""

    images: ImageSet
    samples: list[_Members]


def is_folder(root: str) -> bool:
    """Return whether a folder holds an evaluation set in this layout."""
    filesystem, path = fsspec.core.url_to_fs(root.rstrip("/"))
    return any(filesystem.exists(f"{path}/{place}") for place in ("test/nshards.txt", "nshards.txt"))


def read_folder(root: str, *, with_training: bool = False) -> EvaluationData:
    """Open a folder in CLIP_benchmark's layout; local, or any fsspec URL.

    `with_training` adds a probe, fitted on the split `train`, to a classification that has one.
    """
    folder = root.rstrip("/")
    name = folder.rsplit("/", 1)[-1]
    split = _read_split(folder, "test")
    games = _read_text(f"{folder}/{ASSOCIATIONS_FILE}")
    if games is not None:
        keys = {sample.key: row for row, sample in enumerate(split.samples)}
        instances = read_associations(games, keys, f"{folder}/{ASSOCIATIONS_FILE}")
        return EvaluationData(name=name, tasks=[AssociationTask(images=split.images, instances=instances)])
    kind = (_read_text(f"{folder}/dataset_type.txt") or "").strip()
    if kind not in {"", "retrieval", "classification"}:
        raise InputError(f"{folder}/dataset_type.txt says {kind!r}; retrieval and classification can be evaluated")
    if kind == "retrieval":
        return EvaluationData(name=name, tasks=[_retrieval(split, folder)])
    task = _zeroshot(split, folder)
    tasks: list[Task] = [task]
    if with_training and not _has_split(folder, "train"):
        logger.warning("no classifier is fitted, for want of a split `train` folder=%s", folder)
    elif with_training:
        training = _read_split(folder, "train")
        labels = _labels(training.samples, f"{folder}/train", len(task.classnames))
        tasks.append(
            ProbeTask(
                images=training.images,
                labels=labels,
                test_images=task.images,
                test_labels=task.labels,
                classnames=task.classnames,
                templates=task.templates,
            )
        )
    return EvaluationData(name=name, tasks=tasks)


def _read_split(folder: str, split: str) -> _Split:
    tars = _list_tars(folder, split)
    samples = [sample for shard, tar in enumerate(tars) for sample in _read_tar(shard, tar) if sample.offset >= 0]
    if not samples:
        raise InputError(f"the tars of {folder} hold no images ({', '.join(IMAGE_SUFFIXES)})")
    images = ImageSet(
        tars=tars,
        shards=np.array([sample.shard for sample in samples], dtype=np.int64),
        offsets=np.array([sample.offset for sample in samples], dtype=np.int64),
        sizes=np.array([sample.size for sample in samples], dtype=np.int64),
        on_white=False,
    )
    return _Split(images, samples)


def _retrieval(split: _Split, folder: str) -> RetrievalTask:
    captions = [_lines(sample.others.get("txt", b"").decode()) for sample in split.samples]
    empty = sum(not own for own in captions)
    if empty:
        raise InputError(f"{empty} of the {len(captions)} images of {folder} have no captions in a .txt member")
    return RetrievalTask(images=split.images, captions=captions)


def _zeroshot(split: _Split, folder: str) -> ZeroShotTask:
    names = _lines(_read_text(f"{folder}/classnames.txt") or "")
    if not names:
        raise InputError(
            f"{folder} has no classnames.txt; a retrieval set needs a dataset_type.txt that says retrieval"
        )
    templates = _lines(_read_text(f"{folder}/zeroshot_classification_templates.txt") or "")
    return ZeroShotTask(
        images=split.images,
        labels=_labels(split.samples, folder, len(names)),
        classnames=names,
        templates=templates or DEFAULT_TEMPLATES,
        groups=_groups(split.samples, folder),
    )


def _labels(samples: Sequence[_Members], folder: str, num_classes: int) -> npt.NDArray[np.int64]:
    try:
        labels = np.array([int(sample.others["cls"]) for sample in samples], dtype=np.int64)
    except (KeyError, ValueError) as error:
        raise InputError(f"an image of {folder} has no class number in a .cls member: {error}") from error
    if labels.min() < 0 or labels.max() >= num_classes:
        raise InputError(
            f"{folder} has classes {labels.min()} to {labels.max()}, its classnames.txt names {num_classes}"
        )
    return labels


def _groups(samples: Sequence[_Members], folder: str) -> list[Groups]:
    """Return the groups that DataComp splits this set's metric by."""
    task = find_task(folder.rsplit("/", 1)[-1])
    if task is None or not task.group:
        return []
    column = task.metadata.index(task.group)
    try:
        values = [
            str(np.load(io.BytesIO(sample.others["npy"]), allow_pickle=False).reshape(-1)[column].item())
            for sample in samples
        ]
    except (KeyError, ValueError, IndexError, EOFError) as error:
        raise InputError(
            f"{folder}: DataComp's {task.name} needs a .npy member with {', '.join(task.metadata)} beside every image ({error!r})"
        ) from error
    return [Groups(name=task.group, values=values)]


def _has_split(folder: str, split: str) -> bool:
    filesystem, path = fsspec.core.url_to_fs(folder)
    return bool(filesystem.exists(f"{path}/{split}/nshards.txt"))


def _list_tars(folder: str, split: str) -> list[TarFile]:
    for place in (f"{folder}/{split}", folder):
        stated = _read_text(f"{place}/nshards.txt") or (
            _read_text(f"{folder}/nshards.txt") if place != folder else None
        )
        filesystem, path = fsspec.core.url_to_fs(place)
        if stated is None or not filesystem.exists(f"{path}/0.tar"):
            continue
        try:
            count = int(stated)
        except ValueError as error:
            raise InputError(f"nshards.txt of {place} holds {stated.strip()!r}, not a number of tars") from error
        return [
            TarFile(f"{place}/{number}.tar", int(filesystem.size(f"{path}/{number}.tar"))) for number in range(count)
        ]
    raise InputError(
        f"{folder} holds neither index.json (a Winnow dataset) nor {split}/nshards.txt and {split}/0.tar (CLIP_benchmark's layout)"
    )


def _read_tar(shard: int, tar: TarFile) -> Iterator[_Members]:
    """Yield the samples of a tar in order; members of a sample are adjacent, and share their name up to its first dot."""
    key, sample = "", _Members(shard)
    try:
        with fsspec.open(tar.location, "rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                folder, _, base = member.name.rpartition("/")
                stem, _, suffix = base.partition(".")
                if f"{folder}/{stem}" != key:
                    if key:
                        yield sample
                    key, sample = f"{folder}/{stem}", _Members(shard, stem)
                if suffix.lower() in IMAGE_SUFFIXES:
                    sample.offset, sample.size = member.offset_data, member.size
                elif suffix in {"cls", "txt", "npy"} and (content := archive.extractfile(member)) is not None:
                    sample.others[suffix] = content.read()
    except tarfile.TarError as error:
        raise InputError(f"{tar.location} is not a tar or is cut off: {error}") from error
    if key:
        yield sample


def _read_text(location: str) -> str | None:
    """Return a small text file, or None where there is none."""
    try:
        with fsspec.open(location, "rb") as file:
            content: bytes = file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return content.decode()


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]
