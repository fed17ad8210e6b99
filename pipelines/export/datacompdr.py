"""DataCompDR's layout (Vasu et al. 2024, arXiv 2311.17049): a teacher's embeddings and synthetic captions beside each picture.

    UID.jpg  UID.json  UID.txt  UID.url.txt  UID.syn.json  UID.paug.json  UID.npz

`syn.json` is `{"syn_text": [...]}`; the npz holds `image_emb` (one row per augmentation) and `text_emb` (the web text, then one row per
synthetic caption), in half precision. Augmentations are what the teacher saw, nothing painted over: the crops that `reinforce` stored, or
the middle square alone.
"""

import io
import json
from collections.abc import Mapping
from functools import partial
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from curate import images
from curate.executor import Executor
from curate.store import Store
from pipelines.export.annotation import find_embedding, read_schemas, require_complete
from pipelines.export.source import DatasetSource, SelectionSource
from pipelines.export.target import ExportReport, Part, Target, split_evenly
from pipelines.export.tars import Members, Sample, TarPlan, plan_tars, tar_name, write_tar
from schemas.errors import InputError, MissingColumnsError, StaleDatasetError
from schemas.progress import Progress

FORMAT = "datacompdr"
# RandAugment's first operation of its list is to do nothing; the published sets apply two.
_NO_OPERATIONS = [[0, 0.0], [0, 0.0]]


def export(
    source: DatasetSource,
    out: str,
    *,
    selection: SelectionSource,
    executor: Executor,
    progress: Progress,
    synthetic: Mapping[str, str],
    image_embedding: str = "",
    text_embedding: str = "",
    crops: str = "",
    shard_size: int = 10_000,
) -> ExportReport:
    """Write a dataset with the embeddings of its selection's pool to the folder `out`, each sample once.

    `synthetic` maps a caption column (`recap.recaption`) to the column of its text embedding. `crops` is the label of `reinforce`, whose crops
    and embeddings are taken in place of an embedding of the whole picture. Samples that lack an embedding are left out and counted.
    """
    pictures = _find_pictures(selection, image_embedding, crops)
    text = find_embedding(selection, "text_embedding", text_embedding)
    _check_synthetic(source, selection, synthetic)
    columns = {**pictures, "text": text, **{f"synthetic {n}": name for n, name in enumerate(synthetic.values())}}
    used = [selection.labels[name.rpartition(".")[0]].fingerprint for name in columns.values()]
    settings = {"columns": columns, "captions": list(synthetic), "annotations": used, "shard_size": shard_size}
    target = Target(out, FORMAT, {**source.identity(), **settings})
    if found := target.find():
        return found
    plan = plan_tars(source, is_weighted=False)
    parts = split_evenly(plan.num_samples, shard_size)
    write = partial(_write, plan, selection, columns, tuple(synthetic), len(parts))
    num_written = sum(result["num_samples"] for result in target.run(write, parts, executor, progress))
    notes = {"synthetic": ", ".join(synthetic), "left_out": f"one of {', '.join(columns.values())} has no vector"}
    return target.publish(source.name, num_written, num_left_out=source.num_samples - num_written, notes=notes)


def _find_pictures(selection: SelectionSource, image_embedding: str, crops: str) -> dict[str, str]:
    """Return the columns of what a teacher made of pictures, and of the crops it was shown."""
    if not crops:
        return {"image": find_embedding(selection, "image_embedding", image_embedding)}
    if image_embedding:
        raise InputError(
            f"--image-embedding {image_embedding} and --crops {crops} are two embeddings of a picture; give one"
        )
    names = {"image": "crop_embeddings", "boxes": "crop_boxes"}
    found = read_schemas(selection).get(crops)
    if found is None or not set(names.values()) <= set(found.names):
        root = selection.pool.root
        raise MissingColumnsError(
            f"{root} has no crops {crops!r}; make them with\n  winnow annotate --pool {root} 'reinforce:model=MODEL,label={crops}'"
        )
    require_complete(selection, crops)
    return {use: f"{crops}.{name}" for use, name in names.items()}


def _check_synthetic(source: DatasetSource, selection: SelectionSource, synthetic: Mapping[str, str]) -> None:
    root = selection.pool.root
    if not synthetic:
        raise InputError(
            "DataCompDR needs synthetic captions with their embeddings; give --synthetic CAPTION=EMBEDDING, such as "
            "recap.recaption=recap_embedding.text_embedding"
        )
    names = source.read(source.index.shards[0]).column_names
    schemas = read_schemas(selection)
    for caption, embedding in synthetic.items():
        if caption not in names:
            raise InputError(
                f"{source.store.root} has no caption {caption!r}; select it with `--caption {caption}=1` and build again"
            )
        label, _, column = embedding.rpartition(".")
        if label not in schemas or column not in schemas[label].names:
            raise MissingColumnsError(
                f"{root} has no embedding {embedding!r} of {caption}; make it with\n  winnow annotate --pool {root} "
                f"'clip_text_embedding:model=MODEL,bind.alt_text={caption},label={label or 'synthetic'}'"
            )
        require_complete(selection, label)


def _write(
    plan: TarPlan,
    selection: SelectionSource,
    columns: Mapping[str, str],
    captions: tuple[str, ...],
    num_tars: int,
    store: Store,
    part: Part,
) -> dict[str, Any]:
    table = selection.read(part.start, part.stop, columns)
    uids = table["uid"].to_pylist()
    vectors = {name: table[name].to_pylist() for name in columns}

    def make(sample: Sample) -> Members:
        row = sample.row - part.start
        if uids[row] != sample.uid:
            raise StaleDatasetError(
                f"sample {sample.uid} of the dataset is {uids[row]} in {selection.folder}; build the dataset again"
            )
        own = {name: vectors[name][row] for name in columns}
        if any(vector is None for vector in own.values()):
            return []
        return _make_members(sample, own, [str(sample.captions[caption]) for caption in captions])

    path = tar_name(part.number, num_tars)
    files, places, _ = write_tar(plan, store, part, path, make, attrgetter("uid"))
    return {"files": files, "num_samples": len(places)}


def _make_members(sample: Sample, vectors: Mapping[str, list[float]], texts: list[str]) -> Members:
    boxes = np.reshape(vectors["boxes"], (-1, 4)).tolist() if "boxes" in vectors else [_middle_square(sample)]
    image = np.reshape(np.asarray(vectors["image"], np.float16), (len(boxes), -1))
    others = [np.asarray([vector], np.float16) for name, vector in vectors.items() if name not in {"image", "boxes"}]
    lengths = {array.shape[1] for array in (image, *others)}
    if len(lengths) != 1:
        raise InputError(f"the embeddings of {sample.uid} have {sorted(lengths)} dimensions; take all from one model")
    record = json.dumps({**sample.record, "key": sample.uid}, indent=4)
    augmentations = json.dumps([[box, _NO_OPERATIONS] for box in boxes])
    return [
        (sample.suffix, sample.image),
        ("json", record.encode()),
        ("txt", str(sample.captions["alt_text"]).encode()),
        ("url.txt", sample.url.encode()),
        ("syn.json", json.dumps({"syn_text": texts}).encode()),
        ("paug.json", json.dumps({"param_aug": augmentations}).encode()),
        ("npz", _to_npz(image_emb=image, text_emb=np.concatenate(others))),
    ]


def _middle_square(sample: Sample) -> list[int]:
    """Return top, left, height and width of the picture's middle square: what CLIP's own preprocessing leaves."""
    height, width = (int(str(sample.record.get(name) or 0)) for name in ("height", "width"))
    if not height or not width:
        info = images.probe(sample.image)
        height, width = info.height, info.width
    side = min(height, width)
    return [(height - side) // 2, (width - side) // 2, side, side]


def _to_npz(**arrays: npt.NDArray[np.float16]) -> bytes:
    buffer = io.BytesIO()
    # Entries of an npz are dated 1980 by numpy: equal arrays give equal bytes.
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()
