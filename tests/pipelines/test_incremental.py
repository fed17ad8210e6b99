"""A second list appended to a pool: its new URLs become new shards, and only those are annotated."""

from pathlib import Path

from curate.executor import Executor
from curate.fetch.ingest import ingest
from curate.store import Pool
from pipelines.recipe import Recipe, load_recipe
from pipelines.run import Step, plan, run
from tests.pipelines.web import serve_pairs

RECIPE = """\
name: tiny
download: {image_size: 48, shard_size: 8, allow_private: true, retries: 0, respect_robots: false}
annotate: [caption_stats, exact_dedup]
select: {rules: {words: caption_num_words >= 1}}
"""


def split(path: Path, first: int, last: int, name: str) -> str:
    """Write some rows of a list as a list of their own."""
    head, *rows = path.read_text().splitlines()
    target = path.with_name(name)
    target.write_text("\n".join([head, *rows[first:last]]) + "\n")
    return str(target)


def annotate_step(recipe: Recipe, root: Path) -> Step:
    steps = {step.stage: step for step in plan(recipe, str(root / "pool"), str(root / "out"))}
    return steps["annotate"]


def files(pool: Pool, folder: str) -> dict[str, tuple[bytes, int]]:
    root = Path(pool.locate(folder))
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


def test_a_second_list_brings_new_shards_and_only_they_are_annotated(tmp_path: Path, ray_session: Executor) -> None:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    recipe = load_recipe(tmp_path / "tiny.yaml")
    pool, out = Pool(tmp_path / "pool"), str(tmp_path / "out")
    with serve_pairs(tmp_path / "all.csv", num_pairs=26):
        first = recipe.with_input([split(tmp_path / "all.csv", 0, 16, "first.csv")])
        second = recipe.with_input([split(tmp_path / "all.csv", 8, 26, "second.csv")])
        run(first, pool.root, out, executor=ray_session)
        assert pool.shards() == [0, 1]
        shards, annotations = files(pool, "shards"), files(pool, "annotations")
        uids = {uid for shard in (0, 1) for uid in pool.read_table(pool.shard_parquet(shard))["uid"].to_pylist()}

        # Before the list is read only the pool itself is known; once it is planned, so is what it will bring.
        assert annotate_step(second, tmp_path).text.startswith("up to date")
        ingest(second.input.urls, pool, second.download)
        step = annotate_step(second, tmp_path)
        assert not step.is_current
        assert step.lines[-1].startswith("and 2 shards of 10 rows that are to be fetched first, about ")
        report = run(second, pool.root, out, executor=ray_session)

    assert pool.shards() == [0, 1, 2, 3]
    new = [uid for shard in (2, 3) for uid in pool.read_table(pool.shard_parquet(shard))["uid"].to_pylist()]
    assert len(new) == len(set(new)) == 10
    assert not uids & set(new), "what the pool had is not fetched again"
    assert {name: entry for name, entry in files(pool, "shards").items() if name in shards} == shards
    now = files(pool, "annotations")
    same = {name for name in annotations if now[name] == annotations[name]}
    assert {name for name in annotations if "caption_stats" in name} <= same
    assert not {name for name in same if "exact_dedup" in name}, "copies are looked for among all rows"
    assert "download" not in report.current
    assert annotate_step(second, tmp_path).is_current


def test_a_run_says_why_it_annotates_again(tmp_path: Path, ray_session: Executor) -> None:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    recipe = load_recipe(tmp_path / "tiny.yaml")
    pool = Pool(tmp_path / "pool")
    with serve_pairs(tmp_path / "all.csv", num_pairs=12):
        lists = [split(tmp_path / "all.csv", *part) for part in ((0, 8, "first.csv"), (8, 12, "second.csv"))]
        bare = recipe.model_copy(update={"annotate": (), "select": None})
        run(recipe.with_input(lists[:1]), pool.root, str(tmp_path / "out"), executor=ray_session)
        run(bare.with_input(lists[1:]), pool.root, str(tmp_path / "out"), executor=ray_session)
    step = annotate_step(recipe, tmp_path)
    assert step.text == "to do: caption_stats 1 of 2 shards, exact_dedup 2 of 2 shards"
    assert step.lines[0].startswith("caption_stats: 1 of 2 shards done, 1 to do, under 1 s (1 shard new)")
    assert step.lines[1].endswith(
        "(1 shard new; pool-wide: every row is computed again, for each may decide about others)"
    )
    assert step.lines[2].startswith("about ")
    said: list[str] = []
    run(
        recipe,
        pool.root,
        str(tmp_path / "out"),
        executor=ray_session,
        say=lambda content: said.append(content if isinstance(content, str) else ""),
    )
    assert said[0].startswith("download: up to date")
