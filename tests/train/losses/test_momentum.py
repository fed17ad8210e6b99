from pathlib import Path
from weakref import WeakSet

import numpy as np
import pytest
import torch
from torch.nn import functional

from schemas.errors import InputError
from tests.train.losses.outputs import (
    SCALE,
    array,
    clip_reference,
    log_softmax,
    make_objective,
    make_outputs,
    make_tensor,
)
from tests.train.training import TINY, write_scenes
from train.config import TrainConfig
from train.loss import Outputs
from train.losses import momentum
from train.losses.info_nce import InfoNCE
from train.losses.momentum import Momentum
from train.metrics import read_metrics
from train.request import Row, Teacher, Text, View
from train.trainer import train

NEEDS = (View(), Text(), Teacher(View()), Teacher(Text()), Row())
IMAGES, TEXTS = Teacher(View()), Teacher(Text())


def build(**options: object) -> Momentum:
    loss = make_objective({"momentum": {"queue_size": 12, **options}}).losses["momentum"]
    assert isinstance(loss, Momentum)
    return loss


def batch(number: int, count: int = 5, rows: list[int] | None = None) -> Outputs:
    """Return the outputs of a batch of other samples than those of other numbers."""
    generator = torch.Generator().manual_seed(number)
    features = {
        request: functional.normalize(torch.randn(count, 8, generator=generator), dim=1) for request in NEEDS[:4]
    }
    own = torch.tensor(rows) if rows is not None else 100 * number + torch.arange(count)
    return make_outputs(NEEDS, count, changed={**features, Row(): own})


def reference(outputs: Outputs, queue: list[Outputs], *, hardest: int = 0, cap: float = 1.0, in_batch: bool = True):
    """Return the loss sample by sample and negative by negative."""
    losses = []
    rows = outputs[Row()].tolist()
    for query, key in ((View(), TEXTS), (Text(), IMAGES)):
        queries, keys = array(outputs, query), array(outputs, key)
        seen = [pair for one in queue for pair in zip(array(one, key), one[Row()].tolist(), strict=True)]
        for i, feature in enumerate(queries):
            others = [keys[j] for j in range(len(keys)) if in_batch and rows[j] != rows[i]]
            queued = [other for other, row in seen if row != rows[i] and not (cap < 1 and other @ keys[i] > cap)]
            queued = sorted(queued, key=lambda other, feature=feature: -(other @ feature))
            chosen = [keys[i], *others, *(queued[:hardest] if hardest else queued)]
            losses.append(-log_softmax(SCALE * np.array(chosen) @ feature)[0])
    return float(np.mean(losses))


@pytest.mark.parametrize("in_batch", [True, False])
@pytest.mark.parametrize("options", [{}, {"hardest": 3}, {"cap": 0.2}, {"cap": 0.2, "hardest": 2}])
def test_reference(options: dict[str, float], in_batch: bool) -> None:
    loss = build(in_batch=in_batch, **options)
    earlier, outputs = [batch(1), batch(2)], batch(3)
    for one in earlier:
        loss(one)
    everything = reference(outputs, earlier, in_batch=in_batch)
    expected = reference(outputs, earlier, in_batch=in_batch, **options)
    assert bool(options) == (abs(everything - expected) > 1e-3)
    assert loss(outputs)["momentum"].item() == pytest.approx(expected, rel=1e-5)


def test_gradients() -> None:
    """Against differences of the reference, which moves the queries alone: what they choose among stays what it is."""
    loss = build(hardest=4, cap=0.5)
    earlier, outputs = batch(1), batch(2)
    loss(earlier)
    loss(outputs)["momentum"].backward()
    steps = np.random.default_rng(0).normal(size=(2, 5, 8))

    def value(share: float) -> float:
        moved = {
            side: torch.from_numpy(array(outputs, side) + share * step)
            for side, step in zip((View(), Text()), steps, strict=True)
        }
        fixed = {request: outputs[request].double() for request in (IMAGES, TEXTS)}
        return reference(
            make_outputs(NEEDS, 5, changed={**moved, **fixed, Row(): outputs[Row()]}), [earlier], hardest=4, cap=0.5
        )

    expected = (value(1e-5) - value(-1e-5)) / 2e-5
    found = sum((outputs[s].grad.numpy() * step).sum() for s, step in zip((View(), Text()), steps, strict=True))
    assert abs(expected) > 1e-2
    assert found == pytest.approx(expected, rel=1e-3)


def test_the_scale_has_its_gradient() -> None:
    loss = build()
    loss(batch(1))
    outputs = batch(2)
    loss(outputs)["momentum"].backward()
    values = []
    for step in (1e-2, -1e-2):
        other = build()
        other(batch(1))
        tensors = dict(outputs.tensors)
        values.append(other(Outputs(tensors=tensors, logit_scale=torch.tensor(SCALE + step)))["momentum"].item())
    assert outputs.logit_scale.grad.item() == pytest.approx((values[0] - values[1]) / 2e-2, rel=1e-2)


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_chunks_are_the_whole(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for similarities in (2**24, chunk * 10):  # five in the batch, five in the queue
        monkeypatch.setattr(momentum, "_SIMILARITIES", similarities)
        loss, outputs = build(hardest=3), batch(2)
        loss(batch(1))
        value = loss(outputs)["momentum"]
        (3 * value).backward()
        results.append((value, *(outputs[side].grad for side in (View(), Text())), outputs.logit_scale.grad))
    torch.testing.assert_close(results[1], results[0])


class Box:
    """A tensor that is kept for the way back, as long as it is."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def test_nothing_of_the_similarities_is_kept_for_the_way_back() -> None:
    kept = []
    for queue_size in (40, 4000):
        loss = build(queue_size=queue_size)
        for number in range(queue_size // 40):
            loss(batch(number, count=40))
        boxes: WeakSet[Box] = WeakSet()

        def pack(tensor: torch.Tensor, boxes: WeakSet[Box] = boxes) -> Box:
            box = Box(tensor)
            boxes.add(box)
            return box

        outputs = batch(queue_size, count=40)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda box: box.tensor):
            value = loss(outputs)["momentum"]
        kept.append(sum(box.tensor.untyped_storage().nbytes() for box in boxes))
        value.backward()
    assert kept[1] == kept[0] > 0


# ---- The queue -----------------------------------------------------------------------------------------------------------


def test_first_in_first_out_and_never_more_than_its_size() -> None:
    loss = build()
    assert loss.num_seen.item() == 0
    for number in range(4):
        outputs = batch(number)
        loss(outputs)
        filled = min(5 * (number + 1), 12)
        rows = [100 * k + i for k in range(number + 1) for i in range(5)][-filled:]
        assert sorted(loss.queue_rows[:filled].tolist()) == rows
        assert (loss.queue_rows[filled:] == -1).all()
        for place, row in enumerate(loss.queue_rows[:filled].tolist()):
            before = batch(row // 100)
            assert torch.equal(loss.image_queue[place], before[IMAGES][row % 100])
            assert torch.equal(loss.text_queue[place], before[TEXTS][row % 100])
    assert loss.num_seen.item() == 20


def test_a_batch_larger_than_the_queue_leaves_its_end() -> None:
    loss = build(queue_size=3)
    loss(batch(1))
    assert sorted(loss.queue_rows.tolist()) == [102, 103, 104]
    loss(batch(2, count=2))
    assert sorted(loss.queue_rows.tolist()) == [104, 200, 201]


def test_empty_places_are_no_negatives() -> None:
    """An empty place would add exp(0) for each row."""
    outputs, without = batch(1), batch(1)
    assert torch.equal(build(queue_size=1000)(outputs)["momentum"], build(queue_size=0)(without)["momentum"])
    small, large = build(queue_size=5), build(queue_size=1000, hardest=100)
    for loss in (small, large):
        loss(batch(1))
    torch.testing.assert_close(large(batch(2))["momentum"], small(batch(2))["momentum"])


def test_a_queue_of_nothing_with_the_towers_own_features_is_info_nce() -> None:
    """At momentum 0 the copies are the towers: their features are the online ones, without gradients."""
    found, expected = batch(1), batch(1)
    same = {IMAGES: found[View()].detach(), TEXTS: found[Text()].detach(), Row(): found[Row()]}
    found = make_outputs(NEEDS, 5, changed={View(): same[IMAGES], Text(): same[TEXTS], **same})
    value, clip = build(queue_size=0)(found)["momentum"], InfoNCE()(expected)["info_nce"]
    torch.testing.assert_close(value, clip, rtol=1e-6, atol=0)
    assert value.item() == pytest.approx(
        clip_reference(SCALE * array(found, View()) @ array(found, Text()).T), rel=1e-5
    )
    value.backward()
    # InfoNCE's gradients of the choosing side: its columns held fast.
    pairs = ((View(), same[TEXTS]), (Text(), same[IMAGES]))
    for side, columns in pairs:
        rows = found[side].detach().requires_grad_()
        (functional.cross_entropy(SCALE * rows @ columns.T, torch.arange(5)) / 2).backward()
        torch.testing.assert_close(found[side].grad, rows.grad)


def test_the_hardest_of_all_are_all() -> None:
    losses = [build(hardest=hardest) for hardest in (0, 10, 12, 99)]
    for loss in losses:
        loss(batch(1))
        loss(batch(2))
    values = [loss(batch(3))["momentum"] for loss in losses]
    for value in values[1:]:
        torch.testing.assert_close(value, values[0])


def test_the_cap_leaves_out_planted_copies() -> None:
    """The batch stands in the queue as other samples: under the cap it is as if they had never been there."""
    outputs = batch(2)
    copies = make_outputs(
        NEEDS, 5, changed={IMAGES: outputs[IMAGES], TEXTS: outputs[TEXTS], Row(): 900 + torch.arange(5)}
    )
    values = {}
    for cap in (1.0, 0.99):
        for planted in (False, True):
            loss = build(cap=cap, in_batch=False)
            loss(batch(1))
            if planted:
                loss(copies)
            values[cap, planted] = loss(batch(2))["momentum"].item()
    assert values[1.0, True] > values[1.0, False] + 0.1
    # A copy is left out for the row that it copies alone; four others remain, which the row's negatives in a batch would be.
    loss = build(cap=0.99, queue_size=5, in_batch=False)
    loss(copies)
    keys_only = build(queue_size=0)
    torch.testing.assert_close(loss(batch(2))["momentum"], keys_only(batch(2))["momentum"])
    assert values[0.99, True] < values[1.0, True]


def test_a_sample_is_never_its_own_negative() -> None:
    """Not in the queue, where its features of an earlier step stand, nor where the batch has it twice."""
    loss, fresh = build(), build()
    loss(batch(1))
    torch.testing.assert_close(loss(batch(1))["momentum"], _without_own(batch(1)), rtol=1e-5, atol=0)
    twice = batch(3, rows=[7, 8, 7, 9, 9])
    assert fresh(twice)["momentum"].item() == pytest.approx(reference(twice, []), rel=1e-5)
    apart = build()(batch(3))["momentum"]
    assert fresh.num_seen.item() == 5
    assert reference(twice, []) < apart.item() - 1e-2


def _without_own(outputs: Outputs) -> torch.Tensor:
    """Return the loss of a batch that stands in the queue too: each row's four negatives twice."""
    return torch.tensor(reference(outputs, [outputs]))


def test_no_gradient_reaches_queue_and_teacher() -> None:
    loss = build()
    loss(batch(1))
    outputs = batch(2)
    teachers = [outputs[request].requires_grad_() for request in (IMAGES, TEXTS)]
    loss(outputs)["momentum"].backward()
    assert all(teacher.grad is None for teacher in teachers)
    assert not any(buffer.requires_grad for buffer in loss.buffers())
    assert list(loss.parameters()) == []
    loss(batch(3))["momentum"].backward()  # the queue has moved on since


def test_the_teacher_moves_by_its_momentum() -> None:
    objective = make_objective({"momentum": {"queue_size": 4, "momentum": 0.75}})
    towers = torch.nn.Linear(1, 1)
    expected = objective.teacher.weight.item()
    for value in (2.0, -1.0, 5.0):
        towers.weight.data.fill_(value)
        objective.follow(towers)
        expected = 0.75 * expected + 0.25 * value
        assert objective.teacher.weight.item() == pytest.approx(expected, rel=1e-6)
    still = make_objective({"momentum": {"momentum": 0.0}})
    still.follow(towers)
    assert torch.equal(still.teacher.weight, towers.weight)


def test_wrong_options_are_refused() -> None:
    with pytest.raises(InputError, match="queue_size and hardest are 0 or more, got -1 and 0"):
        Momentum(queue_size=-1)
    with pytest.raises(InputError, match="with queue_size 0 and in_batch false there are no negatives"):
        Momentum(queue_size=0, in_batch=False)
    for options in ({"momentum": 1.5}, {"cap": 1.01}, {"cap": -1.0}, {"momentum": float("nan")}):
        with pytest.raises(InputError, match="momentum is from 0 to 1 and cap above -1, at most 1, got"):
            Momentum(**options)


def test_a_run_without_queue_and_momentum_begins_as_info_nce(tmp_path: Path) -> None:
    """In the trainer, whose copy of the towers is made after the seed: the first loss is the same, the teacher's features being theirs."""
    dataset = write_scenes(tmp_path / "dataset")
    curves = {}
    for name, losses in (
        ("info_nce", {"info_nce": 1.0}),
        ("momentum", {"momentum": {"queue_size": 0, "momentum": 0.0}}),
    ):
        config = TrainConfig(**{**TINY, "samples_seen": 16 * 2, "losses": losses})
        train(str(dataset), str(tmp_path / name), config)
        curves[name] = [record["loss"] for record in read_metrics(tmp_path / name / "metrics.jsonl")]
    assert curves["momentum"][0] == pytest.approx(curves["info_nce"][0], rel=1e-5)


def test_random_rows_are_different_samples() -> None:
    assert len(set(make_tensor(Row(), 8).tolist())) == 8
