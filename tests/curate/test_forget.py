"""`forget`: nothing of a sample is left anywhere, everything else is as it was, and a kill at any instant changes neither."""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import curate.store
from curate.build import BuildConfig, build
from curate.catalog import Catalog
from curate.executor import Executor
from curate.forget import ForgetReport, ForgetRequest, ForgetTargets
from curate.forgotten import MESSAGE, read_forgotten
from curate.models.answer_cache import AnswerCache
from curate.models.generation import CACHE_FOLDER
from curate.select import Selection, select
from curate.store import Pool
from pipelines.export.source import open_source
from pipelines.forget import describe_forget
from pipelines.forget import forget as run
from schemas.dataset import DatasetIndex
from schemas.errors import InputError, StaleDatasetError
from schemas.progress import SilentProgress
from schemas.sample import STATUS_FORGOTTEN, TAR_LOCATION_KEY
from tests.kill.digests import digest_tree
from tests.pool import COPY_ROW
from tests.taken_down import (
    CAPTION,
    PICTURE,
    ROW,
    SHARD,
    UID,
    URL,
    Scene,
    find_traces,
    make_scene,
    read_pictures,
    tar_names,
)

REQUEST = ForgetRequest(urls=(URL,))


@pytest.fixture(scope="module")
def original(ray_session: Executor, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return make_scene(tmp_path_factory.mktemp("forget") / "work", ray_session)


@pytest.fixture
def scene(original: Scene, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    """The scene as it was made, at the place it was made for: a view and an index of tars know where the pool lies."""
    kept = original.root.with_name("kept")
    if not kept.exists():
        shutil.copytree(original.root, kept)
    scratch = original.root.with_name("scratch")
    scratch.mkdir(exist_ok=True)
    # The trainer's columns of other tests are not this one's.
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    yield original
    shutil.rmtree(original.root)
    shutil.copytree(kept, original.root)


def targets(scene: Scene) -> ForgetTargets:
    return ForgetTargets(
        datasets=(str(scene.root / "datasets"),), caches=(str(scene.cache),), exports=tuple(scene.exports)
    )


def forget(scene: Scene, request: ForgetRequest = REQUEST, *, is_dry: bool = False) -> ForgetReport:
    return run(scene.pool, request, targets(scene), is_dry=is_dry)


def test_nothing_is_left_of_the_sample(scene: Scene) -> None:
    before = find_traces(scene.root)
    places = {path.split("/")[0] for path in before}
    assert places == {"pool", "datasets", "columns", "open-clip", "parquet"}
    assert {path.split("/")[1] for path in before if path.startswith("pool/")} == {
        *("annotations", "cache", "selections", "shards"),
    }
    report = forget(scene)
    assert find_traces(scene.root) == {}
    assert [(row.uid, row.shard, row.row) for row in report.rows] == [(UID, SHARD, ROW)]
    # Every file that held something is in the receipt, with what it was and what it is.
    noted = {change.path: change for change in report.files}
    for path in before:
        place = path.removeprefix("pool/") if path.startswith("pool/") else str(scene.root / path)
        if place.startswith(str(scene.cache)):
            assert str(Path(place).parent) in noted
        else:
            assert noted[place.removesuffix("-wal")].sha256_before, place
    assert report.not_done == []


def test_the_rows_stay_and_say_so(scene: Scene) -> None:
    pool = scene.pool
    before = {shard: pool.read_table(pool.shard_parquet(shard)) for shard in pool.shards()}
    headers = {shard: pool.shard_header(shard) for shard in pool.shards()}
    forget(scene)
    assert {shard: pool.shard_header(shard) for shard in pool.shards()} == headers
    for shard, table in before.items():
        after = pool.read_table(pool.shard_parquet(shard))
        assert after.schema.equals(table.schema, check_metadata=True)
        assert after["uid"].equals(table["uid"])
        others = [row for row in range(table.num_rows) if (shard, row) != (SHARD, ROW)]
        assert after.take(others).equals(table.take(others))
    row = pool.read_table(pool.shard_parquet(SHARD)).to_pylist()[ROW]
    kept = {name: value for name, value in row.items() if value is not None}
    assert kept == {
        "uid": UID,
        "num_occurrences": 1,
        "key": before[SHARD]["key"][ROW].as_py(),
        "status": STATUS_FORGOTTEN,
        "error_message": MESSAGE,
    }
    names = tar_names(Path(pool.locate(f"shards/{SHARD:05d}.tar")))
    assert not [name for name in names if name.startswith(kept["key"])]
    assert len(names) == 3 * sum(status == "success" for status in before[SHARD]["status"].to_pylist()) - 3
    with Catalog(pool) as catalog:
        catalog.require_complete(catalog.labels)
        found = catalog.sql(
            "SELECT b32.error, b32.clip_score, recap.rewrite FROM pool WHERE status = 'forgotten'"
        ).fetchall()
        assert found == [("forgotten", None, None)]
        others = catalog.sql(
            "SELECT count(*) FROM pool WHERE b32.clip_score IS NOT NULL AND recap.recaption IS NOT NULL"
        )
        assert others.fetchall() == [(35,)]
    stats = json.loads(pool.read_bytes(f"shards/{SHARD:05d}_stats.json"))
    assert (stats["count"], stats["successes"]) == (12, 9)


def test_nothing_has_to_be_made_again(scene: Scene, ray_session: Executor) -> None:
    pool = scene.pool
    content = json.loads(pool.read_bytes(f"{_selection(pool)}/selection.json"))
    forget(scene)
    captions = {"recap.recaption": 0.5, "alt_text": 0.3, "recap.rewrite[*]": 0.2}
    selection = Selection(name="all", rules={"good": "b32.clip_score >= 0.02"}, weight="1 + row", captions=captions)
    report = select(pool, selection)
    assert report.was_current
    assert report.num_kept == content["num_kept"] - 1
    for config in (BuildConfig(shard_size=8), BuildConfig(view=True)):
        built = build(
            pool, "all", str(scene.root / "datasets"), config, executor=ray_session, progress=SilentProgress()
        )
        assert (built.num_written, built.num_samples) == (0, report.num_kept)
    for label, target in pool.labels().items():
        headers = {shard: pool.shard_header(shard) for shard in pool.shards()}
        assert pool.missing(target.operator, target.fingerprint, headers) == [], label
    # What a selection made now finds is what the old one was brought to.
    shutil.rmtree(pool.locate(report.folder))
    fresh = select(pool, selection)
    assert (fresh.fingerprint, fresh.num_kept) == (report.fingerprint, report.num_kept)
    # A null score fails the rule as well, which is not claimed of a row that was emptied later.
    funnels = [
        [(row.rule, row.num_first_failing, row.num_remaining) for row in each.funnel] for each in (report, fresh)
    ]
    assert funnels[0] == funnels[1]
    assert fresh.effective_samples == pytest.approx(report.effective_samples)


def test_the_ledger_is_what_a_new_selection_would_write(scene: Scene) -> None:
    pool = scene.pool
    forget(scene)
    folder = _selection(pool)
    tables = {name: pool.read_table(f"{folder}/{name}.parquet") for name in ("ledger", "selected")}
    shutil.rmtree(pool.locate(folder))
    captions = {"recap.recaption": 0.5, "alt_text": 0.3, "recap.rewrite[*]": 0.2}
    select(pool, Selection(name="all", rules={"good": "b32.clip_score >= 0.02"}, weight="1 + row", captions=captions))
    for name, table in tables.items():
        fresh = pool.read_table(f"{folder}/{name}.parquet")
        assert table.schema.equals(fresh.schema, check_metadata=True)
        if name == "selected":
            assert table.equals(fresh)
            continue
        # A null score fails the rule as well, which an emptied ledger row does not claim.
        reasons = table["failing_rules"].to_pylist()
        assert reasons[SHARD * 12 + ROW] == ["downloaded"]
        assert table.drop_columns(["failing_rules"]).equals(fresh.drop_columns(["failing_rules"]))


@pytest.mark.parametrize("kind", ["build", "view"])
def test_datasets_hold_the_others_and_verify(scene: Scene, kind: str) -> None:
    folder = scene.dataset(kind)
    before = read_pictures(folder)
    assert before.pop(UID) == PICTURE
    forget(scene)
    assert read_pictures(folder) == before
    index = DatasetIndex.from_json((folder / "index.json").read_text(), path=str(folder))
    assert index.num_samples == len(before)
    assert index.selection["num_kept"] == len(before)
    if kind == "build":
        sizes = json.loads((folder / "sizes.json").read_text())
        assert sizes == {entry.tar: entry.num_samples for entry in index.shards}


def test_a_shard_that_loses_its_last_sample_goes(original: Scene, scene: Scene) -> None:
    pool = scene.pool
    uids = pool.read_table(f"{_selection(pool)}/selected.parquet", ["uid"])["uid"].to_pylist()
    folder = scene.dataset("build")
    index = DatasetIndex.from_json((folder / "index.json").read_text(), path=str(folder))
    first = index.shards[0].num_samples
    forget(scene, ForgetRequest(uids=tuple(uids[:first])))
    assert not (folder / "00000.tar").exists()
    assert not (folder / "00000.parquet").exists()
    after = DatasetIndex.from_json((folder / "index.json").read_text(), path=str(folder))
    assert [entry.tar for entry in after.shards] == [entry.tar for entry in index.shards[1:]]
    assert len(read_pictures(folder)) == len(uids) - first
    assert len(read_pictures(scene.dataset("view"))) == len(uids) - first


def test_exports_lose_the_sample(scene: Scene) -> None:
    num_before = len(np.load(scene.exports[0]))
    forget(scene)
    subset = np.load(scene.exports[0])
    assert len(subset) < num_before
    assert int(UID[:16], 16) not in subset["f0"].tolist()
    assert (np.sort(subset, order=["f0", "f1"]) == subset).all()
    for name in ("open-clip", "parquet"):
        folder = scene.root / name
        content = json.loads((folder / "export.json").read_text())
        for path, entry in content["files"].items():
            data = (folder / path).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["bytes"], entry["sha256"])
    content = json.loads((scene.root / "open-clip" / "export.json").read_text())
    names = [name for tar in (scene.root / "open-clip").glob("*.tar") for name in tar_names(tar)]
    assert len(names) == 3 * content["num_samples"]
    assert f"--train-num-samples {content['num_samples']}" in content["notes"]["command"]
    assert sum(json.loads((scene.root / "open-clip" / "sizes.json").read_text()).values()) == content["num_samples"]


def test_answers_of_other_samples_stay(scene: Scene) -> None:
    pool = scene.pool
    forget(scene)
    cache = AnswerCache(pool.locate(CACHE_FOLDER))
    uids = pool.read_table(pool.shard_parquet(0), ["uid"])["uid"].to_pylist()
    assert len(cache.find([*uids, UID], ())) == 10
    assert cache.find([UID], ()) == []
    cache.close()


def test_a_receipt_says_everything_and_names_nobody(scene: Scene) -> None:
    before = digest_tree(scene.root)
    report = forget(scene)
    after = digest_tree(scene.root)
    receipt = json.loads(scene.pool.read_bytes(report.receipt))
    assert receipt["rows"] == [{"uid": UID, "shard": SHARD, "row": ROW}]
    assert receipt["asked"]["url"] == [hashlib.sha256(URL.partition("://")[2].encode()).hexdigest()]
    for entry in receipt["files"]:
        path = entry["path"] if entry["path"].startswith("/") else f"{scene.pool.root}/{entry['path']}"
        name = str(Path(path).relative_to(scene.root))
        if name in before:
            assert entry["sha256_before"] == before[name] or name.endswith("_stats.json"), name
            assert entry["sha256_after"] == after[name] or name.endswith("_stats.json"), name
    changed = {name for name in before if before[name] != after.get(name)}
    noted = {entry["path"] for entry in receipt["files"]}
    unnoted = {
        name
        for name in changed
        if not {name.removeprefix("pool/"), str(scene.root / name), str((scene.root / name).parent)} & noted
    }
    assert {Path(name).suffix for name in unnoted} <= {".sqlite-wal", ".sqlite-shm"}
    assert scene.pool.list_names("forgotten/pending/" + report.receipt.rpartition("-")[2].removesuffix(".json")) in (
        [],
        ["changes"],
    )


def test_a_dry_run_names_the_same_files_and_changes_none(scene: Scene) -> None:
    before = digest_tree(scene.root, ignore=("cache",))
    planned = forget(scene, is_dry=True)
    assert digest_tree(scene.root, ignore=("cache",)) == before
    assert planned.receipt == ""
    report = forget(scene)
    ours = {change.path for change in report.files}
    # Counts that follow from the files are not foreseen one by one.
    follow = {path for path in ours if path.endswith(("_stats.json", "sizes.json", "export.json"))}
    assert {change.path for change in planned.files} == ours - follow
    assert "would be rewritten: shards/00001.tar" in describe_forget(planned, is_dry=True)


def test_a_domain_takes_its_subdomains_and_no_other(scene: Scene) -> None:
    assert forget(scene, ForgetRequest(domains=("lice-example.org",))).rows == []
    assert forget(scene, ForgetRequest(domains=("example.org.alice-example.org",))).rows == []
    report = forget(scene, ForgetRequest(domains=("Alice-Example.ORG.",)))
    assert [row.uid for row in report.rows] == [UID]
    assert find_traces(scene.root) == {}
    assert len(forget(scene, ForgetRequest(domains=("example.org",))).rows) == 35


def test_a_sha256_takes_every_copy(scene: Scene) -> None:
    pool = scene.pool
    rows = pool.read_table(pool.shard_parquet(0)).to_pylist()
    by_url = forget(scene, ForgetRequest(urls=(rows[0]["url"],)), is_dry=True)
    assert by_url.related == [rows[COPY_ROW]["uid"]]
    assert rows[COPY_ROW]["uid"] in describe_forget(by_url, is_dry=True)
    report = forget(scene, ForgetRequest(sha256=(rows[0]["sha256"].upper(),)))
    assert [row.uid for row in report.rows] == [rows[0]["uid"], rows[COPY_ROW]["uid"]]
    # Their addresses are never asked again, whatever they are called in a list.
    assert read_forgotten(pool).names("0" * 32, rows[0]["url"])


def test_what_matches_nothing_is_listed_all_the_same(scene: Scene) -> None:
    before = digest_tree(scene.root, ignore=("forgotten", "cache"))
    report = forget(scene, ForgetRequest(urls=("https://elsewhere.example/x.jpg",)))
    assert (report.rows, report.files) == ([], [])
    assert digest_tree(scene.root, ignore=("forgotten", "cache")) == before
    assert read_forgotten(scene.pool).names("0" * 32, "http://ELSEWHERE.example:80/x.jpg#part")
    assert "no sample" in describe_forget(report, is_dry=False)


def test_the_same_request_later_cleans_what_was_not_named_at_first(scene: Scene) -> None:
    run(scene.pool, REQUEST, ForgetTargets())
    left = {path.split("/")[0] for path in find_traces(scene.root)}
    assert left == {"datasets", "columns", "open-clip", "parquet"}
    report = forget(scene)
    assert find_traces(scene.root) == {}
    assert {change.path.split("/")[1] for change in report.files if not change.path.startswith("/")} == set()
    assert len(read_pictures(scene.dataset("view"))) == report_samples(scene)


def test_a_build_notices_what_was_forgotten_in_between(scene: Scene, ray_session: Executor) -> None:
    run(scene.pool, REQUEST, ForgetTargets())

    def again(out: Path) -> Path:
        config = BuildConfig(shard_size=8)
        found = build(scene.pool, "all", str(out), config, executor=ray_session, progress=SilentProgress())
        return Path(found.folder)

    # One that is whole and was not named still holds the sample.
    with pytest.raises(StaleDatasetError, match="some were taken down since; make the same request again with it"):
        again(scene.root / "datasets")
    # One that was stopped goes on with the rows of now.
    folder = scene.dataset("build")
    (folder / "index.json").unlink()
    assert again(scene.root / "datasets") == folder
    shutil.copytree(folder, scene.root / "fresh" / folder.name)
    shutil.rmtree(folder)
    again(scene.root / "datasets")
    assert digest_tree(folder) == digest_tree(scene.root / "fresh" / folder.name)
    assert UID not in read_pictures(folder)


def test_an_imported_tar_is_left_and_named(scene: Scene) -> None:
    pool = scene.pool
    path = pool.shard_parquet(SHARD)
    outside = scene.root / "outside.tar"
    shutil.move(pool.locate(f"shards/{SHARD:05d}.tar"), outside)
    table = pool.read_table(path)
    metadata = {**table.schema.metadata, TAR_LOCATION_KEY: str(outside).encode()}
    pool.commit_table(path, table.replace_schema_metadata(metadata))
    before = outside.read_bytes()
    report = run(pool, REQUEST, ForgetTargets())
    assert outside.read_bytes() == before
    assert [(left.path, "is not the pool's" in left.reason) for left in report.not_done] == [(str(outside), True)]
    assert pool.read_table(path)["status"][ROW].as_py() == STATUS_FORGOTTEN


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (ForgetRequest(), "nothing to forget was named; give --url, --domain, --sha256 or --uid"),
        (ForgetRequest(urls=(" ",)), "--url is empty"),
        (ForgetRequest(domains=("https://example.org/x",)), "without https:// and without a path"),
        (ForgetRequest(domains=("org",)), "is a top-level domain, every site under it would go; write example.org"),
        (ForgetRequest(sha256=("abc",)), "--sha256 'abc' is not 64 hex characters"),
        (ForgetRequest(uids=("ABC",)), "--uid 'ABC' is not 32 lower-case hex characters; `winnow why URL` shows"),
    ],
)
def test_what_cannot_be_forgotten_is_refused_before_anything(
    scene: Scene, request_: ForgetRequest, message: str
) -> None:
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        forget(scene, request_)
    assert not scene.pool.exists("forgotten/list.json")


def test_wrong_folders_are_refused_before_anything(scene: Scene, tmp_path: Path) -> None:
    for wrong, message in (
        (ForgetTargets(datasets=(str(tmp_path),)), "holds no dataset"),
        (ForgetTargets(caches=(str(tmp_path / "none"),)), "is not a folder of this machine"),
        (ForgetTargets(exports=(str(tmp_path),)), "is no export"),
    ):
        with pytest.raises(InputError, match=message):
            run(scene.pool, REQUEST, wrong)
    with pytest.raises(InputError, match="is no pool"):
        run(Pool(tmp_path / "typo"), REQUEST, ForgetTargets())
    assert not (tmp_path / "typo").exists()
    assert not scene.pool.exists("forgotten/list.json")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_kill_at_any_instant_is_finished_by_the_next_run(original: Scene, scene: Scene) -> None:
    report = forget(scene)
    expected = digest_tree(scene.root, ignore=("receipts", "cache", "pending"))
    wanted = {(change.path, change.sha256_before, change.sha256_after) for change in report.files}
    num_commits = 0
    for instant in range(1, 1000, 3):
        _restore(scene)
        if not _killed(scene, instant):
            break
        num_commits = instant
        # The next takedown, of something else, finishes it.
        other = instant // 3 % 2 == 1
        again = run(scene.pool, ForgetRequest(uids=("0" * 32,)), ForgetTargets()) if other else forget(scene)
        assert find_traces(scene.root) == {}, instant
        names = scene.pool.list_names("forgotten/receipts")
        receipts = [json.loads(scene.pool.read_bytes(f"forgotten/receipts/{name}")) for name in names]
        (found,) = [receipt for receipt in receipts if receipt["rows"]]
        assert other or found == json.loads(json.dumps(again.to_dict()))
        if not other:
            assert digest_tree(scene.root, ignore=("receipts", "cache", "pending")) == expected, instant
        changes = {(entry["path"], entry["sha256_before"], entry["sha256_after"]) for entry in found["files"]}
        named = {path for path, _, _ in wanted if not path.startswith(str(scene.cache)) and "sqlite" not in path}
        assert {entry for entry in changes if entry[0] in named} == {entry for entry in wanted if entry[0] in named}, (
            instant
        )
    assert num_commits > 30


def test_a_receipt_stays_as_it_is_when_its_notes_are_half_removed(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[str] = []

    def remove(pool: Pool, path: str) -> None:
        if len(removed) == 3:
            raise KeyboardInterrupt
        removed.append(path)
        Path(pool.locate(path)).unlink()

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Pool, "remove", remove)
        forget(scene)
    (name,) = scene.pool.list_names("forgotten/receipts")
    receipt = scene.pool.read_bytes(f"forgotten/receipts/{name}")
    again = forget(scene)
    assert (again.rows, again.files) == ([], [])
    assert len(scene.pool.list_names("forgotten/receipts")) == 2
    assert scene.pool.read_bytes(f"forgotten/receipts/{name}") == receipt
    assert [entry for entry in json.loads(receipt)["files"] if UID in entry["uids"]]
    assert not [path for path in Path(scene.pool.locate("forgotten/pending")).rglob("*") if path.is_file()]


def _killed(scene: Scene, instant: int) -> bool:
    """Run a takedown in a process that kills itself at the so-many-th rename; False where it ended before."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipelines.forget", "tests.taken_down"])
    process = context.Process(target=_forget_and_die, args=(scene.root, instant, tempfile.tempdir))
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def _forget_and_die(root: Path, instant: int, scratch: str) -> None:
    tempfile.tempdir = scratch
    publish = curate.store.publish
    count = 0

    def die(staging: Path, target: Path) -> None:
        nonlocal count
        count += 1
        if count == instant:
            os.kill(os.getpid(), signal.SIGKILL)
        publish(staging, target)

    curate.store.publish = die
    forget(Scene(root))


def _restore(scene: Scene) -> None:
    shutil.rmtree(scene.root)
    shutil.copytree(scene.root.with_name("kept"), scene.root)


def _selection(pool: Pool) -> str:
    return f"selections/{pool.list_names('selections')[0]}"


def report_samples(scene: Scene) -> int:
    return open_source(str(scene.dataset("build"))).num_samples


def test_the_words_are_in_no_name(scene: Scene) -> None:
    """A takedown's own files are part of the pool: they are found by the same search."""
    forget(scene)
    names = [str(path.relative_to(scene.root)) for path in scene.root.rglob("*")]
    assert not [name for name in names if "alice" in name]
    assert CAPTION not in "".join(path.read_text() for path in (scene.root / "pool/forgotten").rglob("*.json"))
