import json
import math
from pathlib import Path

import pytest
import torch
import transformers

from schemas.errors import InputError
from train.config import MODELS, ModelConfig
from train.model import LOGIT_SCALE_MAX, ImageTextModel, _num_leading_tokens, build_model, load_model, load_weights
from train.request import Patches, Pooled, Text, Tokens, View
from train.tokenizer import tokenize, train_tokenizer

SHAPES = {
    "vit": ModelConfig(
        image_size=32, patch_size=8, image_width=64, image_layers=2, image_heads=2, text_width=64, text_layers=2,
        text_heads=2, context_length=16, embed_dim=48,
    ),
    "convnext": ModelConfig(
        image_tower="convnext", image_size=32, patch_size=4, image_depths=(1, 1), image_widths=(16, 32), text_width=64,
        text_layers=2, text_heads=2, context_length=16, embed_dim=48,
    ),
}  # fmt: skip
TEXTS = ["a red dog", "two blue cats on a mat and a dog that is very much too long for the context of this model", ""]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module", params=SHAPES)
def model(request: pytest.FixtureRequest) -> ImageTextModel:
    tokenizer = train_tokenizer(["a red dog", "two blue cats on a mat"] * 3, 560, 16)
    return build_model(SHAPES[request.param], tokenizer, seed=1).eval()


def images(count: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def run(model: ImageTextModel) -> tuple[torch.Tensor, ...]:
    ids, mask = model.tokenize(TEXTS)
    inputs = {View().key: images(), f"{Text().key}.ids": ids, f"{Text().key}.mask": mask}
    found = model(inputs, (View(), Text()))
    return found[View().key], found[Text().key], found["logit_scale"]


def save(model: ImageTextModel, folder: Path) -> Path:
    folder.mkdir()
    model.save(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
def test_features_are_unit_vectors(model: ImageTextModel) -> None:
    image_features, text_features, scale = run(model)
    assert image_features.shape == text_features.shape == (3, 48)
    torch.testing.assert_close(image_features.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(text_features.norm(dim=1), torch.ones(3))
    assert scale.item() == pytest.approx(1 / 0.07)
    assert model.embed_dim == 48


@torch.no_grad()
def test_everything_asked_for_comes_from_one_run(model: ImageTextModel) -> None:
    several, second = Text(columns=("rewrite",), count=2), View(number=1)
    ids, mask = model.tokenize(TEXTS * 2)
    inputs = {
        View().key: images(),
        second.key: images().flip(0),
        f"{Text().key}.ids": ids[:3],
        f"{Text().key}.mask": mask[:3],
        f"{several.key}.ids": torch.stack([ids[:3], ids[:3].flip(0)], dim=1),
        f"{several.key}.mask": torch.stack([mask[:3], mask[:3].flip(0)], dim=1),
    }
    found = model(inputs, (View(), second, Pooled(), Patches(second), Text(), several, Tokens()))
    plain_images, plain_texts, _ = run(model)
    torch.testing.assert_close(found[View().key], plain_images)
    torch.testing.assert_close(found[second.key], plain_images.flip(0))
    torch.testing.assert_close(found[Text().key], plain_texts)
    torch.testing.assert_close(found[several.key][:, 1], plain_texts.flip(0))
    shape = model.shape
    assert found[Pooled().key].shape == (3, shape.image_width)
    assert found[Patches(second).key].shape[::2] == (3, shape.image_width)
    assert found[Tokens().key].shape == (3, ids.shape[1], shape.text_width)
    assert set(model(inputs, (View(),))) == {View().key, "logit_scale"}
    assert set(model(inputs, (Pooled(),))) == {View().key, Pooled().key, "logit_scale"}


@torch.no_grad()
def test_patches_are_those_of_the_picture_alone(model: ImageTextModel) -> None:
    found = model({View().key: images()}, (Patches(),))[Patches().key]
    hidden = model.network.vision_model(pixel_values=model._normalise(images())).last_hidden_state
    if model.network.config.model_type == "clip":
        assert hidden.shape[1] == 17
        assert torch.equal(found, hidden[:, 1:])  # 16 of 8 x 8 pixels, without the class token
    else:
        assert torch.equal(found[:, 0], hidden[:, :, 0, 0])
        assert found.shape[1] == hidden.shape[2] * hidden.shape[3]


@pytest.mark.parametrize(
    ("name", "count"), [("CLIPVision", 1), ("SiglipVision", 0), ("DeiT", 2), ("Dinov2WithRegisters", 5)]
)
@torch.no_grad()
def test_tokens_before_the_patches(name: str, count: int) -> None:
    config = getattr(transformers, f"{name}Config")(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    )
    tower = getattr(transformers, f"{name}Model")(config)
    assert _num_leading_tokens(tower) == count
    assert tower(torch.zeros(1, 3, 32, 32)).last_hidden_state.shape[1] == count + 16


def test_a_frozen_tower_has_no_gradients(model: ImageTextModel) -> None:
    own = model.copy()
    own.freeze(images=True, texts=False)
    image_features, text_features, _ = run(own)
    assert not image_features.requires_grad
    assert text_features.requires_grad
    assert all(parameter.requires_grad for parameter in model.parameters())


@torch.no_grad()
def test_seed_decides_the_weights(model: ImageTextModel) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    shape = SHAPES["vit" if model.network.config.model_type == "clip" else "convnext"]
    again, other = (build_model(shape, model.tokenizer, seed=seed).state_dict() for seed in (1, 2))
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())
    assert any(not torch.equal(value, other[name]) for name, value in model.state_dict().items())
    assert torch.equal(before, torch.random.get_rng_state())


@torch.no_grad()
def test_uint8_and_normalised_images_agree(model: ImageTextModel) -> None:
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (model.mean, model.std))
    normalised = (images().float() / 255 - mean) / std
    torch.testing.assert_close(model.encode_image(images()), model.encode_image(normalised))


@torch.no_grad()
def test_trimming_the_padding_is_exact(model: ImageTextModel) -> None:
    padded = model.encode_ids(*tokenize(model.tokenizer, TEXTS[::2], 16, trim=False))
    torch.testing.assert_close(model.encode_text(TEXTS[::2]), padded, rtol=0, atol=1e-6)


@torch.no_grad()
def test_saved_folder_loads_with_transformers_alone(model: ImageTextModel, tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    folder = save(model, tmp_path / "model")
    network = AutoModel.from_pretrained(folder)
    tokens = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, truncation=True, return_tensors="pt")
    text_features = torch.nn.functional.normalize(network.get_text_features(**tokens).pooler_output, dim=1)
    torch.testing.assert_close(text_features, model.encode_text(TEXTS), rtol=0, atol=1e-6)
    processor = AutoImageProcessor.from_pretrained(folder)
    pixels = processor([image.permute(1, 2, 0).numpy() for image in images()], return_tensors="pt")["pixel_values"]
    image_features = torch.nn.functional.normalize(network.get_image_features(pixels).pooler_output, dim=1)
    torch.testing.assert_close(image_features, model.encode_image(images()), rtol=0, atol=1e-5)
    assert json.loads((folder / "config.json").read_text())["architectures"] == [type(model.network).__name__]


@torch.no_grad()
def test_loaded_model_gives_the_same_bits(model: ImageTextModel, tmp_path: Path) -> None:
    loaded = load_model(save(model, tmp_path / "model"))
    assert torch.equal(loaded.encode_image(images()), model.encode_image(images()))
    assert torch.equal(loaded.encode_text(TEXTS), model.encode_text(TEXTS))
    assert (loaded.image_size, loaded.context_length, loaded.mean) == (32, 16, model.mean)


def test_equal_weights_give_equal_bytes(model: ImageTextModel, tmp_path: Path) -> None:
    first = save(model, tmp_path / "first")
    shape = SHAPES["vit" if model.network.config.model_type == "clip" else "convnext"]
    other = build_model(shape, model.tokenizer, seed=2)
    load_weights(other, first)
    second = save(other, tmp_path / "second")
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"} <= set(names)
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


@torch.no_grad()
def test_a_siglip_folder_loads(tmp_path: Path, model: ImageTextModel) -> None:
    from transformers import SiglipConfig, SiglipModel

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = SiglipConfig(
        text_config={**shape, "vocab_size": 560, "max_position_embeddings": 12, "projection_size": 32},
        vision_config={**shape, "image_size": 32, "patch_size": 8},
    )
    SiglipModel(config).save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.tokenize(["a dog"])[0].shape == (1, 12)
    assert loaded.encode_text(TEXTS).shape == loaded.encode_image(images()).shape == (3, 32)
    assert loaded.image_size == 32
    assert not loaded.network.logit_bias.requires_grad


def test_every_parameter_is_trained(model: ImageTextModel) -> None:
    # Several processes wait for the gradient of each.
    image_features, text_features, scale = run(model)
    ((image_features @ text_features.T) * scale).square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    model.zero_grad()


def test_logit_scale_is_clamped(model: ImageTextModel) -> None:
    before = model.logit_scale.detach().clone()
    for value, clamped in ((9.0, LOGIT_SCALE_MAX), (-1.0, 0.0), (2.0, 2.0)):
        model.logit_scale.data.fill_(value)
        model.clamp_logit_scale()
        assert model.logit_scale.item() == pytest.approx(clamped)
    assert math.exp(LOGIT_SCALE_MAX) == pytest.approx(100)
    model.logit_scale.data.copy_(before)


def test_named_sizes_have_their_known_parameter_count() -> None:
    # OpenAI's ViT-B/32 has 151,277,313 parameters with its vocabulary of 49,408.
    from transformers import CLIPModel

    from train.model import _network_config

    tokenizer = train_tokenizer(["a"], 515, 77)
    with torch.device("meta"):
        network = CLIPModel(_network_config(MODELS["vit-b-32"], tokenizer))
    count = sum(parameter.numel() for parameter in network.parameters()) + (49_408 - len(tokenizer)) * 512
    assert count == 151_277_313


def test_wrong_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="pin its commit"):
        load_model("someone/some-clip")
    with pytest.raises(InputError, match="holds no model that transformers can load"):
        load_model(tmp_path)
    from transformers import BertConfig, BertModel

    BertModel(
        BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16)
    ).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="BertModel, which is no image-text model"):
        load_model(tmp_path)
