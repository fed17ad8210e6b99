"""Colour layouts: the same colours brightened are the same, other colours are not."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from curate.colours import Layouts, colour_distance


def layout(seed: int, strength: float = 30) -> np.ndarray:
    values = 128 + strength * np.random.default_rng(seed).normal(size=128)
    return np.clip(np.round(values), 0, 255).astype(np.uint8)[None]


def test_strength_does_not_count_up_to_a_quarter() -> None:
    base = layout(0).astype(np.float32) - 128
    stronger, much_stronger = (np.clip(np.round(128 + base * gain), 0, 255).astype(np.uint8) for gain in (1.2, 2.0))
    assert colour_distance(layout(0), stronger)[0] < 0.5
    assert colour_distance(layout(0), much_stronger)[0] > 8
    assert colour_distance(layout(0), layout(1))[0] > 20


def test_it_is_a_distance() -> None:
    assert colour_distance(layout(0), layout(0)).tolist() == [0.0]
    assert colour_distance(layout(0), layout(1)) == pytest.approx(colour_distance(layout(1), layout(0)))
    grey = np.full((1, 128), 128, np.uint8)
    assert colour_distance(grey, grey).tolist() == [0.0]
    assert colour_distance(grey, layout(0))[0] > 15


def test_rows_on_disk_and_their_leaders(tmp_path: Path) -> None:
    rows = [layout(0), layout(1), layout(0), None, layout(1)]
    columns = [
        pa.array([None if row is None else row.tobytes() for row in part], pa.binary(128))
        for part in (rows[:2], rows[2:])
    ]
    found = Layouts(tmp_path / "layouts.bin", iter(columns))
    assert found.distance(np.array([0, 0]), np.array([2, 1])).tolist()[0] == 0
    assert found.leaders(np.array([4, 0, 1, 2]), 2.5).tolist() == [4, 0, 4, 0]


def test_a_mirrored_layout_is_turned_about(tmp_path: Path) -> None:
    turned = layout(0).reshape(8, 8, 2)[:, ::-1].tobytes()
    column = pa.array([layout(0).tobytes(), turned], pa.binary(128))
    found = Layouts(tmp_path / "layouts.bin", iter([column]))
    pair = np.array([0]), np.array([1])
    assert found.distance(*pair)[0] > 20
    assert found.distance(*pair, np.array([True])).tolist() == [0.0]


def test_a_large_file_is_read_as_a_small_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    matrix = random.integers(0, 256, (3_000, 128), dtype=np.uint8)
    column = pa.array([row.tobytes() for row in matrix], pa.binary(128))
    found = Layouts(tmp_path / "layouts.bin", iter([column.slice(0, 1_700), column.slice(1_700)]))
    left, right = random.integers(0, 3_000, (2, 500))
    wanted = colour_distance(matrix[left], matrix[right])
    # Row by row for one pair, in one block for many, in several blocks of both kinds.
    assert found.distance(left[:1], right[:1]).tolist() == wanted[:1].tolist()
    assert found.distance(left, right).tolist() == wanted.tolist()
    for name, value in (("_PAIRS_IN_MEMORY", 70), ("_BLOCK", 32), ("_READ_ROWS", 64)):
        monkeypatch.setattr(f"curate.colours.{name}", value)
    assert found.distance(left, right).tolist() == wanted.tolist()
