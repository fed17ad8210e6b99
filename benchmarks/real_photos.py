"""Raw against selected, unweighted against weighted, alt-texts against a mixture, on real photos: what docs/results.md shows.

The photos' own texts are right, so wrong ones are planted: every photo of the pool comes twice, with its own text and with a wrong one, which
is another photo's, or a real alt-text of the web. A fifth of the photos is held back for evaluation; three tenths, with their own
texts, train the small CLIP that scores the pool and are in no arm. Only the last table reads which texts are wrong.

python -m benchmarks.real_photos OUT [--data ../shared/data] [--seeds 0,1,2] [--samples-seen 30000]     # goes on where it stopped
"""

import argparse
import hashlib
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import yaml

from curate.tar import TarWriter

SOURCES = ("openstax", "coco", "grocery")
HELD_BACK, TRUSTED = 2, 5  # tenths of the photos, counted up: 0 and 1 are held back, 2 to 4 are trusted
TRAIN = {
    "model": "vit-tiny",
    "model_options": {
        **{"image_width": 96, "image_layers": 3, "image_heads": 3},
        **{"text_width": 96, "text_layers": 2, "text_heads": 3, "embed_dim": 96, "vocab_size": 4096},
    },
    "batch_size": 64,
    "lr": 1.0e-3,
    "warmup_steps": 60,
    "weight_decay": 0.1,
    "grad_clip": 1.0,
    "num_workers": 1,
    "save_every": 10_000,
}
# The half with the highest scores, because half of the texts are wrong; all else is as in the arm before.
ARMS: Mapping[str, Mapping[str, object]] = {
    "raw": {},
    "weighted": {"weight": "exp(10 * trusted.clip_score)"},
    "selected": {"top": {"by": "trusted.clip_score", "fraction": 0.5}},
    "mixture": {
        "top": {"by": "trusted.clip_score", "fraction": 0.5},
        "captions": {"alt_text": 0.5, "second_text": 0.5},
    },
}


BASELINES = {"weighted": "raw", "selected": "raw", "mixture": "selected"}


@dataclass(frozen=True, kw_only=True)
class Photo:
    """A photo with the texts that people wrote for it; the second may be missing."""

    path: str  # below the folder of the data
    source: str
    label: str  # the class of a grocery, else empty
    texts: tuple[str, ...]

    @property
    def tenth(self) -> int:
        """A number from 0 to 9 that the path alone decides."""
        return hashlib.sha256(self.path.encode()).digest()[0] % 10


def main() -> None:
    """Prepare, train what is missing, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("WINNOW_DATA", "../shared/data")))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--samples-seen", type=int, default=30_000)
    options = parser.parse_args()
    out: Path = options.out
    photos = read_photos(options.data)
    evaluation = write_evaluation(out / "evaluation", options.data, [one for one in photos if one.tenth < HELD_BACK])
    with serve(options.data) as address:
        trusted = [(f"{address}/{one.path}", one.texts[0], None) for one in photos if HELD_BACK <= one.tenth < TRUSTED]
        run_recipe(out, "trusted", trusted, train=TRAIN | {"samples_seen": options.samples_seen})
        chosen = [one for one in photos if one.tenth >= TRUSTED]
        rows, wrong = pair_up(chosen, read_web_texts(options.data), address)
        run_recipe(out, "pool", rows)
    (checkpoint,) = (out / "trusted" / "out" / "runs").glob("*/checkpoints/step_*")
    for name, select in ARMS.items():
        recipe = {
            "name": name,
            "annotate": [{"clip_score": {"model": str(checkpoint), "label": "trusted"}}],
            "select": {"name": name, **select},
            "build": {"shard_size": 1000},
            "train": TRAIN,
            "evaluate": {"data": [str(folder) for folder in evaluation]},
        }
        write_yaml(out / f"{name}.yaml", recipe)
    files = [str(out / f"{name}.yaml") for name in ARMS]
    given = ["--pool", str(out / "pool" / "pool"), "--out", str(out / "comparison"), "--seeds", options.seeds]
    winnow("compare", *files, *given, "--samples-seen", str(options.samples_seen))
    describe_results(out / "comparison" / "results.parquet")
    describe_selections(out / "pool" / "pool", wrong)


def read_photos(data: Path) -> list[Photo]:
    """Return all photos; the second text of a figure is what is printed below it, of an everyday photo another description."""
    photos = []
    for source in SOURCES:
        for line in (data / f"{source}.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            texts = row.get("captions") or [row.get("description") or row["alt"], row.get("caption")]
            own = tuple(" ".join(text.split()) for text in texts if text and text.strip())
            photos.append(Photo(path=row["image"], source=source, label=row.get("class", ""), texts=own))
    return photos


def read_web_texts(data: Path) -> list[str]:
    """Return real alt-texts of the web, of pictures that nobody has here."""
    return [
        json.loads(line)["text"] for line in (data / "web_alt_texts.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def pair_up(
    photos: Sequence[Photo], web_texts: Sequence[str], address: str
) -> tuple[list[tuple[str, str, str | None]], set[tuple[str, str]]]:
    """Return the pool's rows (url, text, second text), and which (url, text) are wrong."""
    generator = random.Random(0)
    web, rows, wrong = iter(generator.sample(web_texts, len(photos))), [], set()
    for number, photo in enumerate(photos):
        url, own = f"{address}/{photo.path}", photo.texts
        rows.append((url, own[0], own[1] if len(own) > 1 else None))
        other = next(web)
        if number % 2:
            other = generator.choice([one.texts[0] for one in photos if one.texts[0] != own[0]])
        rows.append((url, other, None))
        wrong.add((url, other))
    generator.shuffle(rows)
    return rows, wrong


def write_evaluation(folder: Path, data: Path, photos: Sequence[Photo]) -> list[Path]:
    """Write the held-back photos in CLIP_benchmark's layout: figures and everyday photos to retrieve, groceries to classify."""
    described, groceries = folder / "photos", folder / "groceries"
    found = [one for one in photos if not one.label]
    write_set(described, data, found, "txt", ["\n".join(one.texts[:1]) for one in found])
    (described / "dataset_type.txt").write_text("retrieval\n")
    found = [one for one in photos if one.label]
    labels = sorted({one.label for one in found})
    write_set(groceries, data, found, "cls", [str(labels.index(one.label)) for one in found])
    (groceries / "classnames.txt").write_text("\n".join([*labels, ""]))
    (groceries / "zeroshot_classification_templates.txt").write_text("{c}\na photo of {c}\n")
    return [described, groceries]


def write_set(folder: Path, data: Path, photos: Sequence[Photo], suffix: str, texts: Sequence[str]) -> None:
    """Write one evaluation set of one tar."""
    (folder / "test").mkdir(parents=True, exist_ok=True)
    with (folder / "test" / "0.tar").open("wb") as file:
        tar = TarWriter(file)
        for number, (photo, text) in enumerate(zip(photos, texts, strict=True)):
            tar.add(f"s{number:07d}.jpg", (data / photo.path).read_bytes())
            tar.add(f"s{number:07d}.{suffix}", text.encode())
        tar.close()
    (folder / "test" / "nshards.txt").write_text("1\n")


def run_recipe(
    out: Path, name: str, rows: Sequence[tuple[str, str, str | None]], *, train: Mapping[str, object] | None = None
) -> None:
    """Download a list into a pool of its own, and train on it where asked to; what is there stays."""
    folder = out / name
    if (folder / "done").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    table = pl.DataFrame(list(rows), schema=["url", "caption", "second_text"], orient="row")
    table.write_parquet(folder / "urls.parquet")
    download = {"image_size": 96, "resize_mode": "keep_ratio", "shard_size": 500, "allow_private": True}
    further = {"select": {}, "build": {"shard_size": 1000}, "train": train} if train else {}
    write_yaml(folder / "recipe.yaml", {"name": name, "download": download, "annotate": ["caption_stats"], **further})
    paths = [
        f"--{key}={folder / place}" for key, place in (("input", "urls.parquet"), ("pool", "pool"), ("out", "out"))
    ]
    winnow("run", str(folder / "recipe.yaml"), *paths)
    (folder / "done").touch()


def describe_results(path: Path) -> None:
    """Print each arm's mean and standard deviation over the seeds, in points, and what an arm gains over its baseline, seed by seed."""
    table = pl.read_parquet(path).with_columns(
        data=pl.col("data").str.split("/").list.last(), value=100 * pl.col("value")
    )
    both_ways = (
        table
        .filter(pl.col("metric").is_in(["image_to_text_recall@10", "text_to_image_recall@10"]))
        .group_by("arm", "seed", "data")
        .agg(pl.col("value").mean(), metric=pl.lit("mean recall@10"))
    )
    shown = table.filter(pl.col("metric").is_in(["mean_recall@1", "acc1", "acc5"]))
    columns = ["arm", "seed", "data", "metric", "value"]
    scores = pl.concat([shown.select(columns), both_ways.select(columns)]).pivot(
        "arm", index=["data", "metric", "seed"], values="value"
    )
    print(f"| evaluated on | metric | {' | '.join(ARMS)} |\n| --- | --- |{' ---: |' * len(ARMS)}")
    for (data, metric), own in sorted(scores.group_by("data", "metric")):
        cells = [f"{own[arm].mean():.1f} +- {own[arm].std():.1f}" for arm in ARMS]
        for place, (arm, baseline) in enumerate(BASELINES.items(), start=1):
            gains = own[arm] - own[baseline]
            cells[place] += f" ({gains.mean():+.1f} to {baseline}, {(gains > 0).sum()} of {len(gains)})"
        print(f"| {data} | {metric} | {' | '.join(cells)} |")


def describe_selections(pool: Path, wrong: set[tuple[str, str]]) -> None:
    """Print how many of the rows and of the draws of each arm have their own text."""
    print("| arm | rows | of these right | draws that are right |\n| --- | ---: | ---: | ---: |")
    for name in ARMS:
        (folder,) = (pool / "selections").glob(f"{name}-*")
        kept = pl.read_parquet(folder / "ledger.parquet").filter("kept")
        texts = pl.concat(
            pl.read_parquet(path, columns=["uid", "caption"]) for path in sorted((pool / "shards").glob("*.parquet"))
        )
        kept = kept.join(texts, on="uid")
        is_right = pl.Series([pair not in wrong for pair in kept.select("url", "caption").iter_rows()])
        share = (kept["weight"] * is_right).sum() / kept["weight"].sum()
        print(f"| {name} | {len(kept):,} | {is_right.mean():.1%} | {share:.1%} |")


@contextmanager
def serve(data: Path) -> Iterator[str]:
    """Serve the data folder from a process of its own and yield its address."""
    command = [sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(data), "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        match = re.search(r"port (\d+)", process.stdout.readline())
        assert match, "the server did not start"
        yield f"http://127.0.0.1:{match[1]}"
    finally:
        process.kill()
        process.wait()


def winnow(*arguments: str) -> None:
    """Run the command line; its progress goes to stderr."""
    subprocess.run([sys.executable, "-m", "pipelines.cli", *arguments], stdout=sys.stderr, check=True)


def write_yaml(path: Path, content: Mapping[str, object]) -> None:
    """Write a recipe."""
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


if __name__ == "__main__":
    main()
