"""A web of pictures, served by a process of its own, that outlives what is killed."""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.webserver import serve_folder

NUM_IMAGES = 600
WORDS = ("red", "green", "blue", "small", "large", "round", "square", "old", "new", "bright")


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Serve generated pictures from a real HTTP server process; yield the URL list."""
    folder = tmp_path_factory.mktemp("web")
    rng = np.random.default_rng(0)
    for number in range(NUM_IMAGES):
        pixels = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((320, 240), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=90)
    urls = tmp_path_factory.mktemp("urls") / "urls.csv"
    with serve_folder(folder) as address:
        with urls.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["url", "caption"])
            for number in range(NUM_IMAGES):
                caption = " ".join(WORDS[number // 10**d % 10] for d in range(3))
                # Every 20th URL is missing, so that failures are part of what must not change.
                name = f"{number}.jpg" if number % 20 else f"missing-{number}.jpg"
                writer.writerow([f"{address}/{name}", f"a {caption} thing number {number}"])
        yield urls
