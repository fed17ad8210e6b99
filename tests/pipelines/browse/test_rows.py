"""Rows by position: the pool's own values, wherever shards end."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from curate.catalog import Catalog
from pipelines.browse.rows import SHOWN, Rows, texts_of
from tests.curate.pool_builder import annotated_pool


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog(annotated_pool(tmp_path / "pool")) as opened:
        yield opened


def test_rows_are_the_pools(catalog: Catalog, tmp_path: Path) -> None:
    rows = Rows(catalog, str(tmp_path))
    assert len(rows) == 36
    expected = catalog.sql(f"SELECT {', '.join(SHOWN)}, shard, row FROM samples ORDER BY shard, row").fetchall()
    for position, values in enumerate(expected):
        (found,) = rows.take([position])
        assert tuple(found[name] for name in SHOWN) == values[:-2]
        place = rows.place(position)
        assert (place.header.shard, place.row) == values[-2:]
        assert rows.position(place.header.shard, place.row) == position
    assert rows.position(3, 0) is rows.position(0, 12) is rows.position(0, -1) is None


def test_captions_are_found_by_name(catalog: Catalog, tmp_path: Path) -> None:
    rows = Rows(catalog, str(tmp_path))
    assert rows.captions == ("recap.recaption", "recap.rewrite")
    (row,) = rows.take([15])
    assert texts_of(row, rows.captions) == {
        "recap.recaption": "recaption 1-3",
        "recap.rewrite": ["rewrite 1-3-0", "rewrite 1-3-1", "rewrite 1-3-2"],
    }


def test_uids_are_found(catalog: Catalog, tmp_path: Path) -> None:
    rows = Rows(catalog, str(tmp_path))
    uids = [rows.value("uid", position) for position in (35, 0, 12)]
    assert rows.find([*uids, "nobody"]) == {uids[0]: 35, uids[1]: 0, uids[2]: 12}
    assert rows.find([]) == {}
