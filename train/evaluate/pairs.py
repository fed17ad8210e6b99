"""Reads captions with wrong captions beside them: SugarCrepe's files, ARO's, and a JSONL of Winnow's own.

A file is an object or a list of objects (JSON), or one object a line (JSONL). An object names its image (`filename`, `image` or `image_path`), its
caption (`caption` or `true_caption`) and the wrong ones (`negative_caption`, `false_caption`, or `negatives`: a list, or a mapping
from kind to list). Where the kind is not given it is the name of the file. ARO's VG-Relation and VG-Attribution show a part of each image, which
`bbox_x`, `bbox_y`, `bbox_w` and `bbox_h` give in pixels. A folder of such files is read as one set. Images lie beside the file, or in a folder
`images` or `val2017` there.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import fsspec
import numpy as np

from schemas.errors import InputError
from train.crop import Box
from train.evaluate.task import CompositionTask, EvaluationData, ImageSet
from train.reader import TarFile

SUFFIXES = (".json", ".jsonl")
_IMAGE_KEYS = ("filename", "image", "image_path")
_CAPTION_KEYS = ("caption", "true_caption")
_NEGATIVE_KEYS = ("negative_caption", "false_caption")
_BOX_KEYS = ("bbox_x", "bbox_y", "bbox_w", "bbox_h")
_MOST_PIXELS = 1 << 20  # of a side
_IMAGE_FOLDERS = ("", "images/", "val2017/")


def list_pair_files(path: str) -> list[str]:
    """Return the files of pairs at `path`: itself, or those directly in it; none where it is something else."""
    filesystem, bare = fsspec.core.url_to_fs(path.rstrip("/"))
    if bare.endswith(SUFFIXES):
        return [path]
    if not filesystem.isdir(bare):
        return []
    names = sorted(entry.rsplit("/", 1)[-1] for entry in filesystem.ls(bare, detail=False))
    return [f"{path.rstrip('/')}/{name}" for name in names if name.endswith(SUFFIXES)]


def read_pairs(path: str) -> EvaluationData:
    """Open a file or folder of captions with wrong captions."""
    rows = [(file, number, row) for file in list_pair_files(path) for number, row in enumerate(_read_rows(file), 1)]
    if not rows:
        raise InputError(f"{path} holds no pairs of a caption and a wrong caption")
    numbers: dict[str, int] = {}
    images, boxes, captions, negatives = [], [], [], []
    known: dict[str, str] = {}
    for file, number, row in rows:
        where = f"{file} entry {number}"
        location = _find_image(file, str(_take(row, _IMAGE_KEYS, where)), known)
        images.append(numbers.setdefault(location, len(numbers)))
        boxes.append(_read_box(row, where))
        captions.append(str(_take(row, _CAPTION_KEYS, where)))
        negatives.append(_negatives(row, file.rsplit("/", 1)[-1].rsplit(".", 1)[0], where))
    return EvaluationData(
        name=path.rstrip("/").rsplit("/", 1)[-1].removesuffix(".jsonl").removesuffix(".json"),
        tasks=[
            CompositionTask(
                images=ImageSet(
                    tars=[TarFile(location) for location in numbers],
                    shards=np.array(images, dtype=np.int64),
                    offsets=np.zeros(len(images), dtype=np.int64),
                    sizes=np.zeros(len(images), dtype=np.int64),
                    are_files=True,
                    boxes=np.array(boxes, dtype=np.int64),
                    on_white=False,
                ),
                captions=captions,
                negatives=negatives,
            )
        ],
    )


def _read_rows(file: str) -> Iterator[Mapping[str, Any]]:
    with fsspec.open(file, "rb") as opened:
        text = opened.read().decode()
    try:
        if file.endswith(".jsonl"):
            content: Any = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            content = json.loads(text)
    except ValueError as error:
        raise InputError(f"{file} is not JSON: {error}") from error
    if isinstance(content, dict):
        content = list(content.values())
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise InputError(f"{file} is no list of objects with an image, a caption and a wrong caption")
    yield from content


def _take(row: Mapping[str, Any], names: Sequence[str], where: str) -> object:
    for name in names:
        if row.get(name):
            return row[name]
    raise InputError(f"{where} has none of {', '.join(names)}; it has {', '.join(row)}")


def _read_box(row: Mapping[str, Any], where: str) -> Box:
    """Return the part of the image that a row shows, its corners rounded as Pillow's crop rounds them; zeros where it shows all."""
    given = [row.get(key) for key in _BOX_KEYS]
    if all(value is None for value in given):
        return 0, 0, 0, 0
    numbers = [value for value in given if isinstance(value, int | float) and abs(value) <= _MOST_PIXELS]
    if len(numbers) == len(_BOX_KEYS):
        x, y, width, height = numbers
        left, top, right, bottom = round(x), round(y), round(x + width), round(y + height)
        if left < right and top < bottom:
            return top, left, bottom - top, right - left
    raise InputError(
        f"{where} has no part of an image in {', '.join(_BOX_KEYS)}, got {given}; give four numbers of pixels or none"
    )


def _negatives(row: Mapping[str, Any], kind: str, where: str) -> dict[str, list[str]]:
    given = row.get("negatives")
    if isinstance(given, Mapping):
        return {str(name): [str(text) for text in _listed(texts)] for name, texts in given.items()}
    if given is not None:
        return {kind: [str(text) for text in _listed(given)]}
    return {kind: [str(_take(row, _NEGATIVE_KEYS, where))]}


def _listed(value: object) -> Sequence[object]:
    return value if isinstance(value, list) else [value]


def _find_image(file: str, name: str, known: dict[str, str]) -> str:
    """Return where an image lies; the folder in which one was found is tried first for the next."""
    if name.startswith("/") or "://" in name:
        return name
    folder = file.rpartition("/")[0] or "."
    filesystem, bare = fsspec.core.url_to_fs(folder)
    places = [known[folder]] if folder in known else []
    for place in [*places, *_IMAGE_FOLDERS]:
        if filesystem.exists(f"{bare}/{place}{name}"):
            known[folder] = place
            return f"{folder}/{place}{name}"
    raise InputError(f"image {name!r} of {file} is neither in {folder} nor in its folders images and val2017")
