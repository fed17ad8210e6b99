"""`winnow run` on real photos through a real HTTP server: every URL accounted for, stock tools read the shards, the model learns."""

import csv
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.webserver import serve_folder

DATA = Path(os.environ.get("WINNOW_DATA", Path(__file__).parents[3] / "shared" / "data"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not DATA.exists(), reason=f"no real photos in {DATA}; point WINNOW_DATA at them"),
]


@dataclass(frozen=True)
class Run:
    """What one `winnow run` left behind."""

    pool: Path
    out: Path
    urls: list[tuple[str, str]]

    @property
    def dataset(self) -> Path:
        """The built dataset."""
        (folder,) = (self.out / "datasets").iterdir()
        return folder

    @property
    def ledger(self) -> list[dict[str, Any]]:
        """The ledger's rows."""
        (selection,) = (self.pool / "selections").iterdir()
        return pq.read_table(selection / "ledger.parquet").to_pylist()


def pairs() -> list[tuple[str, str]]:
    """Return (path, caption) of every real photo and every hostile file."""
    found = []
    for name in ("openstax", "grocery", "coco", "originals", "hostile"):
        for line in (DATA / f"{name}.jsonl").read_text().splitlines():
            row = json.loads(line)
            captions = row.get("captions") or [
                row.get("description") or row.get("alt") or row.get("caption") or "a picture"
            ]
            # Whole figure descriptions run to a thousand words; a tiny text tower reads the first thirty.
            found += [(row["image"], " ".join(caption.split()[:30])) for caption in captions]
    return found


def is_held_back(path: str) -> bool:
    """Hold back a tenth of the photos, chosen by their path."""
    return hashlib.sha256(path.encode()).digest()[0] < 26


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Serve the data folder from a real HTTP server process; yield its address."""
    with serve_folder(DATA) as address:
        yield address


def winnow(*arguments: str) -> str:
    """Run the command line and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *arguments], capture_output=True, text=True, timeout=1500, check=False
    )
    assert done.returncode == 0, (
        f"winnow {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    )
    return done.stdout


def run_recipe(root: Path, urls: list[tuple[str, str]], extra: dict[str, Any]) -> Run:
    """Run download, annotate, select, build and what `extra` adds over a URL list."""
    root.mkdir()
    with (root / "urls.tsv").open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerows([("url", "caption"), *urls])
    recipe = {
        "name": "real",
        "download": {"image_size": 96, "resize_mode": "keep_ratio", "shard_size": 500, "allow_private": True},
        "annotate": ["image_stats", "caption_stats", "language", "perceptual_hash", "exact_dedup"],
        "select": {
            "rules": {
                "words": "caption_stats.caption_num_words >= 2",
                "unique": "NOT exact_dedup.is_pair_duplicate",
                "aspect": "image_stats.image_aspect_ratio <= 4",
            }
        },
        "build": {"shard_size": 400},
        **extra,
    }
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    paths = ["--input", str(root / "urls.tsv"), "--pool", str(root / "pool"), "--out", str(root / "out")]
    winnow("run", str(root / "recipe.yaml"), *paths)
    return Run(root / "pool", root / "out", urls)


@pytest.fixture(scope="module")
def trained(server: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run the whole way on nine tenths of the photos."""
    urls = [(f"{server}/{path}", caption) for path, caption in pairs() if not is_held_back(path)]
    urls.append((f"{server}/nowhere.jpg", "a photo that is gone"))
    train = {"model": "vit-tiny", "batch_size": 128, "samples_seen": 51200, "num_workers": 1, "save_every": 200}
    return run_recipe(tmp_path_factory.mktemp("real") / "train", urls, {"train": train})


@pytest.fixture(scope="module")
def held_back(server: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Build a dataset of the tenth that was held back."""
    urls = [(f"{server}/{path}", text) for path, text in pairs() if is_held_back(path) and "hostile" not in path]
    return run_recipe(tmp_path_factory.mktemp("real") / "held-back", urls, {})


def test_every_url_is_in_the_ledger(trained: Run) -> None:
    """One ledger row per distinct (url, caption), and the failed ones say why."""
    ledger = trained.ledger
    assert len(ledger) == len(set(trained.urls))
    assert {row["url"] for row in ledger} == {url for url, _ in trained.urls}
    lost = [row for row in ledger if not row["kept"] and not row["first_failing_rule"]]
    assert not lost
    (gone,) = [row for row in ledger if row["url"].endswith("nowhere.jpg")]
    assert (gone["status"], gone["kept"], gone["first_failing_rule"]) == ("failed_to_download", False, "downloaded")
    occurrences = sum(
        sum(pq.read_table(path, columns=["num_occurrences"]).column(0).to_pylist())
        for path in (trained.pool / "shards").glob("*.parquet")
    )
    assert occurrences == len(trained.urls)


def test_stock_webdataset_reads_the_shards(trained: Run) -> None:
    """`webdataset` sees every kept sample, decoded."""
    import webdataset

    tars = sorted(str(path) for path in trained.dataset.glob("*.tar"))
    samples = list(webdataset.WebDataset(tars, shardshuffle=False).decode("pil").to_tuple("jpg", "txt", "json"))
    assert len(samples) == sum(row["kept"] for row in trained.ledger) > 2000
    assert all(image.mode == "RGB" and min(image.size) > 0 for image, _, _ in samples)
    assert {record["uid"] for _, _, record in samples} == {row["uid"] for row in trained.ledger if row["kept"]}


def test_hugging_face_datasets_reads_the_shards(trained: Run, tmp_path: Path) -> None:
    """`datasets` infers the features of our tars and reads them all."""
    import datasets

    tars = sorted(str(path) for path in trained.dataset.glob("*.tar"))
    loaded = datasets.load_dataset("webdataset", data_files={"train": tars}, split="train", cache_dir=str(tmp_path))
    assert {"jpg", "json", "txt", "__key__"} <= set(loaded.column_names)
    assert loaded.num_rows == sum(row["kept"] for row in trained.ledger)


def test_img2dataset_reads_the_pool(trained: Run, tmp_path: Path) -> None:
    """img2dataset's own reader takes our shard Parquets as input, and its resume test takes our shards as done."""
    from img2dataset.reader import Reader

    parquets = sorted(str(path) for path in (trained.pool / "shards").glob("*.parquet"))
    done = {int(path.name.split("_")[0]) for path in (trained.pool / "shards").glob("*.json")}
    assert done == set(range(len(parquets)))
    num_rows = sum(pq.read_metadata(path).num_rows for path in parquets)
    reader = Reader(
        url_list=str(trained.pool / "shards"),
        input_format="parquet",
        url_col="url",
        caption_col="caption",
        verify_hash_col=None,
        verify_hash_type=None,
        save_additional_columns=["uid"],
        number_sample_per_shard=num_rows,
        done_shards=set(),
        tmp_path=str(tmp_path),
    )
    read = [row for _, feather in reader for row in pa.ipc.open_file(feather).read_all().to_pylist()]
    assert [row["uid"] for row in read] == [row["uid"] for row in trained.ledger]
    assert {(row["url"], row["caption"]) for row in read} == set(trained.urls)


def test_checkpoint_beats_chance_on_held_back_pairs(trained: Run, held_back: Run) -> None:
    """Retrieval on pairs never trained on, both ways, well above what guessing gives."""
    (run,) = (trained.out / "runs").iterdir()
    scores = json.loads(winnow("evaluate", str(run), "--data", str(held_back.dataset), "--json"))
    (result,) = scores.values()
    for direction in ("image_to_text", "text_to_image"):
        assert result[f"{direction}_recall@10"] > 2 * result[f"chance_{direction}_recall@10"], result
