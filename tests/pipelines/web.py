"""A few pictures on a real HTTP server, and the list that names them."""

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.pool import draw, jpeg
from tests.webserver import WebServer

COLOURS = {"red": (200, 30, 40), "green": (40, 160, 60), "blue": (40, 70, 190)}
GONE_EVERY = 10
SHORT_EVERY = 5


@contextmanager
def serve_pairs(path: Path, num_pairs: int) -> Iterator[int]:
    """Serve pictures and write their list to `path`; yield how many can be had.

    Every tenth picture is gone (404), every fifth caption has two words.
    """
    with WebServer() as server, path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["url", "caption"])
        num_images = 0
        for number in range(num_pairs):
            colour = list(COLOURS)[number % len(COLOURS)]
            caption = f"a {colour} square with the number {number}" if number % SHORT_EVERY else f"picture {number}"
            if number % GONE_EVERY:
                num_images += 1
                server.add(f"/{number}.jpg", jpeg(draw(COLOURS[colour], "square", seed=number)))
            writer.writerow([server.url(f"/{number}.jpg"), caption])
        file.flush()
        yield num_images
