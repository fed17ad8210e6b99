import json

import pytest

from schemas.errors import InputError
from train.config import MODELS, ModelConfig, TrainConfig, first_difference


def test_defaults_are_open_clips() -> None:
    config = TrainConfig()
    assert (config.lr, config.beta1, config.beta2, config.eps, config.weight_decay) == (5e-4, 0.9, 0.98, 1e-6, 0.2)
    assert config.model_config() == ModelConfig(
        image_width=768, image_layers=12, text_width=512, text_heads=8, text_layers=12, embed_dim=512, context_length=77
    )


@pytest.mark.parametrize("name", MODELS)
def test_every_named_model_is_valid(name: str) -> None:
    shape = TrainConfig(model=name).model_config()
    assert shape.image_tower == name.split("-")[0]


def test_options_change_the_named_model() -> None:
    shape = TrainConfig(
        model="convnext-nano", model_options={"image_depths": [1, 1], "image_widths": (8, 16)}
    ).model_config()
    assert (shape.image_depths, shape.image_widths, shape.embed_dim) == ((1, 1), (8, 16), 128)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "vit-b-23"}, "unknown model 'vit-b-23' (did you mean 'vit-b-32'?)"),
        ({"model_options": {"patch": 8}}, "unknown model option 'patch' (did you mean 'patch_size'?)"),
        ({"model_options": {"patch_size": "8"}}, "model option patch_size must be of type int, got '8'"),
        ({"model_options": {"patch_size": 50}}, "image_size 224 is not a multiple of patch_size 50"),
        ({"model_options": {"text_heads": 7}}, "text_width 512 is not a multiple of text_heads 7"),
        (
            {"model_options": {"image_tower": "swin"}},
            "image_tower must be 'vit', 'convnext', 'navit' or 'resnet', got 'swin'",
        ),
        ({"model_options": {"image_tower": "convnext"}}, "a ConvNeXt needs one depth and one width per stage"),
        ({"init": "folder", "model_options": {"patch_size": 8}}, "init 'folder' brings its own shape"),
        ({"init_revision": "abc"}, "init_revision 'abc' is given without init"),
        ({"batch_size": 0}, "batch_size must be above 0, got 0"),
        ({"grad_clip": -1.0}, "grad_clip must not be negative, got -1.0"),
        ({"epochs": 0.0}, "epochs must be above 0 unless samples_seen is given, got 0.0"),
        ({"beta2": 1.0}, "beta2 must be in [0, 1), got 1.0"),
        ({"precision": "fp8"}, "precision must be auto, fp32 or bf16, got 'fp8'"),
        ({"crop_scale": (0.9, 1.1)}, "crop_scale must be two shares 0 < low <= high <= 1, got (0.9, 1.1)"),
        ({"losses": {}}, "losses is empty"),
        ({"eval_every": 5}, "eval_data and eval_every belong together"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        TrainConfig(**settings)
    assert message in str(caught.value)


def test_length_of_a_run() -> None:
    assert TrainConfig(epochs=2.5, batch_size=10).num_steps(4) == 10
    assert TrainConfig(epochs=0.01).num_steps(4) == 1
    assert TrainConfig(samples_seen=101, batch_size=10).num_steps(4) == 11


def test_warmup_takes_at_most_a_quarter() -> None:
    config = TrainConfig(warmup_steps=500)
    assert config.num_warmup_steps(3125) == 500
    assert config.num_warmup_steps(100) == 25


def test_difference_names_the_first_key_that_matters() -> None:
    before = json.loads(json.dumps(TrainConfig(lr=1e-3, seed=1, num_workers=7, captions={"alt_text": 1.0}).to_dict()))
    same = TrainConfig(lr=1e-3, seed=1, num_workers=2, log_every=3, grad_accumulation=4, captions={"alt_text": 1.0})
    assert first_difference(before, same) == ""
    assert first_difference(before, TrainConfig(lr=2e-3, seed=2)) == "lr was 0.001 and is now 0.002"
