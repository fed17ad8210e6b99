"""Pictures of the miniature web as files, drawn in processes of their own; imports little, because each of them starts afresh."""

import os
import random
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

from pipelines.demo.drawing import draw_background, draw_scene
from pipelines.demo.fault import BROKEN_KINDS, break_file, copy_nearly, encode, paint_text, shrink, stretch
from pipelines.demo.scenes import Scene
from schemas.progress import Progress

_WATCH_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Picture:
    """How to make a file: a scene, what is done to it, and the text painted over it."""

    scene: Scene
    treatment: str = ""  # near_copy, tiny, extreme_aspect, a key of BROKEN_KINDS, painted_only or painted_over
    text: str = ""
    seed: int = 0


def make_body(picture: Picture) -> bytes:
    """Draw a picture and return its file."""
    random_source = random.Random(f"{picture.scene.seed} {picture.seed} {picture.treatment}")
    if picture.treatment == "html":
        return break_file(b"", "html", random_source)
    if picture.treatment == "painted_only":
        image = draw_background(picture.scene.background, 168, 160, picture.scene.seed)
        return encode(paint_text(image, picture.text))
    image, _ = draw_scene(picture.scene)
    if picture.treatment == "painted_over":
        return encode(paint_text(image, picture.text))
    if picture.treatment == "near_copy":
        return copy_nearly(image, random_source)
    if picture.treatment == "tiny":
        return shrink(image, random_source)
    if picture.treatment == "extreme_aspect":
        return stretch(image, random_source)
    data = encode(image, 80 + picture.scene.seed % 16)
    return break_file(data, picture.treatment, random_source) if picture.treatment in BROKEN_KINDS else data


def draw_all(pictures: Sequence[Picture], progress: Progress) -> Iterator[bytes]:
    """Yield the file of every picture in order, drawn in two processes."""
    progress.start("draw the miniature web", len(pictures), "pictures")
    try:
        # Forking a process that may hold threads (Ray, torch) can deadlock; a fresh interpreter cannot.
        with ProcessPoolExecutor(
            max_workers=2, mp_context=get_context("spawn"), initializer=_watch_parent, initargs=(os.getpid(),)
        ) as executor:
            for data in executor.map(make_body, pictures, chunksize=100):
                progress.advance(1)
                yield data
    finally:
        progress.close()


def _watch_parent(parent: int) -> None:
    """End this process when its parent is gone: a worker of a pool waits for ever for the next task of a parent that was killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
