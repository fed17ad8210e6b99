"""open_clip folders, read as open_clip reads them: braces, sizes.json, webdataset, the keys of the printed command."""

import json
import random
import re
import shlex
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import braceexpand
import pytest
import webdataset as wds

from curate.executor import Executor
from curate.store import Pool
from pipelines.export.open_clip import export
from pipelines.export.source import DatasetSource
from pipelines.export.target import ExportReport
from schemas.progress import SilentProgress
from tests.pipelines.export.datasets import make_dataset, make_selections, read_rows


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return make_selections(tmp_path_factory.mktemp("open_clip") / "pool")


@pytest.fixture(scope="module", params=[False, True], ids=["tars", "view"])
def source(
    request: pytest.FixtureRequest, pool: Pool, ray_session: Executor, tmp_path_factory: pytest.TempPathFactory
) -> DatasetSource:
    return make_dataset(pool, tmp_path_factory.mktemp("data"), ray_session, view=request.param)


@pytest.fixture(scope="module")
def exported(source: DatasetSource, ray_session: Executor, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    out = tmp_path_factory.mktemp("out") / "folder"
    return run(source, out, ray_session, shard_size=20, num_samples=60)


def run(source: DatasetSource, out: Path, executor: Executor, **settings: Any) -> ExportReport:
    return export(source, str(out), executor=executor, progress=SilentProgress(), **settings)


def read(pattern: str) -> list[dict[str, Any]]:
    return list(wds.WebDataset(list(braceexpand.braceexpand(pattern)), shardshuffle=False))


def words(report: ExportReport) -> dict[str, list[str]]:
    """Return the printed command's flags."""
    found: dict[str, list[str]] = {}
    for word in shlex.split(str(report.notes["command"]).replace("\\\n", "")):
        if word.startswith("--"):
            found[word] = []
        elif found:
            found[list(found)[-1]].append(word)
    return found


def test_the_command_names_the_tars_and_their_samples(exported: ExportReport) -> None:
    flags = words(exported)
    samples = read(flags["--train-data"][0])
    assert flags["--dataset-type"] == ["webdataset"]
    assert int(flags["--train-num-samples"][0]) == len(samples) == exported.num_samples
    sizes = json.loads(Path(exported.location, "sizes.json").read_text())
    tars = list(braceexpand.braceexpand(flags["--train-data"][0]))
    assert sorted(path.name for path in Path(exported.location).glob("*.tar")) == [Path(tar).name for tar in tars]
    # open_clip adds these up, by the base name of every shard it is given.
    assert sum(sizes[Path(tar).name] for tar in tars) == len(samples)
    assert max(sizes.values()) - min(sizes.values()) <= 1
    assert int(flags["--workers"][0]) <= len(tars)


def test_samples_keep_their_pictures_and_captions(source: DatasetSource, exported: ExportReport) -> None:
    rows = {str(row["uid"]): row for row in read_rows(source)}
    for sample in read(words(exported)["--train-data"][0]):
        record = json.loads(sample["json"])
        row = rows[record["uid"]]
        assert sample["__key__"] == record["key"]
        assert sample["jpg"] == row["image"]
        assert record["caption"] == row["alt_text"]
        assert record["recap_recaption"] == row["recap.recaption"] == sample["txt"].decode()
        assert [record[f"recap_rewrite_{n}"] for n in range(3)] == (row["recap.rewrite"] + [""] * 3)[:3]  # type: ignore[operator]


def test_weights_became_repetitions_under_keys_of_their_own(source: DatasetSource, exported: ExportReport) -> None:
    rows = read_rows(source)
    total = sum(float(str(row["weight"])) for row in rows)
    counts = Counter(sample["__key__"].rpartition("-")[0] for sample in read(words(exported)["--train-data"][0]))
    for row in rows:
        wanted = float(str(row["weight"])) * 60 / total
        assert counts[str(row["uid"])] in (int(wanted), int(wanted) + 1)
    assert exported.num_left_out == sum(not counts[str(row["uid"])] for row in rows)
    keys = [sample["__key__"] for sample in read(words(exported)["--train-data"][0])]
    assert len(set(keys)) == len(keys)


def test_the_keys_of_the_command_draw_the_mixture(exported: ExportReport) -> None:
    """open_clip's rule: draw an order of the keys by their weights, take the first text that is not empty."""
    flags = words(exported)
    keys = flags["--json-text-key"][0].split(";")
    shares = [float(share) for share in flags["--json-text-key-probs"]]
    assert sum(shares) == pytest.approx(1)
    assert dict(zip(keys, shares, strict=True))["recap_recaption"] == 0.5
    records = [json.loads(sample["json"]) for sample in read(flags["--train-data"][0])]
    assert all(isinstance(record[key], str) for record in records for key in keys)
    full = next(record for record in records if all(record[key] for key in keys))
    draw = random.Random(0)
    drawn = Counter(draw.choices(keys, shares)[0] for _ in range(4000))
    rewrites = sum(count for key, count in drawn.items() if key.startswith("recap_rewrite"))
    assert rewrites / 4000 == pytest.approx(0.2, abs=0.03)
    assert {full[key][:7] for key in keys if key.startswith("recap_rewrite")} == {"rewrite"}


def test_a_single_caption_needs_no_keys(pool: Pool, ray_session: Executor, tmp_path: Path) -> None:
    source = make_dataset(pool, tmp_path, ray_session, selection="plain")
    report = run(source, tmp_path / "out", ray_session)
    assert "--json-text-key" not in words(report)
    assert words(report)["--train-data"] == [f"{tmp_path}/out/00000.tar"]
    texts = {sample["txt"].decode() for sample in read(words(report)["--train-data"][0])}
    assert texts == {row["alt_text"] for row in read_rows(source)}


def test_the_bytes_are_the_same_every_time_and_members_plain(
    source: DatasetSource, exported: ExportReport, ray_session: Executor, tmp_path: Path
) -> None:
    again = run(source, tmp_path / "again", ray_session, shard_size=20, num_samples=60)
    for path in sorted(Path(exported.location).glob("*.tar")):
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
        with tarfile.open(path) as tar:
            assert all(re.fullmatch(r"[0-9a-f]{32}-\d+\.(jpg|json|txt)", member.name) for member in tar)
            assert all(member.mtime == 0 for member in tar.getmembers())
    assert again.num_samples == exported.num_samples
