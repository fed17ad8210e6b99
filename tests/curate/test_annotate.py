"""Annotation end to end under real Ray: one pass, resume, staleness, labels, bindings, failures."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from curate.annotate import annotate, parse_operator
from curate.effort import LOG_FILE
from curate.executor import Executor
from curate.store import LabelTarget, Pool
from schemas.annotation import AnnotationHeader
from schemas.errors import ContractError, InputError, MissingColumnsError, ShardError
from tests.curate.pool_builder import find_missing
from tests.model import make_checkpoint, make_siglip
from tests.pool import COPY_ROW, CORRUPT_ROW, FAILED_ROWS, make_pool, make_rows, write_shard

LIGHT = ("image_stats", "caption_stats", "language", "perceptual_hash", "exact_dedup")


def files(pool: Pool) -> dict[str, bytes]:
    root = Path(pool.root) / "annotations"
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.parquet"))}


def write_operator(folder: Path, body: str, *, name: str = "own", reads: str = '("alt_text",)') -> str:
    """Write a user's operator file whose `annotate(batch)` is `body`, and return its path."""
    path = folder / f"{name}.py"
    path.write_text(
        textwrap.dedent(
            f"""
            import os, signal, time
            from dataclasses import dataclass
            from pathlib import Path
            import pyarrow as pa
            from curate.operator import Resources, ShardOperator

            @dataclass(frozen=True, kw_only=True)
            class Own(ShardOperator):
                "A test's operator."

                name = "{name}"
                version = 1
                reads = {reads}
                writes = pa.schema([("own_length", pa.int32())])

                folder: str = "."

                def load(self):
                    folder = Path(self.folder)

                    def annotate(batch):
                        lengths = [len(text) for text in batch.column(0).to_pylist()]
            """
        )
        + textwrap.indent(textwrap.dedent(body), " " * 12)
        + "\n        return annotate\n"
    )
    return str(path)


def read_label(pool: Pool, label: str, shard: int = 0) -> list[dict[str, object]]:
    target = pool.labels()[label]
    return list(pool.read_table(pool.annotation_path(target.operator, target.fingerprint, shard)).to_pylist())


def test_every_operator_gets_a_file_for_every_shard(ray_session: Executor, tiny_pool: Pool) -> None:
    report = annotate(tiny_pool, [parse_operator(name) for name in LIGHT], executor=ray_session)
    assert [(line.sql_name, line.num_shards, line.num_rows) for line in report.operators] == [(n, 2, 24) for n in LIGHT]
    assert len(files(tiny_pool)) == 10
    for shard in (0, 1):
        header = tiny_pool.shard_header(shard)
        for name in LIGHT:
            target = tiny_pool.labels()[name]
            stored = tiny_pool.annotation_header(target.operator, target.fingerprint, shard)
            assert stored is not None
            assert stored.shard_digest == header.shard_digest
            assert stored.uid_digest == header.uid_digest
            assert bool(stored.pool_digest) == (name == "exact_dedup")
            table = tiny_pool.read_table(tiny_pool.annotation_path(target.operator, target.fingerprint, shard))
            uids = tiny_pool.read_table(tiny_pool.shard_parquet(shard), columns=["uid"]).column("uid")
            assert table.column("uid").to_pylist() == uids.to_pylist()
    stats = read_label(tiny_pool, "image_stats")
    assert [stats[row]["error"] for row in FAILED_ROWS] == [
        "no image: HTTP Error 404: Not Found",
        "no image: Image decoding error",
    ]
    assert stats[CORRUPT_ROW]["error"] == "Image decoding error: truncated JPEG"
    assert read_label(tiny_pool, "exact_dedup")[COPY_ROW]["pair_num_copies"] == 2
    assert report.operators[0].num_errors == 6


def test_a_second_run_does_nothing_and_another_operator_only_itself(ray_session: Executor, tiny_pool: Pool) -> None:
    first, second = parse_operator("caption_stats"), parse_operator("language")
    annotate(tiny_pool, [first], executor=ray_session)
    before = files(tiny_pool)
    assert find_missing(tiny_pool, [first, second]) == {"caption_stats": [], "language": [0, 1]}
    again = annotate(tiny_pool, [first], executor=Executor())
    assert (again.operators[0].num_shards, again.operators[0].num_shards_current) == (0, 2)
    report = annotate(tiny_pool, [first, second], executor=ray_session)
    assert [line.num_shards for line in report.operators] == [0, 2]
    assert {path: data for path, data in files(tiny_pool).items() if path in before} == before
    lines = [json.loads(line) for line in (Path(tiny_pool.root) / LOG_FILE).read_text().splitlines()]
    assert [(line["operators"], line["rows"]) for line in lines] == [(["caption_stats"], 12)] * 2 + [
        (["language"], 12)
    ] * 2


def test_a_changed_shard_is_annotated_again_and_pool_wide_operators_everywhere(
    ray_session: Executor, tiny_pool: Pool
) -> None:
    operators = [parse_operator("caption_stats"), parse_operator("exact_dedup")]
    annotate(tiny_pool, operators, executor=ray_session)
    write_shard(tiny_pool, 1, make_rows(9, seed=77))
    assert find_missing(tiny_pool, operators) == {"caption_stats": [1], "exact_dedup": [0, 1]}
    annotate(tiny_pool, operators, executor=ray_session)
    assert find_missing(tiny_pool, operators) == {"caption_stats": [], "exact_dedup": []}
    assert len(read_label(tiny_pool, "caption_stats", shard=1)) == 9


def test_text_operators_do_not_open_the_tar(ray_session: Executor, tiny_pool: Pool) -> None:
    for shard in (0, 1):
        tiny_pool.remove(f"shards/{shard:05d}.tar")
    annotate(tiny_pool, [parse_operator("caption_stats")], executor=ray_session)
    with pytest.raises(ShardError, match="2 of 2 shards") as caught:
        annotate(tiny_pool, [parse_operator("image_stats")], executor=ray_session)
    assert "FileNotFoundError" in caught.value.failures["00001"]


def test_a_shard_that_fails_is_listed_and_the_others_are_committed(
    ray_session: Executor, tiny_pool: Pool, tmp_path: Path
) -> None:
    path = write_operator(
        tmp_path,
        """
        if (folder / "broken").exists() and "1/" in batch.column(1)[0].as_py():
            raise OSError("no such model today")
        return {"own_length": lengths}
        """,
        reads='("alt_text", "url")',
    )
    (tmp_path / "broken").touch()
    operator = parse_operator(f"{path}:folder={tmp_path}")
    with pytest.raises(ShardError, match=r"failed for 1 of 2 shards .*\n  00001: OSError: no such model today"):
        annotate(tiny_pool, [operator], executor=ray_session)
    assert find_missing(tiny_pool, [operator]) == {"own": [1]}
    (tmp_path / "broken").unlink()
    report = annotate(tiny_pool, [operator], executor=ray_session)
    assert (report.operators[0].num_shards, report.operators[0].num_shards_current) == (1, 1)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('return {"length": lengths}', r"own must write \['own_length'\] for 11 rows, got length for 11"),
        ('return {"own_length": lengths[:-1]}', r"own must write \['own_length'\] for 11 rows, got own_length for 10"),
        ('return {"own_length": ["x"] * len(lengths)}', "own must write own_length as int32"),
        (
            'return {"own_length": lengths, "error": [3] * len(lengths)}',
            "own must write 'error' as text or None, got 3",
        ),
    ],
)
def test_an_operator_that_breaks_its_word_is_stopped(
    ray_session: Executor, tiny_pool: Pool, tmp_path: Path, body: str, message: str
) -> None:
    with pytest.raises(ContractError, match=message):
        annotate(tiny_pool, [parse_operator(write_operator(tmp_path, body))], executor=ray_session)
    assert files(tiny_pool) == {}


def test_an_operators_own_errors_are_kept(ray_session: Executor, tiny_pool: Pool, tmp_path: Path) -> None:
    path = write_operator(
        tmp_path, 'return {"own_length": lengths, "error": ["odd" if n % 2 else None for n in lengths]}'
    )
    annotate(tiny_pool, [parse_operator(path)], executor=ray_session)
    rows = read_label(tiny_pool, "own")
    captions = [row.caption for row in make_rows(12)]
    expected = ["no alt_text" if text is None else "odd" if len(text) % 2 else None for text in captions]
    assert [row["error"] for row in rows] == expected
    assert [row["own_length"] for row in rows] == [None if text is None else len(text) for text in captions]


def test_inputs_can_be_bound_to_columns_of_samples_and_of_annotations(
    ray_session: Executor, tiny_pool: Pool, tmp_path: Path
) -> None:
    path = write_operator(tmp_path, 'return {"own_length": lengths}')
    by_url = parse_operator(f"{path}:label=by_url,bind.alt_text=url")
    by_language = parse_operator(f"{path}:label=by_language,bind.alt_text=language.language_code")
    language = parse_operator("language")
    # In one call, and named before what it reads.
    annotate(tiny_pool, [by_language, by_url, language], executor=ray_session)
    assert [row["own_length"] for row in read_label(tiny_pool, "by_url")] == [len(row.url) for row in make_rows(12)]
    codes = [len(str(row["language_code"])) for row in read_label(tiny_pool, "language")]
    assert [row["own_length"] for row in read_label(tiny_pool, "by_language")] == codes
    fingerprint = tiny_pool.labels()["by_language"].fingerprint
    # On its own, from what is committed: the same identity, so nothing is left to do.
    assert find_missing(tiny_pool, [by_language]) == {"by_language": []}
    for shard in (0, 1):
        tiny_pool.remove(tiny_pool.annotation_path("own", fingerprint, shard))
    annotate(tiny_pool, [by_language], executor=ray_session)
    assert [row["own_length"] for row in read_label(tiny_pool, "by_language")] == codes


def test_a_binding_to_nothing_is_refused(ray_session: Executor, tiny_pool: Pool) -> None:
    cases = {
        "caption_stats:bind.alt_text=recap.recaption": "no annotation 'recap'.*winnow annotate --pool .* OPERATOR:label=recap",
        "caption_stats:bind.alt_text=title": "samples have no such column",
        "caption_stats:bind.picture=url": "binds 'picture', which is none of its inputs: alt_text",
    }
    for text, message in cases.items():
        with pytest.raises(InputError, match=message):
            annotate(tiny_pool, [parse_operator(text)], executor=ray_session)
    annotate(tiny_pool, [parse_operator("language")], executor=ray_session)
    with pytest.raises(MissingColumnsError, match="'language' has no column 'code'; it has language_code"):
        annotate(tiny_pool, [parse_operator("caption_stats:bind.alt_text=language.code")], executor=ray_session)
    tiny_pool.remove(tiny_pool.annotation_path("language", tiny_pool.labels()["language"].fingerprint, 1))
    with pytest.raises(MissingColumnsError, match="which 1 of 2 shards do not have yet"):
        annotate(
            tiny_pool, [parse_operator("caption_stats:bind.alt_text=language.language_code")], executor=ray_session
        )


def test_labels_that_would_mean_two_things_are_refused(ray_session: Executor, tiny_pool: Pool) -> None:
    twice = ["caption_stats:label=x", "caption_stats:label=x,bind.alt_text=url"]
    with pytest.raises(InputError, match="label 'x' would mean two annotations"):
        annotate(tiny_pool, [parse_operator(text) for text in twice], executor=ray_session)
    with pytest.raises(InputError, match="label 'samples' cannot be used in SQL"):
        annotate(tiny_pool, [parse_operator("language:label=samples")], executor=ray_session)
    tiny_pool.set_labels({"language": LabelTarget(operator="recaption", fingerprint="0" * 64)})
    with pytest.raises(InputError, match="label 'language' already names an annotation of 'recaption'"):
        annotate(tiny_pool, [parse_operator("language")], executor=ray_session)


def test_the_same_rows_under_two_labels_are_computed_once(ray_session: Executor, tiny_pool: Pool) -> None:
    report = annotate(
        tiny_pool, [parse_operator("language"), parse_operator("language:label=tongue")], executor=ray_session
    )
    assert [line.sql_name for line in report.operators] == ["language", "tongue"]
    assert len(files(tiny_pool)) == 2
    assert tiny_pool.labels()["language"] == tiny_pool.labels()["tongue"]


def test_labels_are_set_before_the_work(ray_session: Executor, tiny_pool: Pool, tmp_path: Path) -> None:
    operator = parse_operator(write_operator(tmp_path, 'raise OSError("never")'))
    with pytest.raises(ShardError):
        annotate(tiny_pool, [operator], executor=ray_session)
    assert list(tiny_pool.labels()) == ["own"]


def test_several_models_side_by_side_in_one_pass(ray_session: Executor, tiny_pool: Pool, tmp_path: Path) -> None:
    models = {"vit": make_checkpoint(tmp_path / "vit"), "sig": make_siglip(tmp_path / "sig")}
    operators = [parse_operator(f"clip_score:model={folder},label={name}") for name, folder in models.items()]
    report = annotate(tiny_pool, [*operators, parse_operator("image_stats")], executor=ray_session)
    assert [line.sql_name for line in report.operators] == [
        "vit_clip_embedding",
        "vit_clip_text_embedding",
        "vit",
        "sig_clip_embedding",
        "sig_clip_text_embedding",
        "sig",
        "image_stats",
    ]
    scores = {name: [row["clip_score"] for row in read_label(tiny_pool, name)] for name in models}
    assert scores["vit"][0] != scores["sig"][0]
    assert all(-1 <= score <= 1 for score in scores["vit"] if isinstance(score, float))
    assert [score is None for score in scores["vit"]] == [row in (*FAILED_ROWS, CORRUPT_ROW, 5) for row in range(12)]
    # The embeddings are there already: naming them computes nothing.
    embedding = parse_operator(f"clip_embedding:model={models['vit']},label=vit_clip_embedding")
    assert find_missing(tiny_pool, [embedding]) == {"vit_clip_embedding": []}


def test_a_model_pass_that_was_cut_short_ends_with_the_same_bytes(
    ray_session: Executor, pool_builder: Callable[..., Pool], tmp_path: Path
) -> None:
    model = make_checkpoint(tmp_path / "vit")
    whole = pool_builder(name="whole", shard_size=150)
    operators = [parse_operator(f"clip_score:model={model}"), parse_operator("image_stats")]
    annotate(whole, operators, executor=ray_session)
    shutil.copytree(whole.root, tmp_path / "broken")
    broken = Pool(tmp_path / "broken")
    # As if killed when some files were committed: what is left runs without the rest, on the same batches.
    for path in list(files(broken)):
        if "00000" in path and "clip_embedding" not in path:
            broken.remove(f"annotations/{path}")
        if "00001" in path and "clip_embedding" in path:
            broken.remove(f"annotations/{path}")
    annotate(broken, operators, executor=ray_session)
    assert files(broken) == files(whole)


def test_a_gpu_is_fed_by_streams_and_gives_the_same_bytes(
    ray_session: Executor, pool_builder: Callable[..., Pool], tmp_path: Path
) -> None:
    model = make_checkpoint(tmp_path / "vit")
    here, there = (pool_builder(name=name, shard_size=40) for name in ("here", "there"))
    text = [f"clip_score:model={model}", "image_stats", "language"]
    annotate(here, [parse_operator(name) for name in text], executor=ray_session)
    # A GPU only by name: the same actors, streams and placement, and a model that finds no CUDA and runs on the CPU.
    script = f"""
        import ray
        from curate.annotate import annotate, parse_operator
        from curate.executor import Executor, WORKER_ENVIRONMENT
        from curate.store import Pool

        ray.init(address="local", num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False,
                 runtime_env={{"env_vars": WORKER_ENVIRONMENT}})
        annotate(Pool({there.root!r}), [parse_operator(text) for text in {text!r}], executor=Executor())
        ray.shutdown()
    """
    # To Ray one device, to CUDA none, whatever the machine has.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=200, env=environment)
    assert files(there) == files(here)


def test_killed_workers_cost_nothing_but_time(ray_session: Executor, tiny_pool: Pool, tmp_path: Path) -> None:
    body = """
    marker = folder / str(abs(hash(tuple(lengths))))
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return {"own_length": lengths}
    """
    operator = parse_operator(f"{write_operator(tmp_path, body)}:folder={tmp_path}")
    annotate(tiny_pool, [operator, parse_operator("image_stats")], executor=ray_session)
    untouched = make_pool(tmp_path / "untouched")
    annotate(untouched, [operator, parse_operator("image_stats")], executor=ray_session)
    assert files(tiny_pool) == files(untouched)
    assert not list(Path(tiny_pool.root).rglob("*.staging"))


def _start_slow(pool: Pool, path: str) -> subprocess.Popen[str]:
    script = f"""
        from curate.annotate import annotate, parse_operator
        from curate.executor import Executor
        from curate.store import Pool

        with Executor(num_workers=1) as executor:
            try:
                annotate(Pool({pool.root!r}), [parse_operator({path!r})], executor=executor)
            except KeyboardInterrupt as interrupt:
                print(interrupt, flush=True)
    """
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True)


def _wait_for_files(pool: Pool, count: int) -> None:
    deadline = time.monotonic() + 100
    while len(list((Path(pool.root) / "annotations").rglob("*.parquet"))) < count:
        assert time.monotonic() < deadline, "the run made no progress"
        time.sleep(0.05)


def test_a_killed_driver_loses_the_shard_in_flight_only(
    ray_session: Executor, pool_builder: Callable[..., Pool], tmp_path: Path
) -> None:
    path = write_operator(tmp_path, 'time.sleep(0.7)\nreturn {"own_length": lengths}')
    pool, whole = (pool_builder(name=name, num_shards=6) for name in ("killed", "whole"))
    process = _start_slow(pool, path)
    _wait_for_files(pool, 2)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    committed = files(pool)
    assert 2 <= len(committed) < 6
    report = annotate(pool, [parse_operator(path)], executor=ray_session)
    assert report.operators[0].num_shards_current >= 2
    annotate(whole, [parse_operator(path)], executor=ray_session)
    assert files(pool) == files(whole)
    assert {name: data for name, data in files(pool).items() if name in committed} == committed


def test_ctrl_c_says_what_is_committed(pool_builder: Callable[..., Pool], tmp_path: Path) -> None:
    path = write_operator(tmp_path, 'time.sleep(0.7)\nreturn {"own_length": lengths}')
    pool = pool_builder(num_shards=8)
    process = _start_slow(pool, path)
    _wait_for_files(pool, 2)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    found = re.fullmatch(
        r"annotate was interrupted: own (\d) of 8 shards; the same command goes on from there\n", output
    )
    assert found, output
    # A worker may commit its shard between the count and its end.
    assert 0 <= len(files(pool)) - int(found.group(1)) <= 1


@pytest.mark.slow
def test_memory_does_not_grow_with_the_shard(tmp_path: Path) -> None:
    """300 pictures of a megapixel are 860 MiB decoded; a chunk is 128."""
    script = f"""
        import resource
        from pathlib import Path
        from curate.annotate import parse_operator
        from curate.plan import make_plan
        from curate.row_pass import RowPass, annotate_shard
        from curate.store import Pool
        from tests.pool import Row, draw, jpeg, write_shard

        pool = Pool({str(tmp_path / "large")!r})
        picture = jpeg(draw((200, 30, 40), "circle", seed=1, width=1000, height=1000).resize((1000, 1000)), 30)
        write_shard(pool, 0, [Row(url=f"https://example.org/{{n}}", caption="a", image=picture) for n in range(300)])
        operators = [parse_operator("image_stats"), parse_operator("perceptual_hash")]
        plan = make_plan(pool, operators, pool.read_footer(pool.shard_parquet(0)).schema.to_arrow_schema().names)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        report = annotate_shard(RowPass(pool=pool, plan=tuple(plan), pool_digest=""), pool.shard_header(0))
        assert report.num_rows == 300 and not any(report.num_errors.values())
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], check=True, capture_output=True, text=True, timeout=200
    )
    assert int(result.stdout) < 500


def test_a_file_that_is_no_annotation_is_computed_again(ray_session: Executor, tiny_pool: Pool) -> None:
    operator = parse_operator("language")
    annotate(tiny_pool, [operator], executor=ray_session)
    path = tiny_pool.annotation_path("language", tiny_pool.labels()["language"].fingerprint, 0)
    whole = tiny_pool.read_bytes(path)
    tiny_pool.commit_table(path, tiny_pool.read_table(path).replace_schema_metadata({}))
    assert AnnotationHeader.from_metadata(tiny_pool.read_footer(path).metadata) is None
    annotate(tiny_pool, [operator], executor=ray_session)
    assert tiny_pool.read_bytes(path) == whole


def test_an_empty_pool_says_how_to_fill_it(ray_session: Executor, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no shards in .*winnow download"):
        annotate(Pool(tmp_path), [parse_operator("language")], executor=ray_session)
    with pytest.raises(InputError, match="no operator was named"):
        annotate(make_pool(tmp_path / "pool"), [], executor=ray_session)
