"""A dataset of drawn scenes with everything that losses read: further captions, negatives, labels, probabilities, stored embeddings."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.train.dataset_builder import Sample, encode_picture, make_uid, write_dataset
from tests.train.training import COLOURS, PLACES, SCENES, SHAPES, draw_scene

COLUMNS_FILE = "columns.parquet"
EMBED_DIM = 32  # that of the smallest model


def write_rich_scenes(folder: Path, copies: int = 2) -> Path:
    """Write the dataset into `folder / "dataset"`, the columns beside it, and return the dataset; every tenth sample lacks what may lack."""
    samples = [_sample(number) for number in range(copies * len(SCENES))]
    pq.write_table(_columns(len(samples)), folder / COLUMNS_FILE)
    return write_dataset(folder / "dataset", samples, captions={"alt_text": 1.0})


def _sample(number: int) -> Sample:
    colour, shape, place = SCENES[number % len(SCENES)]
    other = SCENES[(number + 7) % len(SCENES)]
    has_further = number % 10 != 0
    return Sample(
        uid=make_uid(number),
        image=encode_picture(draw_scene(number, number // len(SCENES)), quality=90),
        captions={
            "alt_text": f"a {colour} {shape} on the {place}",
            "recaption": f"the picture shows a {shape} that is {colour}" if has_further else None,
            "rewrite": [f"{shape} in {colour}", f"{place} {shape}", f"{colour} thing, {place}"][
                : 3 if has_further else 1
            ],
            "sub_captions": [f"there is a {shape}.", f"it is {colour}.", f"it lies {place}."] if has_further else [],
            "negatives": f"a {other[0]} {shape} on the {place}" if has_further else None,
        },
    )


def _columns(count: int) -> pa.Table:
    rng = np.random.default_rng(0)
    numbers = np.arange(count)
    scenes = [SCENES[number % len(SCENES)] for number in numbers]
    objects, colours = sorted({scene[1] for scene in scenes}), sorted({scene[0] for scene in scenes})
    pictures = rng.normal(size=(len(SCENES), EMBED_DIM))
    embeddings = [pictures[number % len(SCENES)] + 0.1 * rng.normal(size=EMBED_DIM) for number in numbers]
    texts = [pictures[number % len(SCENES)] for number in numbers]
    vector = pa.list_(pa.float16(), EMBED_DIM)

    def vectors(rows: list[np.ndarray]) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate(rows).astype(np.float16)), type=vector)

    return pa.table({
        "uid": [make_uid(int(number)) for number in numbers],
        "label": pa.array([
            None if number % 10 == 0 else f"{scenes[number][0]} {scenes[number][1]}" for number in numbers
        ]),
        "relevance": rng.uniform(0.5, 1.0, count).astype(np.float32),
        "noise_probability": rng.uniform(0, 0.3, count).astype(np.float32),
        "negative_uid": [None if number % 10 == 0 else make_uid(int((number + 7) % count)) for number in numbers],
        "teacher_image_embedding": vectors(embeddings),
        "teacher_text_embedding": vectors(texts),
        "caption_tag_nouns": [[scene[1], scene[0]] for scene in scenes],
        # Of eleven clusters, as `cluster` with `num_nearest: 3` lists them.
        "cluster_ids": pa.array(
            [None if number % 10 == 0 else _clusters(scenes[number]) for number in numbers], pa.list_(pa.int32())
        ),
        "object_ids": [[objects.index(scene[1])] for scene in scenes],
        "object_probabilities": pa.array([[1.0]] * count, pa.list_(pa.float32())),
        "attribute_ids": [[colours.index(scene[0]), (colours.index(scene[0]) + 1) % 4] for scene in scenes],
        "attribute_probabilities": pa.array([[0.8, 0.1]] * count, pa.list_(pa.float32())),
    })


def _clusters(scene: tuple[str, str, str]) -> list[int]:
    """Return the numbers of a scene's colour, shape and place."""
    colour, shape, place = scene
    return [list(COLOURS).index(colour), 4 + SHAPES.index(shape), 8 + list(PLACES).index(place)]
