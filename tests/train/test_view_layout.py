"""Where smaller views lie, and that towers take them."""

import numpy as np
import pytest
import torch
from torch import nn

from schemas.errors import InputError
from tests.train.test_gradients import make_model
from train.request import Patches, Pooled, View
from train.view_layout import ViewLayout, check_views, group_by_size, size_options

SMALL, LOCAL = View(number=1, size=3), View(number=2, scale=(0.1, 0.2), size=4)
VIEWS = (SMALL, View(), LOCAL, View(number=3), View(number=4, size=3))


def test_every_view_has_a_place_of_its_own() -> None:
    layout = ViewLayout(VIEWS, 6)
    # Two whole pictures of 36 pixels; 9 + 16 + 9 more fit into one.
    assert layout.num_slots == 3
    images = np.full((2 * 3, 6, 6, 3), 255, dtype=np.uint8)
    for number, view in enumerate(VIEWS):
        pictures = layout.pictures(images, view)
        assert pictures.shape == (2, *(2 * (view.size or 6,)), 3)
        assert np.shares_memory(pictures, images)
        pictures[0], pictures[1] = number, 10 + number
    layout.clear_rest(images)
    assert np.unique(images).tolist() == [0, 1, 2, 3, 4, 10, 11, 12, 13, 14]
    assert (images == 0).sum() == 3 * 9 + 2 * 3 * (36 - 34)  # the first view is all 0
    batch = torch.from_numpy(images).reshape(2, 3, 6, 6, 3).permute(0, 1, 4, 2, 3)
    for number, view in enumerate(VIEWS):
        found = layout.take(batch, view)
        assert found.shape == (2, 3, *(2 * (view.size or 6,)))
        assert (found[0] == number).all()
        assert (found[1] == 10 + number).all()


def test_pixels_keep_their_order() -> None:
    layout = ViewLayout((View(), SMALL), 4)
    images = np.zeros((3 * 2, 4, 4, 3), dtype=np.uint8)
    expected = np.random.default_rng(0).integers(0, 256, (3, 3, 3, 3), dtype=np.uint8)
    layout.pictures(images, SMALL)[:] = expected
    batch = torch.from_numpy(images).reshape(3, 2, 4, 4, 3).permute(0, 1, 4, 2, 3)
    np.testing.assert_array_equal(layout.take(batch, SMALL).permute(0, 2, 3, 1).numpy(), expected)


def test_whole_views_lie_as_if_there_were_no_others() -> None:
    views = (View(), View(number=1), View(column="negative_uid"))
    layout = ViewLayout(views, 4)
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
    assert layout.num_slots == 3
    for number, view in enumerate(views):
        np.testing.assert_array_equal(layout.pictures(images, view), images[number::3])
    assert ViewLayout((), 4).num_slots == 0
    assert group_by_size(VIEWS) == {3: [SMALL, VIEWS[4]], 0: [View(), VIEWS[3]], 4: [LOCAL]}


@pytest.mark.parametrize(
    ("view", "message"),
    [
        (
            View(number=1, size=33),
            "views of 33 pixels, and the model's pictures have 32; give its option local_size less",
        ),
        (View(number=1, scale=(0.5, 0.2)), "0 < low <= high <= 1, got \\(0.5, 0.2\\)"),
        (View(number=1, scale=(0.5,)), "two shares"),
        (View(number=1, scale=(0.0, 0.5)), "0 < low"),
    ],
)
def test_views_that_cannot_be_made_are_refused(view: View, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_views([View(), view], 32)


def test_a_tower_takes_smaller_views_beside_its_own() -> None:
    """Each as it takes it alone; positions of fewer patches lie between those of the whole picture."""
    torch.set_num_threads(1)
    model = make_model().eval()
    small = View(number=1, size=8)
    generator = torch.Generator().manual_seed(0)
    inputs = {
        view.key: torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8, generator=generator)
        for view, size in ((View(), 16), (small, 8))
    }
    with torch.no_grad():
        found = model(inputs, (View(), Pooled(small), Patches(small)))
        torch.testing.assert_close(found[View().key], model.encode_image(inputs[View().key]), rtol=1e-4, atol=1e-6)
        tower = model.network.vision_model
        pixels = (inputs[small.key].float() / 255 - model._mean) / model._std
        patch = tower.embeddings.patch_embedding(pixels)[:, :, 0, 0]
        table = tower.embeddings.position_embedding.weight
        grid = table[1:].reshape(1, 2, 2, -1).permute(0, 3, 1, 2)
        middle = nn.functional.interpolate(grid, size=(1, 1), mode="bicubic", align_corners=False)[:, :, 0, 0]
        tokens = torch.stack([(tower.embeddings.class_embedding + table[0]).expand_as(patch), patch + middle], dim=1)
        hidden = tower.encoder(inputs_embeds=tower.pre_layrnorm(tokens)).last_hidden_state
        torch.testing.assert_close(found[Pooled(small).key], tower.post_layernorm(hidden[:, 0]), rtol=1e-4, atol=1e-5)
    assert found[Patches(small).key].shape[1] == 1


class Convolutions(nn.Module):
    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return pixel_values


def test_what_makes_a_tower_take_another_size() -> None:
    assert size_options(make_model().network.vision_model) == {"interpolate_pos_encoding": True}
    assert size_options(Convolutions()) == {}
    fixed = Convolutions()
    fixed.positions = nn.Embedding(4, 2)
    with pytest.raises(InputError, match=r"Convolutions takes pictures of one size only.*local_size 0"):
        size_options(fixed)
