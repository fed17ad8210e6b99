import pytest
import torch

from schemas.errors import InputError
from tests.train.losses.outputs import array, clip_reference, make_objective, make_outputs
from train.losses.lit import LiT
from train.request import Shape, Text, View, wanted_views


def test_stored_and_live_embeddings_give_one_loss() -> None:
    live, stored = LiT(), LiT(embedding="image_embedding")
    outputs = make_outputs((*live.needs, *stored.needs), 6)
    # The length of a stored embedding does not count.
    outputs.tensors[stored.image.key] = 3.0 * outputs[View()].detach()  # type: ignore[index]
    expected = clip_reference(7.0 * array(outputs, View()) @ array(outputs, Text()).T)
    assert live(outputs)["lit"].item() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(stored(outputs)["lit"], live(outputs)["lit"])


def test_stored_embeddings_need_no_pictures() -> None:
    assert wanted_views(LiT(embedding="image_embedding").needs) == ()
    assert LiT().locks_images


def test_embeddings_of_another_space_are_refused() -> None:
    objective = make_objective({"lit": {"embedding": "image_embedding"}})
    assert objective.locks_images
    loss = objective.losses["lit"]
    sizes = {"embed_dim": 8, "image_width": 8, "text_width": 8, "vocab_size": 9, "context_length": 5}
    with pytest.raises(InputError, match="the stored embeddings have 512 numbers, the model 8; set init"):
        loss.build(Shape(**sizes, is_text_causal=True, widths={loss.image.key: 512}))
