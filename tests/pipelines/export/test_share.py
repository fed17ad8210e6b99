"""Sets without pictures: fetched again from a real server, by the recipe that comes with them, and the same in the end."""

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from curate.executor import Executor
from curate.fetch.config import DownloadConfig
from curate.fetch.download import download
from curate.select import select
from curate.selection import Selection
from curate.store import Pool
from pipelines.cli import app
from pipelines.export.share import export
from pipelines.export.source import DatasetSource, SelectionSource, open_source
from schemas.errors import InputError, MissingColumnsError
from schemas.progress import SilentProgress
from tests.curate.pool_builder import REWRITES, annotate_shard
from tests.pipelines.export.datasets import make_selections, read_rows
from tests.pool import draw, jpeg
from tests.webserver import WebServer

NUM_PAIRS = 20
CAPTIONS = {"recap.recaption": 0.5, "alt_text": 0.3, "recap.rewrite[*]": 0.2}


@pytest.fixture(scope="module")
def server() -> "object":
    with WebServer() as server:
        for number in range(NUM_PAIRS):
            server.add(f"/{number}.jpg", jpeg(draw((200, 30, 40), "square", seed=number)))
        yield server


@pytest.fixture(scope="module")
def pool(server: WebServer, ray_session: Executor, tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """A pool that was downloaded, with captions of every kind."""
    folder = tmp_path_factory.mktemp("share")
    with (folder / "list.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["url", "caption"])
        writer.writerows([server.url(f"/{n}.jpg"), f'a square, "{n}"' if n % 4 else ""] for n in range(NUM_PAIRS))
    pool = Pool(folder / "pool")
    config = DownloadConfig(image_size=48, shard_size=8, allow_private=True, retries=0)
    download(str(folder / "list.csv"), pool, config, executor=ray_session, progress=SilentProgress())
    for shard in pool.shards():
        rows = range(pool.shard_header(shard).num_rows)
        texts = {
            "recaption": [f"recaption {shard}-{row}" for row in rows],
            "rewrite": [[f"rewrite {shard}-{row}-{n}" for n in range(row % 3)] for row in rows],
        }
        annotate_shard(pool, shard, "recap", texts, REWRITES, operator="recap")
    select(pool, Selection(name="some", rules={"odd": "row % 3 > 0"}, weight="1 + row", captions=CAPTIONS))
    return pool


def selection(pool: Pool, name: str = "some") -> SelectionSource:
    source = open_source(name, pool.root)
    assert isinstance(source, SelectionSource)
    return source


def rebuild(folder: Path, out: Path) -> DatasetSource:
    arguments = ["run", str(folder / "recipe.yaml"), "--input", str(folder / "samples"), "--pool", str(out / "pool")]
    arguments += ["--out", str(out), "--set", "download.allow_private=true", "--set", "download.retries=0"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, f"{result.stderr} {result.exception!r}"
    (built,) = (out / "datasets").iterdir()
    source = open_source(str(built))
    assert isinstance(source, DatasetSource)
    return source


def test_a_set_is_rebuilt_with_the_same_uids_captions_and_weights(
    pool: Pool, ray_session: Executor, tmp_path: Path
) -> None:
    chosen = selection(pool)
    report = export(chosen, str(tmp_path / "share"), executor=ray_session, progress=SilentProgress(), shard_size=7)
    assert not list((tmp_path / "share").rglob("*.tar"))
    found = {str(row["uid"]): row for row in read_rows(rebuild(tmp_path / "share", tmp_path / "again"))}
    wanted = chosen.read(
        0,
        chosen.num_samples,
        {"caption": "caption", "url": "url", "recaption": "recap.recaption", "rewrite": "recap.rewrite"},
    ).to_pylist()
    assert report.num_samples == len(wanted) == len(found)
    for row in wanted:
        again = found[row["uid"]]
        assert (again["url"], again["alt_text"]) == (row["url"], row["caption"] or "")
        assert again["recap_recaption"] == row["recaption"]
        assert again["recap_rewrite"] == row["rewrite"]
        assert again["weight"] == row["weight"]
    # The very pictures, stored as they were: the recipe has the pool's own settings.
    images = {}
    for shard in pool.shards():
        for entry in pool.read_table(pool.shard_parquet(shard)).to_pylist():
            images[entry["uid"]] = entry["sha256"]
    rebuilt = Pool(tmp_path / "again" / "pool")
    for shard in rebuilt.shards():
        for entry in rebuilt.read_table(rebuilt.shard_parquet(shard)).to_pylist():
            assert (entry["status"], entry["sha256"]) == ("success", images[entry["uid"]])


def test_a_picture_that_changed_since_is_left_out(
    server: WebServer, pool: Pool, ray_session: Executor, tmp_path: Path
) -> None:
    export(selection(pool), str(tmp_path / "share"), executor=ray_session, progress=SilentProgress())
    row = pq.read_table(tmp_path / "share/samples").to_pylist()[0]
    path = "/" + row["url"].rpartition("/")[2]
    server.add(path, jpeg(draw((1, 2, 3), "circle", seed=999)))
    try:
        found = {row["uid"] for row in read_rows(rebuild(tmp_path / "share", tmp_path / "again"))}
    finally:
        server.add(path, jpeg(draw((200, 30, 40), "square", seed=int(path[1:-4]))))
    assert row["uid"] not in found
    assert len(found) == selection(pool).num_samples - 1
    again = Pool(tmp_path / "again/pool")
    rows = [entry for shard in again.shards() for entry in again.read_table(again.shard_parquet(shard)).to_pylist()]
    assert {entry["error_message"] for entry in rows if entry["uid"] == row["uid"]} == {"hash mismatch"}


def test_scores_are_those_that_the_rules_read_or_those_named(ray_session: Executor, tmp_path: Path) -> None:
    pool = make_selections(tmp_path / "pool")
    select(pool, Selection(name="scored", rules={"good": "b32.clip_score > 1"}))

    def run(out: str, **settings: tuple[str, ...]) -> list[str]:
        report = export(
            selection(pool, "scored"), str(tmp_path / out), executor=ray_session, progress=SilentProgress(), **settings
        )
        assert report.num_samples > 0
        return pq.read_table(tmp_path / out / "samples").column_names

    own = ["uid", "shared_weight", "url", "sha256", "caption"]
    assert run("all") == [*own, "b32_clip_score"]
    assert run("named", columns=("words.caption_num_words",)) == [*own, "words_caption_num_words"]
    with pytest.raises(InputError, match=r"--column names 'words\.nothing', which"):
        run("none", columns=("words.nothing",))
    target = pool.labels()["b32"]
    pool.remove(pool.annotation_path(target.operator, target.fingerprint, 1))
    with pytest.raises(MissingColumnsError, match=r"b32 has no current annotation of 1 of 3 shards"):
        run("gone")


def test_what_nobody_can_fetch_is_refused(ray_session: Executor, tmp_path: Path) -> None:
    pool = make_selections(tmp_path / "pool")
    path = pool.shard_parquet(0)
    table = pool.read_table(path)
    urls = [f"file:///home/{n}" for n in range(table.num_rows)]
    pool.commit_table(path, table.set_column(table.schema.get_field_index("url"), "url", [urls]))
    from schemas.errors import ShardError

    with pytest.raises(ShardError, match="has the URL 'file:///home/0', which nobody can fetch; drop such rows"):
        export(selection(pool, "plain"), str(tmp_path / "out"), executor=ray_session, progress=SilentProgress())
    assert json.loads(pool.read_bytes(f"{selection(pool, 'plain').folder}/selection.json"))["num_kept"]
    assert not (tmp_path / "out").exists()
