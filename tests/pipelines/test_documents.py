"""What a build puts beside a dataset: there, whole, the same every time, and before the index."""

import json
from pathlib import Path
from typing import Any

import pytest

from curate.build import BuildConfig, BuildReport, build
from curate.executor import Executor
from curate.store import Pool
from pipelines.documents import make_documents
from schemas.progress import SilentProgress
from tests.pipelines.export.datasets import make_selections


def run(pool: Pool, out: Path, executor: Executor, describe: Any = make_documents) -> BuildReport:
    return build(
        pool, "mixed", str(out), BuildConfig(), executor=executor, progress=SilentProgress(), describe=describe
    )


def test_a_build_leaves_card_facts_and_croissant(ray_session: Executor, tmp_path: Path) -> None:
    pool = make_selections(tmp_path / "pool")
    folder = Path(run(pool, tmp_path / "one", ray_session).folder)
    again = Path(run(pool, tmp_path / "two", ray_session).folder)
    for name in ("README.md", "card.json", "croissant.json"):
        assert (folder / name).read_bytes() == (again / name).read_bytes()
    assert json.loads((folder / "card.json").read_text())["outcomes"]["success"] == 30
    croissant = json.loads((folder / "croissant.json").read_text())
    assert [file["name"] for file in croissant["distribution"]] == [
        "00000.tar",
        "00000.parquet",
        "sidecars",
        "pictures",
    ]


def test_without_them_the_dataset_is_not_complete(ray_session: Executor, tmp_path: Path) -> None:
    pool = make_selections(tmp_path / "pool")

    def fail(*_: object) -> dict[str, bytes]:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        run(pool, tmp_path / "out", ray_session, fail)
    (folder,) = (tmp_path / "out").iterdir()
    assert not (folder / "index.json").exists()
    report = run(pool, tmp_path / "out", ray_session)
    assert report.num_written == 0
    assert (folder / "README.md").exists()
