"""Croissant: the digests are those of the files; where mlcroissant is installed it validates the description and reads the records."""

import hashlib
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from curate.executor import Executor
from curate.fetch.errors import OPTED_OUT, ROBOTS_DISALLOWED
from curate.store import Pool
from pipelines.export.croissant import describe, export
from pipelines.export.source import DatasetSource
from tests.pipelines.export.datasets import make_dataset, make_selections, read_rows


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return make_selections(tmp_path_factory.mktemp("croissant") / "pool")


@pytest.fixture(scope="module")
def source(pool: Pool, ray_session: Executor, tmp_path_factory: pytest.TempPathFactory) -> DatasetSource:
    return make_dataset(pool, tmp_path_factory.mktemp("data"), ray_session)


def test_every_file_is_there_with_its_digest(source: DatasetSource) -> None:
    report = export(source, source.store.locate("croissant.json"))
    content = json.loads(Path(report.location).read_text())
    files = [entry for entry in content["distribution"] if entry["@type"] == "cr:FileObject"]
    assert len(files) == 2 * len(source.index.shards)
    for entry in files:
        data = Path(source.store.locate(entry["contentUrl"])).read_bytes()
        assert entry["sha256"] == hashlib.sha256(data).hexdigest()
        assert entry.get("contentSize", f"{len(data)} B") == f"{len(data)} B"
    assert export(source, report.location).was_current


def test_steps_and_licences_are_told(source: DatasetSource) -> None:
    content = describe(source.index, {"licences": {"CC BY 4.0": 3}})
    assert content["license"] == "CC BY 4.0"
    steps = content["rai:dataPreprocessingProtocol"]
    assert steps == [
        "downloaded: status = 'success' (dropped 6, left 30)",
        "whole: row <> 4 (dropped 3, left 27)",
    ]


def test_what_hosts_forbade_is_told_and_nothing_is_claimed_of_the_rest(source: DatasetSource) -> None:
    content = describe(source.index, {"outcomes": {"success": 30, ROBOTS_DISALLOWED: 2, OPTED_OUT: 1}})
    assert str(content["rai:dataCollection"]).endswith("2 by robots.txt, 1 by X-Robots-Tag.")
    # Of a pool that was imported there are no outcomes.
    assert "obeyed" not in str(describe(source.index, {})["rai:dataCollection"])


def test_a_view_describes_only_what_is_its_own(pool: Pool, ray_session: Executor, tmp_path: Path) -> None:
    view = make_dataset(pool, tmp_path, ray_session, view=True)
    content = describe(view.index, {})
    assert "tar" not in json.dumps(content["distribution"]).replace("in the order of the tar", "")
    assert [entry["@id"] for entry in content["recordSet"]] == ["samples"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("is_view", [False, True], ids=["tars", "view"])
def test_mlcroissant_validates_and_reads_it(pool: Pool, ray_session: Executor, tmp_path: Path, is_view: bool) -> None:
    mlcroissant = pytest.importorskip("mlcroissant")
    source = make_dataset(pool, tmp_path, ray_session, view=is_view)
    location = export(source, source.store.locate("croissant.json")).location
    dataset = mlcroissant.Dataset(location)
    assert not dataset.metadata.ctx.issues.errors
    rows = {str(row["uid"]): row for row in read_rows(source)}
    found = {}
    for record in dataset.records("samples"):
        values = {key.rpartition("/")[2]: value for key, value in record.items()}
        uid = values["uid"].decode()
        row = rows[uid]
        assert values["alt_text"].decode() == row["alt_text"]
        assert values["recap.recaption"].decode() == row["recap.recaption"]
        assert values["weight"] == row["weight"]
        found[uid] = values["key"].decode()
    assert sorted(found) == sorted(rows)
    if not is_view:
        sizes = {}
        for record in dataset.records("images"):
            values = {key.rpartition("/")[2]: value for key, value in record.items()}
            sizes[values["key"].decode()] = values["image"].size
        for uid, key in found.items():
            with Image.open(io.BytesIO(rows[uid]["image"])) as picture:  # type: ignore[arg-type]
                assert sizes[key] == picture.size
