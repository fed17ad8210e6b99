"""negCLIPLoss against its golden values, a plain computation, and the contrastive loss that it is named after."""

from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from scipy.special import logsumexp

from curate.executor import Executor
from curate.fingerprint import fingerprint
from curate.operators import neg_clip_loss as module
from curate.operators.clip_embedding import ClipEmbedding
from curate.operators.clip_text_embedding import ClipTextEmbedding
from curate.operators.neg_clip_loss import NegClipLoss, neg_clip_loss
from curate.pool_work import PoolWork
from schemas.errors import InputError
from tests.contract import check_pool_operator
from tests.embedding import embedding_rows, unit

FINGERPRINT = "cb9ec81bd0f4211ff122433d586865e7222a48f2359192c286b9f54a7bef4aeb"
SIMILARITIES = np.array([[0.9, 0.1, 0.3], [0.2, 0.7, 0.4], [0, 0.5, 0.6]], np.float32)


def make_pairs(
    num_rows: int, *, noise: float = 0.7, dimensions: int = 12, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures and captions near them, as half precision stores them."""
    random = np.random.default_rng(seed)
    images = unit(random.normal(size=(num_rows, dimensions)))
    texts = unit(images + noise * random.normal(size=(num_rows, dimensions)) / np.sqrt(dimensions / 4))
    return images.astype(np.float16).astype(np.float64), texts.astype(np.float16).astype(np.float64)


def rows_of(images: np.ndarray, texts: np.ndarray, *, no_text: int | None = None, **absent: Any) -> pa.Table:
    lists = [None if row == no_text else text for row, text in enumerate(texts.astype(np.float32))]
    return embedding_rows(images, **absent).append_column("text_embedding", pa.array(lists, pa.list_(pa.float32())))


def check(operator: NegClipLoss, rows: pa.Table) -> dict[str, list[Any]]:
    pinned = FINGERPRINT if operator == NegClipLoss() else fingerprint(operator, {})
    return check_pool_operator(operator, fingerprint=pinned, rows=rows).to_pydict()


def plain(images: np.ndarray, texts: np.ndarray, temperature: float) -> np.ndarray:
    """The formula, over the whole matrix."""
    cosines = unit(images) @ unit(texts).T
    of_images, of_texts = (logsumexp(cosines / temperature, axis=axis) for axis in (1, 0))
    return np.asarray(np.diag(cosines) - temperature / 2 * (of_images + of_texts))


def test_golden_values() -> None:
    """Rows are pictures: three captions that are axes have the similarities for products."""
    found = neg_clip_loss(SIMILARITIES, np.eye(3, dtype=np.float32), 0.1)
    assert found == pytest.approx([-0.00019225, -0.00920471, -0.02424591], abs=1e-7)
    saturated = neg_clip_loss(SIMILARITIES, np.eye(3, dtype=np.float32), 0.01)
    assert saturated == pytest.approx([0, 0, 0], abs=1e-5)


@pytest.mark.parametrize(("num_pairs", "tile"), [(1, 4), (7, 3), (300, 64), (300, 2048)])
@pytest.mark.parametrize("temperature", [0.01, 0.07, 2.0])
def test_equals_the_formula_whatever_the_tiles(
    num_pairs: int, tile: int, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TILE", tile)
    images, texts = (unit(x).astype(np.float32) for x in make_pairs(num_pairs))
    found = neg_clip_loss(images, texts, temperature)
    np.testing.assert_allclose(found, plain(images, texts, temperature), atol=2e-6)


def test_nothing_overflows_or_vanishes() -> None:
    """Of opposite and of equal vectors at a temperature at which exp(1 / temperature) is no number."""
    vectors = np.array([[1, 0], [-1, 0], [1, 0], [0, 1]], np.float32)
    texts = np.array([[1, 0], [1, 0], [-1, 0], [0, -1]], np.float32)
    np.testing.assert_allclose(neg_clip_loss(vectors, texts, 0.002), plain(vectors, texts, 0.002), atol=1e-6)


def test_is_minus_the_contrastive_loss_times_the_temperature() -> None:
    torch = pytest.importorskip("torch")
    images, texts = (unit(x).astype(np.float32) for x in make_pairs(40))
    logits = torch.from_numpy(images @ texts.T) / 0.05
    cross_entropy = torch.nn.functional.cross_entropy
    own = torch.arange(40)
    losses = (cross_entropy(logits, own, reduction="none") + cross_entropy(logits.T, own, reduction="none")) / 2
    np.testing.assert_allclose(neg_clip_loss(images, texts, 0.05), -0.05 * losses.numpy(), atol=1e-6)


def test_a_pool_in_one_batch() -> None:
    images, texts = make_pairs(60)
    found = check(NegClipLoss(), rows_of(images, texts, missing=[5], lost=[7], no_text=9))
    there = [row for row in range(60) if row not in (5, 7, 9)]
    losses = np.array(found["neg_clip_loss"], dtype=float)
    np.testing.assert_allclose(losses[there], plain(images[there], texts[there], 0.01), atol=2e-4)
    assert [found["neg_clip_loss"][row] for row in (5, 7, 9)] == [None] * 3
    assert [found["error"][row] for row in (5, 7, 9)] == [
        "no image_embedding and text_embedding",
        "no image: gone",
        "no image_embedding and text_embedding",
    ]
    ranks = np.array(found["neg_clip_loss_rank"], dtype=float)[there]
    lower = [(losses[there] < one).mean() for one in losses[there]]
    np.testing.assert_allclose(ranks, lower, atol=1e-6)


def test_partitions_are_drawn_by_seed_and_uid_and_averaged() -> None:
    images, texts = make_pairs(90)
    operator = NegClipLoss(batch_size=30, num_partitions=4, temperature=0.05, seed=6)
    found = check(operator, rows_of(images, texts))
    uids = [f"{row:032x}" for row in range(90)]
    expected = np.zeros(90)
    for seed in (6, 7, 8, 9):
        order = np.argsort([uid_number_of(seed, uid) for uid in uids])
        for batch in np.split(order, 3):
            expected[batch] += plain(images[batch], texts[batch], 0.05) / 4
    np.testing.assert_allclose(found["neg_clip_loss"], expected, atol=2e-4)
    one = check(NegClipLoss(batch_size=30, num_partitions=1, temperature=0.05, seed=6), rows_of(images, texts))
    assert np.abs(np.subtract(one["neg_clip_loss"], expected)).max() > 1e-3


def uid_number_of(seed: int, uid: str) -> int:
    """What `draw_sql` says, by another implementation."""
    import hashlib

    return int.from_bytes(hashlib.md5(f"{seed}:{uid}".encode(), usedforsecurity=False).digest()[8:], "little")


def test_a_pair_that_stands_out_among_pairs_that_do_not() -> None:
    """What the CLIP score cannot tell: of two pairs of one cosine, that with a caption that fits everything is the worse."""
    images, texts = make_pairs(200, noise=0.2)
    common = unit(images.sum(axis=0, keepdims=True))[0]
    for row in range(50):
        texts[row] = common
    cosines = (images * texts).sum(axis=1)
    found = np.array(check(NegClipLoss(temperature=0.1), rows_of(images, texts))["neg_clip_loss"])
    assert found[:50].max() < found[50:].min()
    assert cosines[:50].max() > 0.3


def test_any_number_of_workers(ray_session: Executor, tmp_path: Path) -> None:
    images, texts = make_pairs(120)
    operator = NegClipLoss(batch_size=25, num_partitions=3)
    rows = rows_of(images, texts)
    with duckdb.connect() as connection:
        for name, executor in (("alone", None), ("shared", ray_session)):
            (tmp_path / name).mkdir()
            work = PoolWork(tmp_path / name, executor)
            found = pa.concat_tables(operator.annotate(connection.from_arrow(rows), work)).to_pydict()
            if executor is None:
                first = found
    assert found == first


def test_the_model_brings_the_embeddings() -> None:
    model = "a" * 40
    operator = NegClipLoss(model="owner/name", revision=model)
    assert [type(one) for one in operator.requires()] == [ClipEmbedding, ClipTextEmbedding]
    labels = [one.label for one in NegClipLoss(model="owner/name", revision=model, label="b32").requires()]
    assert labels == ["b32_clip_embedding", "b32_clip_text_embedding"]
    bound = NegClipLoss(model="owner/name", revision=model, bind={"image_embedding": "mine.image_embedding"})
    assert [type(one) for one in bound.requires()] == [ClipTextEmbedding]
    assert NegClipLoss().requires() == ()
    assert operator.identity() == NegClipLoss().identity()


def test_bad_parameters_and_embeddings_of_two_models() -> None:
    for bad in ({"temperature": 0.0}, {"batch_size": 1}, {"num_partitions": 0}):
        with pytest.raises(InputError, match="temperature must be above 0, batch_size at least 2"):
            NegClipLoss(**bad)
    images, _ = make_pairs(9)
    _, texts = make_pairs(9, dimensions=8)
    with pytest.raises(InputError, match="pictures' embeddings have 12 dimensions, captions' 8"):
        check(NegClipLoss(seed=1), rows_of(images, texts))
