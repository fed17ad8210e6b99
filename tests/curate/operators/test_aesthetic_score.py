"""Heads over embeddings: weights in every format, prompts through a text tower."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from curate.columns import Input
from curate.models.clip import load_model, load_tokenize, to_half
from curate.operators.aesthetic_score import AestheticScore
from schemas.errors import InputError
from tests.contract import check_operator, column, run
from tests.embedding import clustered, unit
from tests.model import make_checkpoint

FINGERPRINT = "0b590b485d2f0d864d3aecf96d9fda18e326c8497ebc1f7c1ee4db93d7e1bde9"


def as_input(vectors: np.ndarray) -> dict[str, Input]:
    errors = [None if row != 3 else "Image decoding error" for row in range(len(vectors))]
    return {"image_embedding": Input.from_errors(to_half(np.delete(vectors, 3, axis=0)), errors)}


def layers(*sizes: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    arrays = {}
    for number, (inputs, outputs) in enumerate(pairwise(sizes)):
        # Numbered as a Sequential with dropouts between is: 0, 2, ... 10.
        arrays[f"layers.{5 * number}.weight"] = random.normal(size=(outputs, inputs)).astype(np.float32)
        arrays[f"layers.{5 * number}.bias"] = random.normal(size=outputs).astype(np.float32)
    return arrays


def apply(arrays: dict[str, np.ndarray], values: np.ndarray, *, relu: bool = False) -> np.ndarray:
    count = len(arrays) // 2
    for number in range(count):
        values = values @ arrays[f"layers.{5 * number}.weight"].T + arrays[f"layers.{5 * number}.bias"]
        if relu and number < count - 1:
            values = np.maximum(values, 0)
    return np.asarray(values[:, 0])


def write(arrays: dict[str, np.ndarray], path: Path) -> str:
    if path.suffix == ".safetensors":
        save_file(arrays, path)
    elif path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, path)
    return str(path)


@pytest.mark.parametrize("suffix", ["safetensors", "npz", "pth"])
def test_contract_and_values_with_weights(tmp_path: Path, suffix: str) -> None:
    arrays, vectors = layers(16, 8, 4, 1), clustered(12, 5, 16)
    path = write(arrays, tmp_path / f"head.{suffix}")
    operator = AestheticScore(weights=path)
    output = check_operator(
        operator, pinned=operator, fingerprint=fingerprint_of(operator), inputs=as_input(vectors), tolerance=1e-5
    )
    found = column(output, "aesthetic_score")
    assert found[3] is None
    rows = [row for row in range(12) if row != 3]
    assert [found[row] for row in rows] == pytest.approx(apply(arrays, unit(vectors))[rows].tolist(), abs=2e-2)


def fingerprint_of(operator: AestheticScore) -> str:
    from curate.fingerprint import fingerprint

    return fingerprint(operator, {})


def test_the_fingerprint_is_pinned(tmp_path: Path) -> None:
    """Of a head whose bytes are given here: a safetensors file with one zero weight."""
    path = tmp_path / "head.safetensors"
    save_file({"weight": np.zeros((1, 2), np.float32)}, path)
    operator = AestheticScore(weights=str(path))
    found = fingerprint_of(operator)
    assert found == FINGERPRINT, f"it has fingerprint {found}"


def test_relu_between_layers(tmp_path: Path) -> None:
    arrays, vectors = layers(16, 8, 1), clustered(12, 5, 16)
    operator = AestheticScore(weights=write(arrays, tmp_path / "head.npz"), activation="relu")
    found = column(run(operator, as_input(vectors), 12), "aesthetic_score")
    wanted = apply(arrays, unit(vectors), relu=True)
    assert [value for value in found if value is not None] == pytest.approx(np.delete(wanted, 3).tolist(), abs=2e-2)


def test_prompts_where_there_are_no_weights(tmp_path: Path) -> None:
    model = str(make_checkpoint(tmp_path / "model"))
    tokenize = load_tokenize(model)
    prompts = ["a red circle", "a blue square", "a green circle"]
    features = load_model(model).encode_ids(tokenize(prompts), tokenize.pad_id)
    operator = AestheticScore(model=model, positive="a red circle | a green circle", negative="a blue square")
    random = np.random.default_rng(1)
    vectors = unit(random.normal(size=(9, features.shape[1])))
    vectors[0], vectors[1] = features[0], features[1]
    found = column(run(operator, as_input(vectors), 9), "aesthetic_score")
    mean = unit((features[0] + features[2])[None])[0]
    logits = 100 * vectors @ np.stack([mean, features[1]]).T
    wanted = 1 / (1 + np.exp(logits[:, 1] - logits[:, 0]))
    assert [value for value in found if value is not None] == pytest.approx(np.delete(wanted, 3).tolist(), abs=0.05)
    assert all(0 <= value <= 1 for value in found if value is not None)


def test_prompts_ask_for_the_models_embedding(tmp_path: Path) -> None:
    model = str(make_checkpoint(tmp_path / "model"))
    (needed,) = AestheticScore(model=model).requires()
    assert needed.name == "clip_embedding"
    assert AestheticScore(model=model).identity() != AestheticScore(model=model, positive="a nice thing").identity()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "holds matrices of shapes"),
        ({"a.weight": np.zeros((4, 8)), "b.weight": np.zeros((1, 5))}, "must follow on each other"),
        ({"a.weight": np.zeros((3, 8))}, "end in one output"),
    ],
)
def test_wrong_weights(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "head.npz", **arrays)
    with pytest.raises(InputError, match=message):
        AestheticScore(weights=str(tmp_path / "head.npz")).load()


def test_weights_of_another_model(tmp_path: Path) -> None:
    operator = AestheticScore(weights=write(layers(4, 1), tmp_path / "head.npz"))
    with pytest.raises(InputError, match="takes 4 dimensions, the pool's embeddings have 16"):
        run(operator, as_input(clustered(6, 2, 16)), 6)


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"weight": Evil()}, tmp_path / "head.pth")
    with pytest.raises(Exception, match="Weights only load failed"):
        AestheticScore(weights=str(tmp_path / "head.pth")).load()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "needs `weights` of a head, or a `model`"),
        ({"weights": "x.npz", "activation": "tanh"}, "activation is 'tanh'"),
        ({"weights": "missing.npz"}, "does not exist"),
        ({"weights": __file__}, "must be .safetensors"),
    ],
)
def test_wrong_parameters(parameters: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AestheticScore(**parameters).load()
