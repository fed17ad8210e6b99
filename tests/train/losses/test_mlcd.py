from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn import functional

from curate.fingerprint import fingerprint
from curate.operators.cluster import Cluster
from schemas.errors import InputError
from tests.contract import check_pool_operator
from tests.embedding import clustered, embedding_rows
from tests.train.dataset_builder import make_uid
from tests.train.losses.outputs import LABELS, array, log_softmax, make_objective, make_outputs, make_tensor
from tests.train.training import TINY, write_scenes
from train.checkpoint import load_optimizer_state
from train.config import TrainConfig
from train.loss import Loss, Outputs
from train.losses import mlcd
from train.metrics import read_metrics
from train.request import Pooled, Shape, Text, View, wanted_texts
from train.trainer import train

pytestmark = pytest.mark.usefixtures("keep_threads")
CLASSES, WIDTH = 40, 8


def make_loss(num_classes: int = CLASSES, **options: object) -> mlcd.MLCD:
    loss = mlcd.MLCD(**options)
    shape = Shape(
        embed_dim=WIDTH,
        image_width=12,
        text_width=10,
        vocab_size=20,
        context_length=6,
        is_text_causal=True,
        num_labels={loss.labels.key: num_classes},
    )
    torch.manual_seed(3)
    loss.build(shape)
    return loss


def outputs_of(loss: Loss, labels: list[list[int]]) -> Outputs:
    return make_outputs(loss.needs, len(labels), changed={loss.labels: torch.tensor(labels)})


def reference(loss: mlcd.MLCD, outputs: Outputs, classes: list[int], *, separate: bool) -> np.ndarray:
    """Return the parts in plain loops, as the paper writes them."""
    weights = loss.prototypes.detach().numpy().astype(np.float64)
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    found = []
    for picture, labels in zip(array(outputs, View()), array(outputs, loss.labels), strict=True):
        own = [int(label) for label in labels if label >= 0]
        if not own:
            continue
        score = {number: loss.scale * float(picture @ weights[number]) for number in (*classes, *own)}
        negative = sum(np.exp(score[number]) for number in classes if number not in own)
        positive = sum(np.exp(-score[number]) for number in own)
        found.append([np.log(1 + negative), np.log(1 + positive)] if separate else [np.log(1 + negative * positive)])
    return np.mean(found, axis=0)


LISTS = [[3, 7, 9], [7, 39, -1], [-1, -1, -1], [0, -1, -1], [12, 3, 30]]


@pytest.mark.parametrize("separate", [True, False])
def test_reference(separate: bool) -> None:
    loss = make_loss(share=1.0, scale=5.0, separate=separate)
    outputs = outputs_of(loss, LISTS)
    terms = loss(outputs)
    assert list(terms) == (["mlcd_negative", "mlcd_positive"] if separate else ["mlcd"])
    expected = reference(loss, outputs, list(range(CLASSES)), separate=separate)
    assert [value.item() for value in terms.values()] == pytest.approx(expected.tolist(), rel=1e-5)


def test_one_label_is_the_single_label_case() -> None:
    """Kept together, the loss of one label is the cross-entropy of the softmax; apart, it is the paper's bound of it."""
    labels = [[4], [4], [17], [39]]
    together, apart = (make_loss(share=1.0, scale=5.0, separate=separate) for separate in (False, True))
    outputs = outputs_of(together, labels)
    weights = functional.normalize(together.prototypes, dim=1).detach().numpy()
    logits = 5 * array(outputs, View()) @ weights.T
    expected = -log_softmax(logits)[np.arange(4), np.array(labels)[:, 0]].mean()
    assert together(outputs)["mlcd"].item() == pytest.approx(expected, rel=1e-5)
    assert sum(apart(outputs).values()).item() > expected
    # The first labels of longer lists alone are the same.
    several = make_loss(share=1.0, scale=5.0, separate=False, num_labels=1)
    longer = outputs_of(several, [[*own, 1, 2] for own in labels])
    assert several(longer)["mlcd"].item() == pytest.approx(expected, rel=1e-5)


def test_a_share_compares_with_the_drawn_classes_alone() -> None:
    loss = make_loss(share=0.5, scale=5.0)
    labels = torch.tensor(LISTS)
    drawn = []
    for step in range(200):
        again = make_loss(share=0.5, scale=5.0)
        again.num_steps.fill_(step)
        classes = loss._choose_classes(labels)
        assert torch.equal(again._choose_classes(labels), classes)
        assert len(classes) == len(set(classes.tolist())) == CLASSES / 2
        assert torch.equal(classes.sort().values, classes)
        assert set(labels[labels >= 0].tolist()) <= set(classes.tolist())
        drawn += classes.tolist()
    counts = np.bincount(drawn, minlength=CLASSES)
    positives = sorted(set(labels[labels >= 0].tolist()))
    others = np.delete(counts, positives)
    # 12 or 13 of the 33 others each time.
    rate = (CLASSES // 2 - len(positives)) / len(others)
    assert (np.abs(others - 200 * rate) < 5 * np.sqrt(200 * rate * (1 - rate))).all()
    loss.num_steps.fill_(0)
    outputs = outputs_of(loss, LISTS)
    classes = make_loss(share=0.5)._choose_classes(labels).tolist()
    expected = reference(loss, outputs, classes, separate=True)
    assert [value.item() for value in loss(outputs).values()] == pytest.approx(expected.tolist(), rel=1e-5)


def test_classes_that_take_no_part_learn_nothing() -> None:
    loss = make_loss(share=0.5)
    outputs = outputs_of(loss, LISTS)
    classes = make_loss(share=0.5)._choose_classes(torch.tensor(LISTS))
    sum(loss(outputs).values()).backward()
    is_moved = loss.prototypes.grad.abs().sum(1) > 0
    assert set(torch.nonzero(is_moved)[:, 0].tolist()) <= set(classes.tolist())
    # The picture without labels is not moved either.
    assert outputs[View()].grad[2].abs().max() == 0
    assert outputs[View()].grad[3].abs().max() > 0


def test_a_share_below_the_batch_is_the_batch() -> None:
    loss = make_loss(share=0.01)
    assert loss._choose_classes(torch.tensor(LISTS)).tolist() == [0, 3, 7, 9, 12, 30, 39]


def test_many_pictures_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for chunk in (512, 2):
        monkeypatch.setattr(mlcd, "_CHUNK", chunk)
        loss = make_loss(share=0.5)
        outputs = outputs_of(loss, LISTS)
        total = sum(loss(outputs).values())
        total.backward()
        results.append((total.detach(), outputs[View()].grad, loss.prototypes.grad))
    for whole, parts in zip(*results, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-7)


def test_a_batch_without_labels_is_no_trouble() -> None:
    loss = make_loss(share=1.0)
    outputs = outputs_of(loss, [[-1, -1]] * 3)
    total = sum(loss(outputs).values())
    total.backward()
    assert total.item() == 0
    assert torch.isfinite(outputs[View()].grad).all()
    every = make_loss(num_classes=2, share=1.0, separate=False)
    outputs = outputs_of(every, [[0, 1]])
    total = every(outputs)["mlcd"]
    total.backward()
    assert total.item() == 0
    assert torch.isfinite(every.prototypes.grad).all()


def test_what_is_asked_for() -> None:
    loss = mlcd.MLCD(labels="cluster.cluster_ids")
    assert wanted_texts(loss.needs) == ()
    assert Text() not in loss.needs
    assert Pooled() not in loss.needs
    assert loss.labels.name == "cluster.cluster_ids"
    built = make_objective({"mlcd": 1.0}).losses["mlcd"]
    assert built.prototypes.shape == (LABELS, WIDTH)
    assert make_tensor(built.labels, 3).shape == (3, 3)


@pytest.mark.parametrize("options", [{"share": 0.0}, {"share": 1.5}, {"scale": 0.0}, {"num_labels": -1}])
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="mlcd: share is above 0 and at most 1, scale above 0, num_labels 0 or more"):
        mlcd.MLCD(**options)


def test_a_column_without_labels_is_refused() -> None:
    with pytest.raises(InputError, match="mlcd: no sample has a label in column 'cluster_ids'; name another in labels"):
        make_loss(num_classes=0)


def test_the_clusters_of_an_operator_are_its_labels(tmp_path: Path) -> None:
    """What `cluster` writes of a pool is read by uid; a picture without an embedding has no cluster, and takes no part."""
    dataset = write_scenes(tmp_path / "dataset")
    operator = Cluster(num_clusters=7, num_nearest=3)
    rows = embedding_rows(clustered(96, 7), missing=[5])
    found = check_pool_operator(operator, fingerprint=fingerprint(operator, {}), rows=rows)
    uids = pa.array([make_uid(int(uid, 16)) for uid in found["uid"].to_pylist()])
    pq.write_table(found.set_column(found.schema.get_field_index("uid"), "uid", uids), tmp_path / "clusters.parquet")
    settings = {**TINY, "losses": {"mlcd": {"share": 0.5}}, "columns": [str(tmp_path / "clusters.parquet")]}
    report = train(str(dataset), str(tmp_path / "run"), TrainConfig(**settings, samples_seen=96))
    saved = load_optimizer_state(report.checkpoint)
    assert saved["weight.objective.losses.mlcd.prototypes"].shape == (7, 32)
    assert saved["weight.objective.losses.mlcd.num_steps"].item() == 6
    losses = [record["loss"] for record in read_metrics(report.run / "metrics.jsonl")]
    assert losses[-1] < losses[0]
