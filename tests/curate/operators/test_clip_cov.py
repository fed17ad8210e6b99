"""Greedy picks against a plain computation, pair by pair, and what they keep of the cross-covariance."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from curate import cross_covariance
from curate.embedding import normalise
from curate.fingerprint import fingerprint
from curate.models.clip import load_model, load_tokenize
from curate.models.labels import encode_labels
from curate.operators.clip_cov import ClipCov
from schemas.errors import InputError
from tests.contract import check_pool_operator
from tests.embedding import embedding_rows, unit
from tests.model import make_checkpoint

FINGERPRINT = "e5f0b536866382cf59ae205e5113444e16ea5a904773ce4981bad876f34eb6d5"
DIMENSIONS = 12


def make_pairs(num_rows: int, num_classes: int, *, noise: float = 0.6, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Return labels, pictures near them, captions near the pictures, as half precision stores them."""
    random = np.random.default_rng(seed)
    labels = unit(random.normal(size=(num_classes, DIMENSIONS)))
    # Crowded classes first.
    own = np.minimum(random.geometric(0.35, num_rows) - 1, num_classes - 1)
    images = unit(labels[own] + noise * random.normal(size=(num_rows, DIMENSIONS)))
    texts = unit(images + noise * random.normal(size=(num_rows, DIMENSIONS)))
    return labels, *(x.astype(np.float16).astype(np.float64) for x in (images, texts))


def stored(vectors: np.ndarray) -> np.ndarray:
    """Return what the operator works on: unit vectors in half precision."""
    return normalise(vectors).astype(np.float16).astype(np.float64)


def rows_of(images: np.ndarray, texts: np.ndarray, *, no_text: int | None = None, **absent: Any) -> pa.Table:
    lists = [None if row == no_text else text for row, text in enumerate(texts.astype(np.float32))]
    return embedding_rows(images, **absent).append_column("text_embedding", pa.array(lists, pa.list_(pa.float32())))


def check(operator: ClipCov, rows: pa.Table, pinned: str = "") -> dict[str, list[Any]]:
    found = check_pool_operator(operator, fingerprint=pinned or fingerprint(operator, {}), rows=rows)
    return found.to_pydict()


def plain(
    images: np.ndarray, texts: np.ndarray, labels: np.ndarray, size: int, every: int
) -> tuple[Any, Any, list[int]]:
    """ClipCov written down as it is told, over whole matrices, one pick at a time."""
    classes = (images @ labels.T).argmax(axis=1)
    members = [np.flatnonzero(classes == c) for c in range(len(labels))]
    similarity = np.maximum(images @ texts.T, 0)
    cross, score = np.zeros(len(images)), np.zeros(len(images))
    label = (texts * labels[classes]).sum(axis=1)
    for i, c in enumerate(classes):
        own = members[c]
        cross[i] = sum(similarity[i, j] + similarity[j, i] for j in own) / len(own)
        picture, caption = unit(images[own].mean(axis=0)[None])[0], unit(texts[own].mean(axis=0)[None])[0]
        score[i] = cross[i] + 2 * images[i] @ texts[i] + label[i] / 2 - (texts[i] @ picture + images[i] @ caption)
    left = score.copy()
    picked: list[int] = []
    for _ in range(size):
        best = int(left.argmax())
        picked.append(best)
        left[best] = -np.inf
        mine = [i for i in picked if classes[i] == classes[best]]
        if len(mine) % every == 0:
            for i in members[classes[best]]:
                new = mine[-every:]
                lowered = sum(similarity[i, j] + similarity[j, i] for j in new)
                lowered += sum(cross[j] for j in mine) + sum(label[j] / 2 for j in new)
                left[i] -= lowered / len(members[classes[best]])
    return classes, score, picked


@pytest.mark.parametrize("tile", [cross_covariance._TILE, 64])
def test_contract_and_values(tmp_path: Path, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_TILE", "_STRIP", "_ROWS"):
        monkeypatch.setattr(cross_covariance, name, tile)
    labels, images, texts = make_pairs(420, 9)
    np.save(tmp_path / "labels.npy", labels)
    operator = ClipCov(labels=str(tmp_path / "labels.npy"), fraction=0.5, update_every=7)
    found = check(operator, rows_of(images, texts))
    classes, score, picked = plain(stored(images), stored(texts), labels, 210, 7)
    assert max(np.bincount(classes)) > 64
    assert found["clip_cov_class"] == classes.tolist()
    assert found["clip_cov_score"] == pytest.approx(score.tolist(), abs=2e-3)
    ranks = {row: rank for row, rank in enumerate(found["clip_cov_rank"]) if rank is not None}
    assert sorted(ranks, key=lambda row: ranks[row]) == picked
    assert [row for row, kept in enumerate(found["is_clip_cov_kept"]) if kept] == sorted(picked)
    assert set(found["error"]) == {None}


def test_a_smaller_size_picks_a_prefix(tmp_path: Path) -> None:
    labels, images, texts = make_pairs(300, 5)
    np.save(tmp_path / "labels.npy", labels)
    many, few = (
        check(ClipCov(labels=str(tmp_path / "labels.npy"), size=size, update_every=5), rows_of(images, texts))
        for size in (200, 60)
    )
    assert [rank if rank is not None and rank < 60 else None for rank in many["clip_cov_rank"]] == few["clip_cov_rank"]


def covariance(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    return np.asarray((images - images.mean(axis=0)).T @ (texts - texts.mean(axis=0)) / len(images))


def test_picks_keep_the_cross_covariance_of_sound_pairs(tmp_path: Path) -> None:
    """Better than random ones, half of which are mismatched, and than the best scores, which are those of the easy classes."""
    random, num_rows, num_classes = np.random.default_rng(0), 2_000, 20
    labels = unit(random.normal(size=(num_classes, 32)))
    own = random.integers(num_classes, size=num_rows)
    images = unit(labels[own] + 0.3 * random.normal(size=(num_rows, 32)))
    hardness = 0.3 + 1.4 * own[:, None] / num_classes
    texts = unit(images + labels[own] + 0.3 * hardness * random.normal(size=(num_rows, 32)))
    mismatched = np.flatnonzero(random.random(num_rows) < 0.5)
    texts[mismatched] = texts[random.permutation(mismatched)]
    np.save(tmp_path / "labels.npy", labels)
    found = check(ClipCov(labels=str(tmp_path / "labels.npy"), fraction=0.2, update_every=5), rows_of(images, texts))
    sound = np.setdiff1d(np.arange(num_rows), mismatched)
    wanted = covariance(images[sound], texts[sound])

    def error(rows: np.ndarray) -> float:
        return float(np.linalg.norm(wanted - covariance(images[rows], texts[rows])) / np.linalg.norm(wanted))

    kept = np.flatnonzero(found["is_clip_cov_kept"])
    best = np.argsort(-(images * texts).sum(axis=1))[:400]
    drawn = np.mean([error(random.choice(num_rows, 400, replace=False)) for _ in range(10)])
    assert len(kept) == 400
    assert error(kept) < 0.75 * min(error(best), drawn)


def test_weights_draw_every_class_as_often_as_the_pool(tmp_path: Path) -> None:
    labels, images, texts = make_pairs(2_000, 6)
    np.save(tmp_path / "labels.npy", labels)
    found = check(ClipCov(labels=str(tmp_path / "labels.npy"), update_every=5), rows_of(images, texts))
    weights, classes = np.array(found["clip_cov_weight"]), np.array(found["clip_cov_class"])
    kept = np.array(found["is_clip_cov_kept"])
    assert weights[kept].mean() == pytest.approx(1.0)
    assert not weights[~kept].any()
    drawn, shares = np.bincount(classes, weights=weights) / weights.sum(), np.bincount(classes) / 2_000
    assert (drawn > 0).sum() > 3
    assert drawn[drawn > 0] == pytest.approx(shares[drawn > 0] / shares[drawn > 0].sum())


def test_rows_without_either_embedding_are_errors(tmp_path: Path) -> None:
    labels, images, texts = make_pairs(40, 3)
    np.save(tmp_path / "labels.npy", labels)
    operator = ClipCov(labels=str(tmp_path / "labels.npy"), size=100)
    found = check(operator, rows_of(images, texts, no_text=4, missing=[2], lost=[9]))
    assert [found["error"][row] for row in (2, 4, 9, 10)] == [
        "no image_embedding and text_embedding",
        "no image_embedding and text_embedding",
        "no image: gone",
        None,
    ]
    assert [found["clip_cov_rank"][row] for row in (2, 4, 9)] == [None] * 3
    assert sum(found["is_clip_cov_kept"][row] for row in range(40) if row not in (2, 4, 9)) == 37
    rows = rows_of(images[:2], texts[:2], missing=[0, 1])
    assert check(operator, rows)["clip_cov_score"] == [None, None]


def test_names_are_embedded_by_the_model(tmp_path: Path) -> None:
    model = str(make_checkpoint(tmp_path / "model"))
    names = tmp_path / "names.txt"
    names.write_text("circle\n\n square \n", encoding="utf-8")
    vectors = encode_labels(str(names), model, "", "a red {c}| a blue {c} number 3 ")
    tokenize, network = load_tokenize(model), load_model(model)
    for row, name in enumerate(("circle", "square")):
        single = network.encode_ids(tokenize([f"a red {name}", f"a blue {name} number 3"]), tokenize.pad_id)
        assert vectors[row] == pytest.approx(unit(single.mean(axis=0)[None])[0].tolist(), abs=1e-5)
    operator = ClipCov(labels=str(names), model=model, label="mine")
    assert [other.sql_name for other in operator.requires()] == ["mine_clip_embedding", "mine_clip_text_embedding"]
    assert fingerprint(operator, {}) != fingerprint(ClipCov(labels=str(names), model=model, template="{c}"), {})
    random = np.random.default_rng(0)
    images, texts = (unit(random.normal(size=(30, 24))) for _ in range(2))
    halves = images.astype(np.float16).astype(np.float32)
    own = encode_labels(str(names), model, "", operator.template)
    assert check(operator, rows_of(images, texts))["clip_cov_class"] == (halves @ own.T).argmax(axis=1).tolist()


def test_the_fingerprint_is_pinned(tmp_path: Path) -> None:
    (tmp_path / "labels.npy").write_bytes(b"the digest is of these bytes")
    assert fingerprint(ClipCov(labels=str(tmp_path / "labels.npy")), {}) == FINGERPRINT


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"fraction": 0.0}, "fraction must be above 0"),
        ({"update_every": 0}, "update_every at least 1"),
        ({"labels": "names.txt"}, "labels 'names.txt' are names, which need the `model`"),
        ({"template": "a photo"}, "has no {c} where the name"),
    ],
)
def test_wrong_parameters_are_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ClipCov(**{"labels": "labels.npy", **parameters})


def test_wrong_labels_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    with pytest.raises(InputError, match=r"names\.txt' does not exist"):
        encode_labels(str(path), "none", "", "{c}")
    for content, message in ((b"\n", "holds no names"), (b"cat\ncat\n", "holds 'cat' twice"), (b"\xff", "not UTF-8")):
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            encode_labels(str(path), "none", "", "{c}")
    np.save(tmp_path / "labels.npy", np.ones((2, 5)))
    _, images, texts = make_pairs(10, 2)
    operator = ClipCov(labels=str(tmp_path / "labels.npy"))
    with pytest.raises(InputError, match=r"have 5 dimensions, the pool's embeddings 12; make both with the same"):
        check(operator, rows_of(images, texts))
