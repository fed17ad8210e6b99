import math
from dataclasses import replace
from pathlib import Path

import pytest

from schemas.errors import InputError
from tests.train.dataset_builder import Sample, make_uid, write_dataset
from tests.train.evaluate.encoder import ColourEncoder
from tests.train.evaluate.test_folder import COLOURS, flat
from train.evaluate.dataset import read_dataset
from train.evaluate.suite import evaluate_model
from train.evaluate.task import ProbeTask, RetrievalTask, ZeroShotTask
from train.evaluation import EvaluationOptions


@pytest.fixture
def samples() -> list[Sample]:
    """Four rows of three different pictures; the second row shows the first one's picture with another text."""
    rows = [
        (COLOURS["red"], "250 10 10", ["pure 255 0 0", ""], "warm"),
        (COLOURS["red"], "240 20 20", [], "warm"),
        (COLOURS["green"], "10 250 10", ["10 250 10"], "cold"),
        (COLOURS["blue"], None, [], None),
    ]
    return [
        Sample(
            uid=make_uid(number),
            image=flat(colour),
            captions={"alt_text": text, "rewrite": rewrites},
            extra={"kind": kind},
        )
        for number, (colour, text, rewrites, kind) in enumerate(rows)
    ]


def _write(tmp_path: Path, samples: list[Sample], **captions: float) -> str:
    return str(write_dataset(tmp_path / "set", samples, shard_size=3, captions=captions, name="colours"))


def test_columns_and_rows_of_one_picture_are_its_captions(tmp_path: Path, samples: list[Sample]) -> None:
    folder = _write(tmp_path, samples, alt_text=0.5, rewrite=0.5)
    data = read_dataset(folder)
    (task,) = data.tasks
    assert isinstance(task, RetrievalTask)
    assert list(task.captions) == [["250 10 10", "pure 255 0 0", "240 20 20"], ["10 250 10"]]
    metrics = evaluate_model(ColourEncoder(), [folder], num_workers=0)["colours"]
    assert metrics["num_images"] == 2
    assert metrics["num_captions"] == 4
    assert metrics["text_to_image_recall@1"] == 1.0


def test_the_web_text_stands_in_for_an_image_without_a_caption_of_the_mixture(
    tmp_path: Path, samples: list[Sample]
) -> None:
    (task,) = read_dataset(_write(tmp_path, samples, rewrite=1.0)).tasks
    assert isinstance(task, RetrievalTask)
    assert list(task.captions) == [["pure 255 0 0"], ["10 250 10"]]
    only = [replace(sample, captions={**sample.captions, "rewrite": []}) for sample in samples]
    (task,) = read_dataset(_write(tmp_path / "other", only, rewrite=1.0)).tasks
    assert isinstance(task, RetrievalTask)
    assert list(task.captions) == [["250 10 10", "240 20 20"], ["10 250 10"]]


def test_a_column_of_labels_makes_a_classification(tmp_path: Path, samples: list[Sample]) -> None:
    data = read_dataset(_write(tmp_path, samples, alt_text=1.0), EvaluationOptions(label_column="kind"))
    task = data.tasks[1]
    assert isinstance(task, ZeroShotTask)
    assert list(task.classnames) == ["cold", "warm"]
    assert task.labels.tolist() == [1, 1, 0]
    assert len(task.images) == 3
    with pytest.raises(InputError, match=r"no sample of .* has a value for 'nothing' in its sidecars or JSON"):
        read_dataset(str(tmp_path / "set"), EvaluationOptions(label_column="nothing"))


def test_labels_are_evaluated_beside_retrieval(tmp_path: Path, samples: list[Sample]) -> None:
    named = [replace(s, extra={"kind": "250 0 0" if row < 2 else "0 250 0"}) for row, s in enumerate(samples[:3])]
    folder = _write(tmp_path, named, alt_text=1.0)
    metrics = evaluate_model(
        ColourEncoder(), [folder], EvaluationOptions(label_column="kind", templates=("a {c}",)), num_workers=0
    )
    assert metrics["colours"]["acc1"] == 1.0
    assert metrics["colours"]["num_images"] == 2
    assert metrics["colours"]["num_labelled_images"] == 3


def test_a_dataset_without_texts_is_refused(tmp_path: Path, samples: list[Sample]) -> None:
    with pytest.raises(InputError, match="has no captions in alt_text, rewrite: nothing to retrieve"):
        read_dataset(_write(tmp_path, samples[3:], alt_text=0.5, rewrite=0.5))


def test_wrong_captions_in_columns_are_compared_by_kind(tmp_path: Path, samples: list[Sample]) -> None:
    wrong: list[tuple[list[str], list[str], str | None]] = [
        (["10 250 10", "245 15 15"], ["noun", "adjective"], "0 0 255"),
        ([], [], ""),
        (["250 10 10"], ["noun"], None),
        (["1 2 3"], ["noun"], "1 2 3"),  # without a caption of its own
    ]
    given = [
        replace(s, captions={**s.captions, "negatives": texts, "negative_kinds": kinds, "other": other})
        for s, (texts, kinds, other) in zip(samples, wrong, strict=True)
    ]
    folder = _write(tmp_path, given, alt_text=1.0)
    options = EvaluationOptions(negatives=("negatives", "other"))
    metrics = evaluate_model(ColourEncoder(), [folder], options, num_workers=0)["colours"]
    assert metrics["composition_noun"] == 1.0
    assert metrics["num_composition_noun"] == 2
    assert metrics["num_composition_adjective"] == metrics["num_composition_other"] == 1
    assert metrics["composition_other"] == 1.0
    with pytest.raises(InputError, match=r"has no column of texts 'nothing'; it has alt_text, rewrite, negatives"):
        read_dataset(folder, EvaluationOptions(negatives=("nothing",)))


def test_groups_and_probes_of_a_dataset(tmp_path: Path) -> None:
    samples = [
        Sample(
            uid=make_uid(number),
            image=flat(tuple(int(part) for part in colour.split())),  # type: ignore[arg-type]
            captions={"alt_text": colour},
            extra={"kind": colour[:3], "source": "web" if number % 2 else "stock"},
        )
        for number in range(60)
        for colour in [f"250 {number} 10" if number % 3 else f"010 {number} 250"]
    ]
    folder = _write(tmp_path, samples, alt_text=1.0)
    options = EvaluationOptions(
        label_column="kind", templates=("{c} 30 128",), group_column="source", probe=True, shots=(2,)
    )
    metrics = evaluate_model(ColourEncoder(), [folder], options, num_workers=0)["colours"]
    assert metrics["worst_source_acc1"] == min(metrics["acc1[source=stock]"], metrics["acc1[source=web]"])
    assert metrics["probe_acc1"] == metrics["shots_2_acc1"] == 1.0
    assert "worst_source_text_to_image_recall@1" in metrics
    probe = read_dataset(folder, options).tasks[2]
    assert isinstance(probe, ProbeTask)
    assert len(probe.images) + len(probe.test_images) == 60
    assert 4 <= len(probe.test_images) <= 24
    with pytest.raises(InputError, match="no sample has a value for 'nothing' in its sidecars or JSON"):
        read_dataset(folder, EvaluationOptions(group_column="nothing"))


def test_columns_of_the_sidecar_are_groups_too(tmp_path: Path, samples: list[Sample]) -> None:
    given = [replace(s, captions={**s.captions, "cluster.name": "a" if row else "b"}) for row, s in enumerate(samples)]
    folder = _write(tmp_path, given, alt_text=1.0)
    options = EvaluationOptions(group_column="cluster.name", label_column="kind")
    retrieval, zeroshot = read_dataset(folder, options).tasks
    assert isinstance(retrieval, RetrievalTask)
    assert isinstance(zeroshot, ZeroShotTask)
    assert [group.values for group in retrieval.groups] == [["b", "a"]]
    assert [group.values for group in zeroshot.groups] == [["b", "a", "a"]]


def test_a_column_of_relevance_grades_pictures_for_texts(tmp_path: Path) -> None:
    """Red is shown in two rows, with one text twice; its best grade for a text counts."""
    rows: list[tuple[str, str, object]] = [
        ("red", "250 10 60", 3),
        ("green", "250 10 60", 1.5),
        ("red", "200 100 10", None),
        ("blue", "10 10 250", 0),
        ("green", "10 250 60", 2),
        ("red", "10 250 60", 1),
        ("red", "10 250 60", 2.5),
    ]
    samples = [
        Sample(
            uid=make_uid(number), image=flat(COLOURS[colour]), captions={"alt_text": text}, extra={"relevance": grade}
        )
        for number, (colour, text, grade) in enumerate(rows)
    ]
    folder = _write(tmp_path, samples, alt_text=1.0)
    options = EvaluationOptions(relevance_column="relevance")
    (task,) = read_dataset(folder, options).tasks
    assert isinstance(task, RetrievalTask)
    assert list(task.grades) == [
        {"250 10 60": 3.0, "200 100 10": 0.0, "10 250 60": 2.5},
        {"250 10 60": 1.5, "10 250 60": 2.0},
        {"10 10 250": 0.0},
    ]
    metrics = evaluate_model(ColourEncoder(), [folder], options, num_workers=0)["colours"]
    # Both texts find blue in the second place. Green is the less relevant to the text that finds it first.
    assert metrics["num_graded_texts"] == 2
    red = (3 + 1.5 / math.log2(4)) / (3 + 1.5 / math.log2(3))
    green = (2 + 2.5 / math.log2(4)) / (2.5 + 2 / math.log2(3))
    assert metrics["text_to_image_ndcg@10"] == pytest.approx((red + green) / 2)
    (plain,) = read_dataset(folder).tasks
    assert isinstance(plain, RetrievalTask)
    assert list(plain.grades) == []


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-1, "'relevance' of sample [0-9a-f]{32} is -1; relevance is a number of 0 or more"),
        ("much", "is 'much'; relevance is a number of 0 or more"),
        (0, "no pair of .* has a number above 0 for 'relevance' in its sidecars or JSON"),
    ],
)
def test_wrong_relevance(tmp_path: Path, samples: list[Sample], value: object, message: str) -> None:
    given = [replace(sample, extra={"relevance": value}) for sample in samples]
    with pytest.raises(InputError, match=message):
        read_dataset(_write(tmp_path, given, alt_text=1.0), EvaluationOptions(relevance_column="relevance"))
