import numpy as np
import pytest
import torch

from tests.train.test_gradients import make_model
from train.columns import SampleColumns
from train.inputs import InputMaker, mask_tokens
from train.loader import Batch
from train.request import Column, Ids, Present, Row, Text, View

SEVERAL, MASKED, LABEL = Text(columns=("rewrite",), count=2), Text(variant="masked"), Column(name="label", kind="label")


@pytest.fixture(scope="module")
def model():
    return make_model()


def batch() -> Batch:
    pictures = torch.arange(2 * 2 * 3 * 4, dtype=torch.uint8).reshape(2, 2, 3, 2, 2)
    captions = [["a red dog", "two cats", "", "a red dog"], ["the mat", "dog", "red", "the mat"]]
    return Batch(
        pictures=pictures, captions=captions, uids=["a", "b"], indices=np.array([4, 2]), seeds=[1, 2], step=0, epoch=0
    )


def test_every_request_gets_its_share(model) -> None:
    second = View(number=1)
    columns = SampleColumns(arrays={LABEL.key: np.array([0, 1, 2, 3, 4])})
    requests = (View(), second, Text(), SEVERAL, Present(SEVERAL), Ids(), LABEL, Row())
    made = InputMaker(model, requests, columns, torch.device("cpu")).make(batch())
    assert set(made.fields) == {Present(SEVERAL).key, Ids().key, LABEL.key, Row().key}
    assert (made.fields[Row().key].tolist(), made.fields[Row().key].dtype) == ([4, 2], torch.int64)
    torch.testing.assert_close(made.towers[second.key], batch().pictures[:, 1])
    assert made.fields[LABEL.key].tolist() == [4, 2]
    assert made.fields[Present(SEVERAL).key].tolist() == [[True, False], [True, True]]
    ids, mask = model.tokenize(["a red dog", "the mat"])
    width = ids.shape[1]
    assert torch.equal(made.towers[f"{Text().key}.ids"][:, :width] * mask, ids * mask)
    assert made.towers[f"{SEVERAL.key}.ids"].shape[:2] == (2, 2)
    assert torch.equal(made.fields[Ids().key] >= 0, made.towers[f"{Text().key}.mask"] > 0)


def test_without_texts_nothing_is_tokenized(model) -> None:
    made = InputMaker(model, (View(),), SampleColumns(), torch.device("cpu")).make(batch())
    assert set(made.towers) == {View().key}
    assert made.fields == {}


def test_parts_are_the_whole_in_order(model) -> None:
    made = InputMaker(model, (View(), Text()), SampleColumns(), torch.device("cpu")).make(batch())
    first, second = made.split(2)
    torch.testing.assert_close(torch.cat([first[View().key], second[View().key]]), made.towers[View().key])
    assert set(first) == set(made.towers)


def test_words_are_masked_at_berts_rates(model) -> None:
    text = "a red dog two cats the mat red"
    ids, mask = model.tokenize([text] * 600)
    found, labels = mask_tokens(ids, mask, model, list(range(600)))
    specials = torch.isin(ids, torch.tensor(model.tokenizer.all_special_ids))
    chosen = labels >= 0
    assert not (chosen & specials).any()
    assert torch.equal(labels[chosen], ids[chosen])
    assert torch.equal(found[~chosen], ids[~chosen])
    assert 0.13 < chosen.sum() / (~specials).sum() < 0.17
    shown = found[chosen]
    assert 0.75 < (shown == model.tokenizer.pad_token_id).float().mean() < 0.85
    assert 0.06 < (shown == ids[chosen]).float().mean() < 0.14
    again, _ = mask_tokens(ids, mask, model, list(range(600)))
    assert torch.equal(again, found)


def test_masked_texts_bring_what_they_hide(model) -> None:
    one = Batch(
        pictures=torch.zeros(1, 0),
        captions=[["a red dog"]],
        uids=["a"],
        indices=np.array([0]),
        seeds=[7],
        step=0,
        epoch=0,
    )
    made = InputMaker(model, (MASKED, Ids(MASKED)), SampleColumns(), torch.device("cpu")).make(one)
    ids, labels = made.towers[f"{MASKED.key}.ids"], made.fields[Ids(MASKED).key]
    plain, _ = model.tokenize(["a red dog"])
    assert torch.equal(torch.where(labels >= 0, labels, ids), plain)
