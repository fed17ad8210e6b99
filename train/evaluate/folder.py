"""Reads evaluation sets in CLIP_benchmark's layout.

ROOT/test/{0,1,...}.tar with KEY.{webp,png,jpg} and KEY.cls (a class number) or, in retrieval sets, KEY.txt (a caption per line);
ROOT/test/nshards.txt; in ROOT `classnames.txt` and `zeroshot_classification_templates.txt`, or `dataset_type.txt` saying "retrieval".
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field

import fsspec
import numpy as np

from schemas.errors import InputError
from schemas.sample import IMAGE_SUFFIXES
from train.evaluate.task import EvaluationData, ImageSet, RetrievalTask, ZeroShotTask
from train.evaluate.zeroshot import DEFAULT_TEMPLATES
from train.reader import TarFile


@dataclass
class _Members:
    """What a tar holds of one sample."""

    shard: int
    offset: int = -1
    size: int = 0
    texts: dict[str, bytes] = field(default_factory=dict)


def read_folder(root: str, split: str = "test") -> EvaluationData:
    """Open a folder in CLIP_benchmark's layout; local, or any fsspec URL."""
    folder = root.rstrip("/")
    tars = _list_tars(folder, split)
    samples = [sample for shard, tar in enumerate(tars) for sample in _read_tar(shard, tar) if sample.offset >= 0]
    if not samples:
        raise InputError(f"the tars of {folder} hold no images ({', '.join(IMAGE_SUFFIXES)})")
    images = ImageSet(
        tars=tars,
        shards=np.array([sample.shard for sample in samples], dtype=np.int64),
        offsets=np.array([sample.offset for sample in samples], dtype=np.int64),
        sizes=np.array([sample.size for sample in samples], dtype=np.int64),
    )
    kind = (_read_text(f"{folder}/dataset_type.txt") or "").strip()
    if kind not in {"", "retrieval", "classification"}:
        raise InputError(f"{folder}/dataset_type.txt says {kind!r}; retrieval and classification can be evaluated")
    task = _retrieval(images, samples, folder) if kind == "retrieval" else _zeroshot(images, samples, folder)
    return EvaluationData(name=folder.rsplit("/", 1)[-1], tasks=[task])


def _retrieval(images: ImageSet, samples: list[_Members], folder: str) -> RetrievalTask:
    captions = [_lines(sample.texts.get("txt", b"").decode()) for sample in samples]
    empty = sum(not own for own in captions)
    if empty:
        raise InputError(f"{empty} of the {len(samples)} images of {folder} have no captions in a .txt member")
    return RetrievalTask(images=images, captions=captions)


def _zeroshot(images: ImageSet, samples: list[_Members], folder: str) -> ZeroShotTask:
    names = _lines(_read_text(f"{folder}/classnames.txt") or "")
    if not names:
        raise InputError(
            f"{folder} has no classnames.txt; a retrieval set needs a dataset_type.txt that says retrieval"
        )
    templates = _lines(_read_text(f"{folder}/zeroshot_classification_templates.txt") or "")
    try:
        labels = np.array([int(sample.texts["cls"]) for sample in samples], dtype=np.int64)
    except (KeyError, ValueError) as error:
        raise InputError(f"an image of {folder} has no class number in a .cls member: {error}") from error
    if labels.min() < 0 or labels.max() >= len(names):
        raise InputError(
            f"{folder} has classes {labels.min()} to {labels.max()}, its classnames.txt names {len(names)}"
        )
    return ZeroShotTask(images=images, labels=labels, classnames=names, templates=templates or DEFAULT_TEMPLATES)


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
                    key, sample = f"{folder}/{stem}", _Members(shard)
                if suffix.lower() in IMAGE_SUFFIXES:
                    sample.offset, sample.size = member.offset_data, member.size
                elif suffix in {"cls", "txt"} and (content := archive.extractfile(member)) is not None:
                    sample.texts[suffix] = content.read()
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
