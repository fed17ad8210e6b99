"""Towers that begin as pretrained ones, that are locked, that see part of a picture, that read longer texts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    BertTokenizerFast,
    RegNetConfig,
    RegNetModel,
    ResNetConfig,
    ResNetModel,
    RobertaConfig,
    RobertaModel,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    ViTConfig,
    ViTModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from schemas.errors import InputError
from tests.train.training import TINY, read_bytes, write_scenes
from train.checkpoint import find_checkpoint
from train.config import TrainConfig
from train.metrics import read_metrics
from train.model import ImageTextModel, load_model
from train.tower_config import TowerConfig
from train.towers import PatchDropper, stretch_positions
from train.trainer import train

pytestmark = pytest.mark.usefixtures("keep_threads")

WORDS = [
    "a",
    "red",
    "green",
    "blue",
    "yellow",
    "square",
    "disc",
    "cross",
    "bar",
    "on",
    "the",
    "left",
    "middle",
    "right",
]
SHORT = {**TINY, "samples_seen": 16 * 6, "save_every": 2, "keep_last": 9}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes") / "dataset")


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(5)
    shape = ViTConfig(
        hidden_size=48, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=24, patch_size=8
    )
    ViTModel(shape).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(6)
    shape = BertConfig(
        vocab_size=5 + len(WORDS),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=24,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    BertModel(shape).save_pretrained(folder)
    return folder


def run(dataset: Path, out: Path, towers: TowerConfig, **settings: Any) -> ImageTextModel:
    train(str(dataset), str(out), TrainConfig(**{**SHORT, **settings}, towers=towers))
    return load_model(find_checkpoint(out))


def at_step(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_model(run / "checkpoints" / f"step_{step:08d}").network.state_dict()


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], prefix: str) -> bool:
    names = [name for name in first if name.startswith(prefix)]
    assert names
    return all(torch.equal(first[name], second[name]) for name in names)


# ---- Pretrained towers ------------------------------------------------------------------------------------------------


def test_locked_pretrained_towers_stay_and_their_projections_learn(
    dataset: Path, vit: Path, bert: Path, tmp_path: Path
) -> None:
    towers = TowerConfig(image=str(vit), text=str(bert), image_locked_steps=-1, text_locked_steps=4)
    model = run(dataset, tmp_path / "run", towers, model_options={"embed_dim": 16})
    assert model.image_size == 24
    assert model.embed_dim == 16
    assert (
        type(AutoModel.from_pretrained(tmp_path / "run/checkpoints/step_00000006")).__name__
        == type(model.network).__name__
    )
    source = ViTModel.from_pretrained(vit).state_dict()
    weights = {step: at_step(tmp_path / "run", step) for step in (2, 4, 6)}
    assert all(torch.equal(weights[6][f"vision_model.{name}"], value) for name, value in source.items())
    assert same(weights[2], weights[4], "text_model.")
    assert not torch.equal(
        weights[4]["text_model.embeddings.word_embeddings.weight"],
        weights[6]["text_model.embeddings.word_embeddings.weight"],
    )
    assert not torch.equal(weights[2]["visual_projection.weight"], weights[4]["visual_projection.weight"])
    assert model.tokenizer.mask_token == "[MASK]"


def test_an_image_tower_of_a_clip_meets_a_new_text_tower(dataset: Path, tmp_path: Path) -> None:
    train(str(dataset), str(tmp_path / "clip"), TrainConfig(**{**SHORT, "samples_seen": 16}))
    checkpoint = find_checkpoint(tmp_path / "clip")
    model = run(dataset, tmp_path / "run", TowerConfig(image=str(checkpoint), image_locked_steps=-1), samples_seen=32)
    theirs = {
        name: value for name, value in load_model(checkpoint).network.state_dict().items() if name.startswith("vision")
    }
    assert all(torch.equal(model.network.state_dict()[name], value) for name, value in theirs.items())


def test_a_pretrained_resnet_meets_a_new_text_tower(dataset: Path, tmp_path: Path) -> None:
    ResNetModel(
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ).save_pretrained(tmp_path / "resnet")
    (tmp_path / "resnet" / "preprocessor_config.json").write_text('{"size": {"height": 32, "width": 32}}')
    model = run(dataset, tmp_path / "run", TowerConfig(image=str(tmp_path / "resnet"), image_locked_steps=-1))
    theirs = ResNetModel.from_pretrained(tmp_path / "resnet").state_dict()
    ours = model.network.vision_model.state_dict()
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_a_pretrained_tower_of_any_aspect_meets_a_new_text_tower(dataset: Path, tmp_path: Path) -> None:
    config = Siglip2VisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, patch_size=8, num_patches=9
    )
    Siglip2VisionModel(config).save_pretrained(tmp_path / "naflex")
    (tmp_path / "naflex" / "preprocessor_config.json").write_text('{"max_num_patches": 16, "patch_size": 8}')
    model = run(dataset, tmp_path / "run", TowerConfig(image=str(tmp_path / "naflex")))
    assert (model.patch_size, model.image_size) == (8, 32)


def test_a_tower_that_does_not_pool_to_a_vector_is_refused(dataset: Path, tmp_path: Path) -> None:
    RegNetModel(
        RegNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], groups_width=8, layer_type="x")
    ).save_pretrained(tmp_path / "regnet")
    (tmp_path / "regnet" / "preprocessor_config.json").write_text('{"size": {"height": 32, "width": 32}}')
    with pytest.raises(InputError, match=r"pools a picture to \(1, 16, 1, 1\), .* use a ViT, a ConvNeXt or a ResNet"):
        run(dataset, tmp_path / "run", TowerConfig(image=str(tmp_path / "regnet")))
    with pytest.raises(InputError, match="holds no model"):
        run(dataset, tmp_path / "other", TowerConfig(image=str(dataset)))


# ---- Locks ------------------------------------------------------------------------------------------------------------


def test_a_run_that_unlocks_goes_on_exactly(dataset: Path, tmp_path: Path) -> None:
    towers = TowerConfig(image_locked_steps=3)
    run(dataset, tmp_path / "whole" / "run", towers)
    assert same(at_step(tmp_path / "whole" / "run", 2), at_step(tmp_path / "whole" / "run", 2), "vision_model.")
    config = TrainConfig(**SHORT, towers=towers)
    from tests.train.test_run_schedule import Break

    for at in (32, 64):  # before and after the tower is unlocked
        with pytest.raises(KeyboardInterrupt):
            train(str(dataset), str(tmp_path / "broken" / "run"), config, progress=Break(at))
    train(str(dataset), str(tmp_path / "broken" / "run"), config)
    assert read_bytes(tmp_path / "whole" / "run") == read_bytes(tmp_path / "broken" / "run")


# ---- Patches ----------------------------------------------------------------------------------------------------------


def test_kept_patches_are_a_function_of_the_seed(dataset: Path, tmp_path: Path) -> None:
    model = run(dataset, tmp_path / "run", TowerConfig(), samples_seen=16)
    dropper = PatchDropper(model, 0.5)
    kept = dropper.draw(range(400))
    assert kept.shape == (400, 8)
    assert (kept.diff(dim=1) > 0).all()
    assert torch.equal(dropper.draw([7, 3]), kept[[7, 3]])
    counts = torch.bincount(kept.flatten(), minlength=16)
    assert counts.min() > 150  # 200 expected of each
    # The features of a picture are those of its kept patches and the class token alone.
    pictures = torch.rand(2, 3, 32, 32)
    whole = model.encode_image(pictures)
    dropper.use(kept[:2])
    assert torch.equal(model.encode_image(pictures), whole)  # not in training: every patch
    model.train()
    hidden = model.network.vision_model(pixel_values=pictures)
    assert hidden.last_hidden_state.shape[1] == 9
    embeddings = model.network.vision_model.embeddings
    dropper.use(None)
    everything = embeddings(pictures)
    dropper.use(kept[:2])
    part = embeddings(pictures)
    for row in range(2):
        torch.testing.assert_close(part[row, 1:], everything[row, 1 + kept[row]])


def test_dropping_patches_does_not_depend_on_parts(dataset: Path, tmp_path: Path) -> None:
    towers = TowerConfig(patch_share=0.5)
    for name, settings in (("one", {}), ("two", {"grad_accumulation": 2})):
        run(dataset, tmp_path / name, towers, **settings)
    run(dataset, tmp_path / "plain", TowerConfig())
    one, two, plain = (
        np.array([record["loss"] for record in read_metrics(tmp_path / name / "metrics.jsonl")])
        for name in ("one", "two", "plain")
    )
    np.testing.assert_allclose(one, two, atol=2e-4)
    assert np.abs(one - plain).max() > 2e-3


def test_only_a_vit_with_a_class_token_drops_patches(dataset: Path, tmp_path: Path) -> None:
    options = {"image_tower": "convnext", "image_depths": (1, 1), "image_widths": (8, 16), "patch_size": 4}
    settings = {**SHORT, "model_options": {**TINY["model_options"], **options}}  # type: ignore[dict-item]
    with pytest.raises(InputError, match="no ViT with a class token"):
        train(str(dataset), str(tmp_path / "run"), TrainConfig(**settings, towers=TowerConfig(patch_share=0.5)))


# ---- Longer and shorter texts -----------------------------------------------------------------------------------------------------


def test_positions_are_kept_and_interpolated_by_four() -> None:
    table = torch.arange(77.0)[:, None] ** 2
    stretched = stretch_positions(table, 248)
    assert stretched.shape == (248, 1)
    assert torch.equal(stretched[:20], table[:20])
    for old in range(20, 77):
        assert stretched[20 + 4 * (old - 20)] == table[old]
    middle = stretched[20 + 4 * 5 + 1]
    assert middle == pytest.approx((0.75 * table[25] + 0.25 * table[26]).item())
    step = (table[76] - table[75]) / 4
    assert stretched[245:, 0].tolist() == pytest.approx([(table[76] + k * step).item() for k in (1, 2, 3)])
    with pytest.raises(InputError, match="context_length 70 must be above the 77"):
        stretch_positions(table, 70)


def test_a_stretched_clip_reads_longer_texts(dataset: Path, tmp_path: Path) -> None:
    options = {**TINY["model_options"], "context_length": 24}  # type: ignore[dict-item]
    train(str(dataset), str(tmp_path / "clip"), TrainConfig(**{**SHORT, "model_options": options, "samples_seen": 16}))
    checkpoint = find_checkpoint(tmp_path / "clip")
    before = load_model(checkpoint)
    settings = {key: value for key, value in SHORT.items() if key != "model_options"}
    config = TrainConfig(
        **{**settings, "samples_seen": 32}, init=str(checkpoint), towers=TowerConfig(context_length=36)
    )
    train(str(dataset), str(tmp_path / "long"), config)
    after = load_model(find_checkpoint(tmp_path / "long"))
    assert (before.context_length, after.context_length) == (24, 36)
    long = " ".join(["red square on the left"] * 9)
    assert after.tokenize([long])[0].shape[1] == 36
    assert after.tokenizer.model_max_length == 36
    texts = [long, long.replace("left", "right").replace("right", "left", 4)]  # alike in their first 24 tokens
    assert torch.equal(*before.encode_text(texts))
    assert not torch.equal(*after.encode_text(texts))
    assert np.isfinite([record["loss"] for record in read_metrics(tmp_path / "long" / "metrics.jsonl")]).all()


def tower_of(folder: Path, kind: str) -> Path:
    """Write a text tower of 24 tokens with a BERT's tokenizer whose padding has the id that the tower expects."""
    # RoBERTa's positions begin behind the padding's id, so that its table has more rows than a text has tokens.
    padding = 0 if kind == "bert" else 1
    marks = ["[PAD]", "[UNK]"] if kind == "bert" else ["[UNK]", "[PAD]"]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join([*marks, "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    config, model = {
        "bert": (BertConfig, BertModel),
        "roberta": (RobertaConfig, RobertaModel),
        "xlm-roberta": (XLMRobertaConfig, XLMRobertaModel),
    }[kind]
    torch.manual_seed(6)
    shape = config(
        vocab_size=5 + len(WORDS),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=24 + (padding + 1 if padding else 0),
        pad_token_id=padding,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model(shape).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta"])
def test_a_text_tower_reads_as_many_tokens_as_it_is_asked_to(dataset: Path, kind: str, tmp_path: Path) -> None:
    folder = tower_of(tmp_path / kind, kind)
    long, short = " ".join(["red square on the left"] * 9), "a red disc"
    models = {}
    for length in (0, 8, 40):
        towers = TowerConfig(text=str(folder), context_length=length)
        options = {name: value for name, value in TINY["model_options"].items() if name != "context_length"}  # type: ignore[attr-defined]
        models[length] = run(dataset, tmp_path / str(length), towers, samples_seen=16, lr=1e-12, model_options=options)
        assert models[length].context_length == (length or 24)
    with torch.no_grad():
        features = {length: model.encode_text([long, short]) for length, model in models.items()}
        assert [model.tokenize([long, short])[0].shape[1] for model in models.values()] == [24, 8, 40]
        assert all(torch.isfinite(found).all() for found in features.values())
        # Positions that are kept, before padding or alone, mean what they meant.
        for length in (0, 8, 40):
            torch.testing.assert_close(features[length][1:], models[0].encode_text([short]), rtol=0, atol=1e-5)
        # A cut text is read as the text of its first tokens.
        first = models[0].encode_text([" ".join(long.split()[:6])])
        torch.testing.assert_close(features[8][:1], first, rtol=0, atol=1e-5)
    assert not torch.allclose(features[40][0], features[0][0], atol=1e-4)


def test_a_clip_reads_shorter_texts(dataset: Path, tmp_path: Path) -> None:
    train(str(dataset), str(tmp_path / "clip"), TrainConfig(**{**SHORT, "samples_seen": 16}))
    checkpoint = find_checkpoint(tmp_path / "clip")
    settings = {key: value for key, value in SHORT.items() if key != "model_options"}
    config = TrainConfig(
        **{**settings, "samples_seen": 16, "lr": 1e-12}, init=str(checkpoint), towers=TowerConfig(context_length=6)
    )
    train(str(dataset), str(tmp_path / "short"), config)
    before, after = load_model(checkpoint), load_model(find_checkpoint(tmp_path / "short"))
    assert (before.context_length, after.context_length, after.tokenizer.model_max_length) == (16, 6, 6)
    with torch.no_grad():
        kept = before.encode_ids(*after.tokenize(["a red square on the left"]))
        torch.testing.assert_close(after.encode_text(["a red square on the left"]), kept, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_revision": "x"}, "towers.image_revision is given without"),
        ({"text_locked_steps": -2}, "text_locked_steps must be -1 or more"),
        ({"patch_share": 0.0}, "patch_share must be above 0"),
        ({"context_length": -1}, "context_length must be at least 3"),
        ({"context_length": 2}, "context_length must be at least 3"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(TowerConfig(), **settings)
    with pytest.raises(InputError, match="init 'x' brings both towers"):
        TrainConfig(init="x", towers=TowerConfig(image="y"))
    with pytest.raises(InputError, match=r"towers.text 'y' brings its own length; give towers.context_length"):
        TrainConfig(model_options={"context_length": 16}, towers=TowerConfig(text="y"))
