import numpy as np
import pytest
import torch

from tests.train.losses.outputs import array, clip_reference, make_objective, make_outputs
from train.losses.filip import late_interaction
from train.request import Ids, Patches, Tokens


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def best_mean(tokens: np.ndarray, others: np.ndarray) -> float:
    return float(np.mean([max(token @ other for other in others) for token in tokens]))


@pytest.mark.parametrize("chunk", [2, 64])
def test_reference_of_three_loops(chunk: int) -> None:
    # With more tokens kept than there are, all count; padding never wins.
    loss = make_objective({"filip": {"width": 8, "num_tokens": 9, "chunk": chunk}}).losses["filip"]
    outputs = make_outputs(loss.needs, 5)
    maps = [(m.weight.detach().numpy(), m.bias.detach().numpy()) for m in (loss.image_map, loss.text_map)]
    images = [unit(row @ maps[0][0].T + maps[0][1]) for row in array(outputs, Patches())]
    lengths = (array(outputs, Ids()) >= 0).sum(1)
    assert len(set(lengths.tolist())) > 1
    texts = [
        unit(row @ maps[1][0].T + maps[1][1])[:n] for row, n in zip(array(outputs, Tokens()), lengths, strict=True)
    ]
    to_texts = np.array([[best_mean(image, text) for text in texts] for image in images]) / 0.07
    to_images = np.array([[best_mean(text, image) for image in images] for text in texts]) / 0.07
    rows = [-np.diag(m - np.log(np.exp(m).sum(1, keepdims=True))).mean() for m in (to_texts, to_images)]
    assert loss(outputs)["filip"].item() == pytest.approx(np.mean(rows), rel=1e-4)


def test_one_token_each_is_info_nce() -> None:
    loss = make_objective({"filip": {"width": 8, "num_tokens": 1}}).losses["filip"]
    images, texts = torch.randn(5, 1, 12), torch.randn(5, 1, 10)
    ids = torch.zeros(5, 1, dtype=torch.int64)
    outputs = make_outputs(loss.needs, 5, changed={Patches(): images, Tokens(): texts, Ids(): ids})
    sides = [
        unit(rows[:, 0].numpy() @ m.weight.detach().numpy().T + m.bias.detach().numpy())
        for rows, m in ((images, loss.image_map), (texts, loss.text_map))
    ]
    assert loss(outputs)["filip"].item() == pytest.approx(clip_reference(sides[0] @ sides[1].T / 0.07), rel=1e-4)


def test_the_best_tokens_are_kept() -> None:
    loss = make_objective({"filip": {"num_tokens": 1}}).losses["filip"]
    tokens = torch.eye(3)[None]
    kept, valid = loss._keep_best(
        tokens, torch.tensor([[True, True, False]]), torch.eye(3)[None, 1:], torch.ones(1, 2) > 0
    )
    assert torch.equal(kept[0], tokens[0, 1:2])
    assert valid.all()


def test_padding_counts_on_neither_side() -> None:
    one, other = torch.tensor([[[1.0, 0.0], [0.0, 9.0]]]), torch.tensor([[[0.5, 0.0], [9.0, 9.0]]])
    valid = torch.tensor([[True, False]])
    assert late_interaction(one, valid, other, valid).item() == 0.5
