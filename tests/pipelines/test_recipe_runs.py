"""Every shipped recipe from a pool to a dataset, and to a trained model where it trains: tiny models in place of those it asks for."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.executor import Executor
from curate.store import Pool, Store
from pipelines.recipe import OperatorCall, Recipe, load_recipe, shipped_recipes
from pipelines.run import RunReport, run
from schemas.dataset import INDEX_FILE, DatasetIndex
from tests.chat_model import Asked, ChatModel
from tests.model import make_checkpoint
from tests.pool import Row, draw, jpeg, write_shard
from tests.wordnet import make_wordnet

pytestmark = pytest.mark.slow

NUM_ROWS = 24
# The demo's are run by the demo's own tests: they ask for what the demo makes.
NAMES = [name for name in sorted(shipped_recipes()) if not name.startswith("demo")]
SERVED = {"recaption", "fuse", "rewrite", "complete"}
COLOURS = {"red": (200, 30, 40), "green": (40, 160, 60), "blue": (40, 70, 190), "yellow": (230, 200, 50)}
TINY_SHAPE = {"image_size": 32, "patch_size": 16, "image_layers": 1, "text_layers": 1, "vocab_size": 515}
TINY_TRAINING = ("batch_size=8", "samples_seen=64", "num_workers=1", "num_threads=1", "warmup_steps=1")
# What was chosen for millions of pairs, for two dozen.
SMALLER = {
    "datacomp-image": ["parameters.num_clusters=2"],
    "datacomp-image-and-clip": ["parameters.num_clusters=2", "select.top.fraction=0.9"],
    "laion2b": ["select.rules.agrees=clip_score.clip_score >= -1"],
    "clipcov": ["parameters.fraction=0.5"],
    "semdedup": ["parameters.num_clusters=2"],
    "cit": ["train.sampling.curation.every=2", "train.towers.context_length=8"],
    "longclip": ["train.towers.context_length=12", "train.losses.longclip.components=3"],
}


@dataclass(frozen=True, kw_only=True)
class Given:
    """A pool, and a value for every parameter that a recipe may ask for."""

    root: Path
    parameters: dict[str, str]
    url: str  # of a model that answers


def answer(asked: Asked) -> str:
    """Describe a picture by its bytes, and merge or rewrite texts by putting them in a row."""
    if asked.image:
        return f"A picture of {len(asked.image)} bytes that shows a dog. It is not large."
    return " and ".join(asked.texts[-1].split('"')[1::2]) or asked.texts[-1].splitlines()[-1]


def make_rows(seed: int) -> list[Row]:
    """Return pairs that every recipe could like: large enough, English, with an action and a concept."""
    rows = []
    for number in range(NUM_ROWS // 2):
        colour = list(COLOURS)[number % len(COLOURS)]
        picture = draw(
            COLOURS[colour], ("circle", "square")[number // 2 % 2], seed=seed * 100 + number, width=128, height=112
        )
        caption = f"a brown dog chases a {colour} ball across the {('garden', 'street', 'beach')[number % 3]} in year {seed}{number}"
        rows.append(Row(url=f"https://example.org/{seed}/{number}.jpg", caption=caption, image=jpeg(picture)))
    return rows


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Given]:
    root = tmp_path_factory.mktemp("recipes")
    pool = Pool(root / "pool")
    for shard in range(2):
        write_shard(pool, shard, make_rows(shard))
    model = str(make_checkpoint(root / "model"))
    np.save(root / "targets.npy", np.eye(2, 24, dtype=np.float32))
    (root / "names.txt").write_text("dog\nball\n")
    (root / "synsets.txt").write_text("n02084071\n")
    parameters = dict.fromkeys(("model", "network", "teacher", "image_tower", "text_tower"), model)
    parameters |= dict.fromkeys(("captioner", "llm", "rewriter"), "test")
    parameters |= dict.fromkeys(("names", "labels", "metadata"), str(root / "names.txt"))
    parameters |= {"targets": str(root / "targets.npy"), "synsets": str(root / "synsets.txt")}
    parameters |= {
        "wordnet": str(make_wordnet(root / "wordnet")),
        "concepts": write_concepts(pool, root / "concepts.parquet"),
    }
    with ChatModel(answer) as served:
        yield Given(root=root, parameters=parameters, url=served.url)


def write_concepts(pool: Pool, path: Path) -> str:
    """Write what diht asks of a teacher: two concepts of each kind for every picture."""
    uids = [uid for shard in pool.shards() for uid in pool.read_table(pool.shard_parquet(shard))["uid"].to_pylist()]
    columns = {f"{kind}_ids": [[number % 3, 3] for number, _ in enumerate(uids)] for kind in ("object", "attribute")}
    columns |= {f"{kind}_probabilities": [[0.75, 0.25]] * len(uids) for kind in ("object", "attribute")}
    pq.write_table(pa.table({"uid": uids, **columns}), path)
    return str(path)


def shrink(name: str, given: Given, **more: str) -> Recipe:
    """Return a shipped recipe with every parameter it lacks, the served model in place of a loaded one, and a training of a few steps."""
    whole = load_recipe(name)
    known = {**given.parameters, **more}
    overrides = [f"parameters.{key}={known[key]}" for key, value in whole.parameters.items() if value is None]
    overrides += SMALLER.get(name, [])
    if whole.train is not None:
        overrides += [f"train.{setting}" for setting in TINY_TRAINING]
        if not whole.train.init and not whole.train.towers:
            overrides += ["train.model=vit-tiny", *(f"train.model_options.{k}={v}" for k, v in TINY_SHAPE.items())]
    recipe = load_recipe(name, overrides)
    return recipe.model_copy(update={"annotate": tuple(serve(call, given.url) for call in recipe.annotate)})


def serve(call: OperatorCall, url: str) -> OperatorCall:
    if call.name not in SERVED:
        return call
    form = {"form": "chat"} if call.name in {"recaption", "rewrite"} else {}
    settings = {"model": "test", "engine": "openai", "url": url, "temperature": 0.0, "cache": "none", **form}
    return OperatorCall(name=call.name, parameters={**call.parameters, **settings})


def go(name: str, given: Given, executor: Executor, **more: str) -> tuple[RunReport, DatasetIndex]:
    """Run a recipe and return its report and its dataset's index."""
    out = given.root / "out" / name
    report = run(shrink(name, given, **more), str(given.root / "pool"), str(out), executor=executor)
    return report, DatasetIndex.from_json(Store(report.dataset).read_bytes(INDEX_FILE).decode(), path=INDEX_FILE)


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_to_its_end(name: str, given: Given, ray_session: Executor) -> None:
    more = {}
    if name == "nlip":
        first, _ = go("nlip-warmup", given, ray_session)
        more = {"losses": first.run}
    report, index = go(name, given, ray_session, **more)
    assert 0 < index.num_samples <= NUM_ROWS
    recipe = load_recipe(name)
    assert bool(report.run) == (recipe.train is not None)
    if not recipe.train:
        return
    lines = (Path(report.run) / "metrics.jsonl").read_text().splitlines()
    assert lines
    for loss in recipe.train.losses:
        assert f'"{loss}"' in lines[-1] or len(recipe.train.losses) == 1
    assert Store(report.run).list_names("checkpoints")


def test_nothing_but_the_scale_changes_a_filter(given: Given, tmp_path: Path) -> None:
    """A scale laid on a filter leaves what it keeps, and decides the training alone."""
    (tmp_path / "mine.yaml").write_text("extends: [datacomp-basic, datacomp-scale-xlarge]\n")
    recipe, basic = load_recipe(tmp_path / "mine.yaml"), load_recipe("datacomp-basic")
    assert recipe.select is not None
    assert basic.select is not None
    assert (recipe.select.rules, recipe.annotate, recipe.build) == (basic.select.rules, basic.annotate, basic.build)
    assert recipe.train is not None
    settings = (recipe.train.model, recipe.train.samples_seen, recipe.train.batch_size)
    assert settings == ("vit-l-14", 12_800_000_000, 90_112)
    assert (recipe.train.lr, recipe.train.warmup_steps, recipe.train.beta2) == (1e-3, 10_000, 0.95)
