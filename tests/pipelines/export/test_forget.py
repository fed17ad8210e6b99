"""Exports that lose a sample, read again by what reads them; the others are named, with the command that makes them anew."""

import json
import secrets
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest

from curate.executor import Executor
from curate.forget import ForgetTargets, Work
from curate.forget_files import Eraser, Journal
from curate.store import Pool
from pipelines.export import clip_retrieval, energon, hugging_face, share
from pipelines.export.forget import check_exports, forget_in_exports
from pipelines.export.source import DatasetSource, open_source, require_selection
from schemas.errors import InputError
from schemas.progress import SilentProgress
from tests.pipelines.export.datasets import embed, make_dataset, make_selections, read_vectors


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    pool = make_selections(tmp_path_factory.mktemp("forget_exports") / "pool")
    embed(pool, "image", "image_embedding", seed=1)
    embed(pool, "text", "text_embedding", seed=2)
    return pool


@pytest.fixture(scope="module")
def source(pool: Pool, ray_session: Executor, tmp_path_factory: pytest.TempPathFactory) -> DatasetSource:
    return make_dataset(pool, tmp_path_factory.mktemp("data"), ray_session)


def uids_of(pool: Pool) -> list[str]:
    found: list[str] = pool.read_table(f"{_folder(pool)}/selected.parquet", ["uid"])["uid"].to_pylist()
    return found


def _folder(pool: Pool) -> str:
    return next(f"selections/{name}" for name in pool.list_names("selections") if name.startswith("mixed"))


def erase(pool: Pool, exports: list[Path], uids: list[str], *, is_dry: bool = False) -> Journal:
    journal = Journal(pool, f"forgotten/pending/{secrets.token_hex(4)}", is_dry=is_dry)
    targets = ForgetTargets(exports=tuple(map(str, exports)))
    forget_in_exports(Work(pool=pool, uids=frozenset(uids), eraser=Eraser(journal), targets=targets))
    return journal


def test_a_hugging_face_folder_loads_without_the_sample(
    pool: Pool, source: DatasetSource, ray_session: Executor, tmp_path: Path
) -> None:
    out = tmp_path / "folder"
    hugging_face.export(source, str(out), executor=ray_session, progress=SilentProgress(), shard_size=10)
    uids = uids_of(pool)
    gone = uids[3]
    before = (out / "README.md").read_text()
    erase(pool, [out], [gone], is_dry=True)
    assert (out / "README.md").read_text() == before
    journal = erase(pool, [out], [gone])
    # `datasets` compares the counts that the card states with what it reads.
    loaded = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert list(loaded["uid"]) == [uid for uid in uids if uid != gone]
    assert f"{len(uids) - 1} image-text pairs" in (out / "README.md").read_text()
    assert gone in {uid for change in journal.changes for uid in change.uids}
    assert journal.left == []
    content = json.loads((out / "export.json").read_text())
    assert content["num_samples"] == len(uids) - 1
    assert erase(pool, [out], [gone]).changes == []


def test_vectors_keep_their_rows(pool: Pool, ray_session: Executor, tmp_path: Path) -> None:
    selection = require_selection(open_source("mixed", pool.root), "clip-retrieval", pool.root)
    out = tmp_path / "out"
    clip_retrieval.export(selection, str(out), executor=ray_session, progress=SilentProgress(), shard_size=10)
    uids = uids_of(pool)
    # Killed after the first of three files.
    images = np.load(out / "img_emb/img_emb_0.npy")
    rows = pq.read_table(out / "metadata/metadata_0.parquet")["uid"].to_pylist()
    np.save(out / "img_emb/img_emb_0.npy", np.delete(images, rows.index(uids[3]), axis=0))
    erase(pool, [out], [uids[3], uids[12]])
    vectors = {name: read_vectors(pool, name, f"{name}_embedding") for name in ("image", "text")}
    seen = []
    for path in sorted((out / "metadata").iterdir()):
        number = path.stem.removeprefix("metadata_")
        found = pq.read_table(path)["uid"].to_pylist()
        for name, stem in (("image", "img_emb"), ("text", "text_emb")):
            stored = np.load(out / stem / f"{stem}_{number}.npy")
            assert np.array_equal(stored, np.stack([vectors[name][uid] for uid in found]))
        seen += found
    assert seen == [uid for uid in uids if uid not in (uids[3], uids[12])]


def test_shared_lists_lose_the_row(pool: Pool, ray_session: Executor, tmp_path: Path) -> None:
    selection = require_selection(open_source("mixed", pool.root), "share", pool.root)
    out = tmp_path / "out"
    share.export(selection, str(out), executor=ray_session, progress=SilentProgress())
    uids = uids_of(pool)
    erase(pool, [out], uids[:2])
    found = [uid for path in sorted((out / "samples").iterdir()) for uid in pq.read_table(path)["uid"].to_pylist()]
    assert found == uids[2:]


def test_what_refers_by_place_is_named_as_stale(
    pool: Pool, source: DatasetSource, ray_session: Executor, tmp_path: Path
) -> None:
    out, description = tmp_path / "energy", tmp_path / "croissant.json"
    energon.export(source, str(out), executor=ray_session, progress=SilentProgress(), shard_size=8)
    description.write_text("{}")
    journal = erase(pool, [out, description], [uids_of(pool)[0]])
    assert [left.path for left in journal.left] == [str(out), str(description)]
    assert journal.left[0].remedy.endswith(f"winnow export energon DATASET --out {out}")
    assert journal.changes == []


def test_what_is_no_export_is_refused(pool: Pool, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no export"):
        check_exports([str(tmp_path)])
    np.save(tmp_path / "other.npy", np.zeros(3))
    check_exports([str(tmp_path / "other.npy")])
    for name, message in (("none.npy", "does not exist"), ("other.npy", "it is no subset file")):
        with pytest.raises(InputError, match=message):
            erase(pool, [tmp_path / name], ["0" * 32])
