"""DataComp's subset file, read as its resharder reads it: np.load, the type u8,u8, binary search on both sides of a uid."""

import json
import shlex
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from curate.build import BuildConfig, build
from curate.executor import Executor
from curate.select import select
from curate.selection import Selection
from curate.store import Pool
from pipelines.export.datacomp import export
from pipelines.export.source import open_source
from schemas.errors import InputError
from schemas.progress import SilentProgress
from tests.curate.pool_builder import annotated_pool

U16 = np.dtype("u8,u8")


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    pool = annotated_pool(tmp_path_factory.mktemp("datacomp") / "pool")
    select(pool, Selection(name="plain"))
    select(pool, Selection(name="weighted", weight="1 + row % 3"))
    return pool


def kept(pool: Pool, name: str) -> dict[str, float]:
    (folder,) = [found for found in pool.list_names("selections") if found.startswith(name)]
    rows = pool.read_table(f"selections/{folder}/selected.parquet").to_pylist()
    return {row["uid"]: row["weight"] for row in rows}


def copies_found(path: Path, uid: str) -> int:
    """Count a uid as the resharder does."""
    subset = np.load(path, mmap_mode="r")
    assert subset.dtype == U16
    key = np.array([divmod(int(uid, 16), 2**64)], U16)[0]
    return int(np.searchsorted(subset, key, "right") - np.searchsorted(subset, key, "left"))


def test_every_selected_uid_is_found_once_and_no_other(pool: Pool, tmp_path: Path) -> None:
    out = tmp_path / "subset.npy"
    report = export(open_source("plain", pool.root), str(out))
    chosen = kept(pool, "plain")
    assert report.num_samples == len(chosen) == len(np.load(out))
    assert all(copies_found(out, uid) == 1 for uid in chosen)
    others = set(pool.read_table("shards/00000.parquet")["uid"].to_pylist()) - set(chosen)
    assert others
    assert not any(copies_found(out, uid) for uid in others)


def test_the_bytes_are_those_of_np_save_of_the_sorted_uids(pool: Pool, tmp_path: Path) -> None:
    export(open_source("plain", pool.root), str(tmp_path / "ours.npy"))
    pairs = sorted((int(uid[:16], 16), int(uid[16:], 16)) for uid in kept(pool, "plain"))
    np.save(tmp_path / "numpy.npy", np.array(pairs, U16))
    assert (tmp_path / "ours.npy").read_bytes() == (tmp_path / "numpy.npy").read_bytes()


def test_weights_are_repeated_uids(pool: Pool, tmp_path: Path) -> None:
    chosen = kept(pool, "weighted")
    out = tmp_path / "subset.npy"
    # At the sum of the weights every weight is a whole number of copies.
    report = export(open_source("weighted", pool.root), str(out), num_samples=int(sum(chosen.values())))
    assert {uid: copies_found(out, uid) for uid in chosen} == chosen
    assert report.num_samples == sum(chosen.values())
    few = export(open_source("weighted", pool.root), str(tmp_path / "few.npy"), num_samples=5)
    assert few.num_left_out == sum(not copies_found(tmp_path / "few.npy", uid) for uid in chosen) > 0
    export(open_source("weighted", pool.root), str(tmp_path / "once.npy"), is_weighted=False)
    assert Counter(np.load(tmp_path / "once.npy").tolist()).most_common(1)[0][1] == 1


def read_uids(tar: Path) -> list[str]:
    """Return the uid of every sample of a tar, where the resharder looks for it: in the JSON beside the picture."""
    with tarfile.open(tar) as file:
        members = [file.extractfile(name) for name in file.getnames() if name.endswith(".json")]
        return [json.loads(member.read())["uid"] for member in members if member]


@pytest.mark.parametrize("kind", ["selection", "dataset", "view"])
def test_the_command_finds_every_copy_in_the_tars(pool: Pool, ray_session: Executor, tmp_path: Path, kind: str) -> None:
    """Its reading: number the tars, take the uid of each sample's JSON, write it as often as it is found in the subset."""
    where = "weighted"
    if kind != "selection":
        config = BuildConfig(view=True) if kind == "view" else BuildConfig(shard_size=7)
        where = build(pool, where, str(tmp_path), config, executor=ray_session, progress=SilentProgress()).folder
    out = tmp_path / "sub set.npy"
    report = export(open_source(where, pool.root), str(out))
    words = shlex.split(str(report.notes["command"]))
    assert words[:5] == ["mkdir", "OUT", "&&", "python", "resharder.py"]
    flags = dict(zip(words[5::2], words[6::2], strict=True))
    assert (flags["-s"], flags["-o"]) == (str(out), "OUT")
    folder = Path(flags["-i"])
    assert folder == (Path(pool.locate("shards")) if kind != "dataset" else Path(where))
    tars = [folder / flags["--shard-format"].format(number) for number in range(int(flags["-n"]))]
    assert tars == sorted(folder.glob("*.tar"))
    # How many samples each holds is in its statistics, or for all in one table.
    sizes = json.loads((folder / "sizes.json").read_text()) if kind == "dataset" else {}
    found = 0
    for number, tar in enumerate(tars):
        uids = read_uids(tar)
        stats = folder / flags["--shard-stats-format"].format(number)
        assert len(uids) == (sizes[tar.name] if sizes else json.loads(stats.read_text())["successes"])
        found += sum(copies_found(out, uid) for uid in uids)
    assert found == report.num_samples == len(np.load(out))


def test_tars_of_several_folders_have_no_command(pool: Pool, ray_session: Executor, tmp_path: Path) -> None:
    built = build(pool, "plain", str(tmp_path), BuildConfig(view=True), executor=ray_session, progress=SilentProgress())
    path = Path(built.folder, "index.json")
    path.write_text(path.read_text().replace("/shards/00001.tar", "/elsewhere/00001.tar"))
    assert "command" not in export(open_source(built.folder), str(tmp_path / "subset.npy")).notes


def test_a_dataset_gives_the_same_file_as_its_selection(pool: Pool, ray_session: Executor, tmp_path: Path) -> None:
    built = build(
        pool, "weighted", str(tmp_path), BuildConfig(shard_size=7), executor=ray_session, progress=SilentProgress()
    )
    export(open_source(built.folder), str(tmp_path / "dataset.npy"))
    export(open_source("weighted", pool.root), str(tmp_path / "selection.npy"))
    assert (tmp_path / "dataset.npy").read_bytes() == (tmp_path / "selection.npy").read_bytes()


def test_an_existing_file_is_proven_the_same_or_refused(pool: Pool, tmp_path: Path) -> None:
    out = tmp_path / "subset.npy"
    assert not export(open_source("plain", pool.root), str(out)).was_current
    assert export(open_source("plain", pool.root), str(out)).was_current
    before = out.read_bytes()
    with pytest.raises(InputError, match="exists and holds something else"):
        export(open_source("weighted", pool.root), str(out), num_samples=5)
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["subset.npy"]


def test_a_file_in_an_object_store(pool: Pool) -> None:
    import fsspec

    out = "memory://export-datacomp/subset.npy"
    assert export(open_source("plain", pool.root), out).location.endswith("/export-datacomp/subset.npy")
    assert export(open_source("plain", pool.root), out).was_current
    with fsspec.open(out) as file:
        assert len(np.load(file)) == len(kept(pool, "plain"))
