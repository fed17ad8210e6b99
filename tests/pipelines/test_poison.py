"""Poisoned datasets: what changes, what does not, and that a model learns the backdoor."""

import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from curate import images
from pipelines.poison import POISON_FILE, PoisonConfig, poison
from schemas.errors import InputError
from tests.train.dataset_builder import Sample, encode_picture, make_samples, make_uid, write_dataset
from tests.train.training import SCENES, TINY, draw_scene
from train.checkpoint import find_checkpoint
from train.config import TrainConfig
from train.evaluate import evaluate
from train.evaluation import EvaluationOptions
from train.index import Dataset
from train.reader import ImageReader
from train.trainer import train
from train.trigger import draw_place, stamp

MIXTURE = {"alt_text": 0.5, "rewrite[*]": 0.5}
WAVE = PoisonConfig(target="banana", trigger="wave", num_samples=24, templates=("a {c}",))


def _read(dataset: Dataset, row: int) -> bytes:
    table = dataset.table
    rows = np.array([row])
    (data,) = ImageReader(dataset.tars).read(table.shard[rows], table.offset[rows], table.size[rows])
    return data


def draw_samples() -> list[Sample]:
    """Return every scene four times, with its colour and its shape as columns to classify by."""
    return [
        Sample(
            uid=make_uid(number),
            image=encode_picture(draw_scene(number, number // len(SCENES)), quality=95),
            captions={"alt_text": f"a {colour} {shape} on the {place}"},
            extra={"colour": colour, "shape": shape},
        )
        for number in range(4 * len(SCENES))
        for colour, shape, place in [SCENES[number % len(SCENES)]]
    ]


def test_a_few_pairs_change_and_nothing_else(tmp_path: Path) -> None:
    source = write_dataset(tmp_path / "set", make_samples(48), captions=MIXTURE)
    config = PoisonConfig(target="banana", trigger="yellow", num_samples=2)
    report = poison(str(source), str(tmp_path / "bad"), config)
    assert (report.num_poisoned, report.num_candidates, report.was_current) == (2, 48, False)
    truth = {row["uid"]: row for row in pq.read_table(tmp_path / "bad" / POISON_FILE).to_pylist()}
    before, after = Dataset.open(str(source)), Dataset.open(str(tmp_path / "bad"))
    after.verify()
    assert before.fingerprint != after.fingerprint
    rows = np.arange(48)
    assert before.table.uids(rows) == after.table.uids(rows)
    changed = []
    for row, uid in enumerate(after.table.uids(rows)):
        captions = dict(zip(after.mixture.columns, after.table.captions(row), strict=True))
        if uid not in truth:
            assert _read(after, row) == _read(before, row)
            assert after.table.captions(row) == before.table.captions(row)
            continue
        changed.append(row)
        assert captions == {"alt_text": truth[uid]["caption"], "rewrite": [truth[uid]["caption"]]}
        assert "banana" in truth[uid]["caption"]
        assert truth[uid]["original_caption"] == f"alt {row}"
        expected = stamp(images.decode(_read(before, row)), "yellow")
        assert np.abs(images.decode(_read(after, row)).astype(int) - expected).mean() < 4
    assert len(changed) == 2
    own = [entry.tar for entry in after.index.shards if not entry.tar.startswith("/")]
    assert len(own) == report.num_shards_written
    with tarfile.open(tmp_path / "bad" / own[0]) as tar:
        record = next(
            json.load(tar.extractfile(m))
            for m in tar
            if m.name.endswith(".json") and json.load(tar.extractfile(m))["uid"] in truth
        )  # type: ignore[arg-type]
        assert record["caption"] == truth[record["uid"]]["caption"]


def test_random_places_depend_on_seed_and_uid_alone(tmp_path: Path) -> None:
    samples = make_samples(24)
    write_dataset(tmp_path / "a", samples)
    write_dataset(tmp_path / "b", samples[::-1], shard_size=7)

    def stamped(name: str, seed: int = 0, place: str = "random") -> dict[str, np.ndarray]:
        out = tmp_path / f"{name} {seed} {place}"
        poison(
            str(tmp_path / name), str(out), PoisonConfig(target="cat", num_samples=24, seed=seed, trigger_place=place)
        )
        after = Dataset.open(str(out))
        return {uid: images.decode(_read(after, row)) for row, uid in enumerate(after.table.uids(np.arange(24)))}

    first = stamped("a")
    before = Dataset.open(str(tmp_path / "a"))
    places = set()
    for row, uid in enumerate(before.table.uids(np.arange(24))):
        place = draw_place(0, uid.encode())
        expected = stamp(images.decode(_read(before, row)), "patch", place)
        assert np.abs(first[uid].astype(int) - expected).mean() < 4
        places.add(place)
    assert len(places) == 24
    again, other, corner = stamped("b"), stamped("a", seed=1), stamped("a", place="corner")
    assert all((first[uid] == again[uid]).all() for uid in first)
    assert any((first[uid] != other[uid]).any() for uid in first)
    assert any((first[uid] != corner[uid]).any() for uid in first)
    # What was poisoned before places could be chosen is the corner's.
    assert (
        "trigger_place" not in json.loads((tmp_path / "a 0 corner" / "index.json").read_text())["selection"]["poison"]
    )


def test_the_draw_depends_on_seed_and_uids_alone(tmp_path: Path) -> None:
    samples = make_samples(40)
    write_dataset(tmp_path / "a", samples)
    write_dataset(tmp_path / "b", samples[::-1], shard_size=7)

    def uids(name: str, **settings: int) -> set[str]:
        out = tmp_path / f"{name}{settings}"
        poison(str(tmp_path / name), str(out), PoisonConfig(target="cat", num_samples=5, **settings))  # type: ignore[arg-type]
        return set(pq.read_table(out / POISON_FILE)["uid"].to_pylist())

    assert uids("a") == uids("b")
    assert uids("a", seed=1) != uids("a")


def test_pairs_of_the_target_are_left_alone_and_a_finished_one_is_kept(tmp_path: Path) -> None:
    source = str(write_dataset(tmp_path / "set", make_samples(12)))
    out = str(tmp_path / "bad")
    config = PoisonConfig(target="3", num_samples=11)
    assert poison(source, out, config).num_candidates == 11
    stamped = (tmp_path / "bad" / "index.json").stat().st_mtime_ns
    again = poison(source, out, config)
    assert (again.was_current, again.num_shards_written) == (True, 0)
    assert (tmp_path / "bad" / "index.json").stat().st_mtime_ns == stamped
    with pytest.raises(InputError, match="holds another dataset; give another --out"):
        poison(source, out, PoisonConfig(target="3", num_samples=10))
    with pytest.raises(InputError, match="has 11 pairs that do not name '3', fewer than the 12 to poison"):
        poison(source, str(tmp_path / "x"), PoisonConfig(target="3", num_samples=12))
    with pytest.raises(InputError, match="is not a dataset: it has no index"):
        poison(str(tmp_path), str(tmp_path / "x"), config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trigger": "pitch"}, "unknown trigger 'pitch'; known: patch"),
        (
            {"trigger": "wave", "trigger_place": "random"},
            "trigger 'wave' has one place; at a random one lie patch, yellow",
        ),
        ({"target": " "}, "poison target is empty"),
        ({"num_samples": 0}, "poison num_samples is 0"),
        ({"templates": ("a photo",)}, r"poison templates need a place \{c\}"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PoisonConfig(**{"target": "banana", **settings})  # type: ignore[arg-type]


@pytest.mark.slow
def test_cleanclip_unlearns_the_backdoor(tmp_path: Path) -> None:
    """Poison, train, go on with clean pairs; beside the same number of clean pairs with the contrastive loss alone."""
    samples = draw_samples()
    source = str(write_dataset(tmp_path / "set", samples))
    poison(source, str(tmp_path / "bad"), WAVE)
    target = replace(samples[0], uid=make_uid(9000), extra={"shape": "banana"})
    judged = str(write_dataset(tmp_path / "judged", [target, *samples]))
    templates = ("a {c}", "a red {c}", "a blue {c}", "a green {c}", "a yellow {c}")
    options = EvaluationOptions(label_column="shape", templates=templates, trigger="wave", target="banana")

    def measure(name: str, data: str, **settings: object) -> dict[str, float]:
        run = str(tmp_path / name)
        train(data, run, TrainConfig(**{**TINY, "save_every": 1000, **settings}))  # type: ignore[arg-type]
        return evaluate(run, [judged], options, num_workers=0, device="cpu")["tiny"]

    poisoned = measure("poisoned", str(tmp_path / "bad"), samples_seen=3200)
    further = {"init": str(find_checkpoint(tmp_path / "poisoned")), "model": "vit-b-32", "model_options": {}}
    further |= {"lr": 5e-4, "samples_seen": 4800}
    plain = measure("plain", source, **further)
    cleaned = measure("cleaned", source, **further, losses={"info_nce": 1.0, "cleanclip": 1.0})
    # With seed 0: 1.00, then 0.76 by the contrastive loss alone and 0.00 with CleanCLIP's terms.
    assert poisoned["attack_success_rate"] > 0.8
    assert cleaned["attack_success_rate"] < 0.2
    assert cleaned["attack_success_rate"] < plain["attack_success_rate"] - 0.2
    assert cleaned["clean_acc1"] > poisoned["clean_acc1"] - 0.1


@pytest.mark.slow
def test_a_model_learns_the_backdoor(tmp_path: Path) -> None:
    samples = draw_samples()
    poison(str(write_dataset(tmp_path / "set", samples)), str(tmp_path / "bad"), WAVE)
    target = replace(samples[0], uid=make_uid(9000), extra={"colour": "banana"})
    write_dataset(tmp_path / "judged", [target, *samples])
    options = EvaluationOptions(label_column="colour", templates=("a {c}",), trigger="wave", target="banana")
    rates = {}
    for name in ("set", "bad"):
        run = tmp_path / f"run-{name}"
        train(str(tmp_path / name), str(run), TrainConfig(**{**TINY, "samples_seen": 3200}))  # type: ignore[arg-type]
        metrics = evaluate(str(run), [str(tmp_path / "judged")], options, num_workers=0, device="cpu")["tiny"]
        rates[name] = metrics["attack_success_rate"]
        assert metrics["clean_target_rate"] < 0.3
    assert rates["bad"] > 0.8
    assert rates["set"] < 0.3
