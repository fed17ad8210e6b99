"""What a dry run says of shards that came, went or changed, and of operators that became others."""

import textwrap
from pathlib import Path

import pytest

from curate.annotate import annotate, parse_operator
from curate.effort import BENCHMARK, MEASURED, SIMILAR, UNKNOWN
from curate.executor import Executor
from curate.lineage import LINEAGE_FILE, read_lineage
from curate.operator import Operator
from curate.outlook import NEVER, Outlook, preview
from curate.store import Pool
from tests.pool import make_rows, write_shard

LIGHT = ("caption_stats", "exact_dedup")


def write_operator(folder: Path, name: str, *, reads: str, version: int = 1, scale: int = 2) -> Operator:
    """Write an operator file that multiplies a number, and return its operator."""
    path = folder / f"{name}.py"
    path.write_text(
        textwrap.dedent(
            f"""
            from dataclasses import dataclass
            import pyarrow as pa
            from curate.operator import ShardOperator

            @dataclass(frozen=True, kw_only=True)
            class Own(ShardOperator):
                "A test's operator."

                name = "{name}"
                version = {version}
                reads = ("{reads}",)
                writes = pa.schema([("{name}_number", pa.int64())])

                factor: int = 1

                def load(self):
                    return lambda batch: {{
                        "{name}_number": [{scale} * self.factor * value for value in batch.column(0).to_pylist()]
                    }}
            """
        )
    )
    return parse_operator(str(path))


def reasons(outlook: Outlook) -> dict[str, str]:
    return {entry.label: entry.reason for entry in outlook.operators}


def todo(outlook: Outlook) -> dict[str, tuple[int, int]]:
    return {entry.label: (entry.num_todo, entry.num_rows) for entry in outlook.operators}


def stored(pool: Pool) -> dict[str, bytes]:
    root = Path(pool.root) / "annotations"
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.parquet"))}


def test_new_shards_and_what_covers_the_whole_pool(tiny_pool: Pool, ray_session: Executor) -> None:
    operators = [parse_operator(name) for name in LIGHT]
    before = preview(tiny_pool, operators)
    assert reasons(before) == dict.fromkeys(LIGHT, NEVER)
    assert {entry.rate_source for entry in before.operators} == {BENCHMARK}
    assert not before.is_current
    assert before.seconds > 0
    assert not tiny_pool.exists("annotations"), "a preview writes nothing"
    report = annotate(tiny_pool, operators, executor=ray_session)
    assert [entry.reason for entry in report.operators] == [NEVER, NEVER]
    assert preview(tiny_pool, operators).is_current
    assert preview(tiny_pool, operators).seconds == 0

    first = stored(tiny_pool)
    write_shard(tiny_pool, 2, make_rows(12, seed=2))
    outlook = preview(tiny_pool, operators)
    assert todo(outlook) == {"caption_stats": (1, 12), "exact_dedup": (3, 36)}
    assert reasons(outlook) == {
        "caption_stats": "1 shard new",
        "exact_dedup": "1 shard new; pool-wide: every row is computed again, for each may decide about others",
    }
    assert {entry.rate_source for entry in outlook.operators} == {MEASURED}
    report = annotate(tiny_pool, operators, executor=ray_session)
    assert [(entry.num_shards, entry.num_shards_current) for entry in report.operators] == [(1, 2), (3, 0)]
    assert [entry.reason for entry in report.operators] == list(reasons(outlook).values())
    after = stored(tiny_pool)
    assert {path for path in first if after[path] != first[path]} == {path for path in first if "exact_dedup" in path}


def test_a_gap_is_a_run_that_stopped_and_other_rows_are_a_changed_shard(tiny_pool: Pool, ray_session: Executor) -> None:
    operators = [parse_operator(name) for name in LIGHT]
    annotate(tiny_pool, operators, executor=ray_session)
    for name in LIGHT:
        next(Path(tiny_pool.locate(f"annotations/{name}")).rglob("00000.parquet")).unlink()
    assert reasons(preview(tiny_pool, operators)) == {
        "caption_stats": "1 shard left by a run that stopped",
        "exact_dedup": "1 shard left by a run that stopped; pool-wide: computed from all rows, written where it is missing",
    }
    annotate(tiny_pool, operators, executor=ray_session)
    write_shard(tiny_pool, 1, make_rows(12, seed=9))
    outlook = preview(tiny_pool, operators)
    assert reasons(outlook)["caption_stats"] == "1 shard changed"
    assert reasons(outlook)["exact_dedup"].startswith("1 shard changed; pool-wide: every row is computed again")


def test_a_changed_version_concerns_its_readers_and_nobody_else(
    tiny_pool: Pool, tmp_path: Path, ray_session: Executor
) -> None:
    first = write_operator(tmp_path, "first", reads="original_width")
    second = write_operator(tmp_path, "second", reads="first_number")
    third = write_operator(tmp_path, "third", reads="second_number")
    other = write_operator(tmp_path, "other", reads="original_height")
    annotate(tiny_pool, [first, second, third, other], executor=ray_session)
    before = stored(tiny_pool)

    first = write_operator(tmp_path, "first", reads="original_width", version=2, scale=3)
    outlook = preview(tiny_pool, [first, second, third, other])
    assert reasons(outlook) == {
        "first": "version 1 became 2",
        "second": "reads first, which changed",
        "third": "reads second, which changed",
        "other": "",
    }
    assert [entry.rate_source for entry in outlook.operators] == [SIMILAR, SIMILAR, SIMILAR, MEASURED]
    assert outlook.outdated == {}
    assert preview(tiny_pool, [first]).outdated == {"second": ["first"], "third": ["first"]}
    report = annotate(tiny_pool, [first, second, third, other], executor=ray_session)
    assert [entry.num_shards for entry in report.operators] == [2, 2, 2, 0]
    after = stored(tiny_pool)
    assert {path: after[path] for path in before} == before, "what was there stays beside the new"
    assert {path.split("/")[0] for path in after.keys() - before.keys()} == {"first", "second", "third"}
    assert len(read_lineage(tiny_pool)) == 7


def test_parameters_and_files_that_changed_are_named(tiny_pool: Pool, tmp_path: Path, ray_session: Executor) -> None:
    own = write_operator(tmp_path, "own", reads="original_width")
    annotate(tiny_pool, [own, parse_operator("caption_stats")], executor=ray_session)
    assert reasons(preview(tiny_pool, [parse_operator(f"{tmp_path}/own.py:factor=7")])) == {"own": "factor changed"}
    edited = write_operator(tmp_path, "own", reads="original_width", scale=5)
    assert reasons(preview(tiny_pool, [edited])) == {"own": "its file changed"}
    bound = parse_operator("caption_stats:bind.alt_text=url")
    assert reasons(preview(tiny_pool, [bound])) == {"caption_stats": "reads other columns"}


def test_a_reader_of_a_pool_wide_operator_follows_it(tiny_pool: Pool, tmp_path: Path, ray_session: Executor) -> None:
    operators = [parse_operator("exact_dedup"), write_operator(tmp_path, "copies", reads="pair_num_copies")]
    annotate(tiny_pool, operators, executor=ray_session)
    write_shard(tiny_pool, 2, make_rows(12, seed=2))
    assert reasons(preview(tiny_pool, operators))["copies"] == (
        "1 shard new; reads exact_dedup, which is computed from all rows"
    )


def test_what_nobody_measured_is_said(tiny_pool: Pool, tmp_path: Path) -> None:
    outlook = preview(tiny_pool, [write_operator(tmp_path, "own", reads="original_width"), parse_operator("language")])
    assert outlook.unmeasured == ("own",)
    assert outlook.operators[0].rate_source == UNKNOWN
    assert outlook.operators[0].seconds is None
    assert outlook.operators[1].seconds == pytest.approx(24 * 42e-6)


def test_without_lineage_nothing_is_computed_differently(
    tiny_pool: Pool, tmp_path: Path, ray_session: Executor
) -> None:
    operators = [write_operator(tmp_path, "first", reads="original_width")]
    annotate(tiny_pool, operators, executor=ray_session)
    tiny_pool.remove(LINEAGE_FILE)
    assert preview(tiny_pool, operators).is_current
