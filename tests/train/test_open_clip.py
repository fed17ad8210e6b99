"""Conversions to open_clip's layout and back, beside an independent model with open_clip's names and its arithmetic."""

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from schemas.errors import InputError
from schemas.model_layout import OPEN_CLIP_CONFIG
from train.config import MODELS, ModelConfig
from train.model import ImageTextModel, build_model, load_model
from train.open_clip import WEIGHTS_FILE, _ratio, from_open_clip, to_open_clip
from train.tokenizer import train_tokenizer

TEXTS = ["a red dog", "two blue cats on a mat", "", "a dog " * 30]
SHAPE = ModelConfig(
    **{"patch_size": 8, "image_width": 48, "image_layers": 2, "image_heads": 3, "image_size": 32, "embed_dim": 24},
    **{"text_width": 64, "text_layers": 3, "text_heads": 2, "context_length": 16},
)


class Block(nn.Module):
    """A block with the names of open_clip's."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, act: type[nn.Module]) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        hidden = int(width * mlp_ratio)
        layers = [("c_fc", nn.Linear(width, hidden)), ("gelu", act()), ("c_proj", nn.Linear(hidden, width))]
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class QuickGELU(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


class Tower(nn.Module):
    def __init__(self, cfg: dict[str, Any], heads: int, act: type[nn.Module]) -> None:
        super().__init__()
        blocks = [Block(cfg["width"], heads, cfg["mlp_ratio"], act) for _ in range(cfg["layers"])]
        self.resblocks = nn.ModuleList(blocks)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Visual(nn.Module):
    def __init__(self, cfg: dict[str, Any], embed_dim: int, act: type[nn.Module]) -> None:
        super().__init__()
        width, patch = cfg["width"], cfg["patch_size"]
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn((cfg["image_size"] // patch) ** 2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Tower(cfg, width // cfg["head_width"], act)
        self.proj = nn.Parameter(torch.randn(width, embed_dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv1(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        x = self.transformer(self.ln_pre(x))
        return self.ln_post(x[:, 0]) @ self.proj


class Reference(nn.Module):
    """What open_clip makes of a `model_cfg`."""

    def __init__(self, cfg: dict[str, Any]) -> None:
        super().__init__()
        act = QuickGELU if cfg.get("quick_gelu") else nn.GELU
        text = cfg["text_cfg"]
        self.text_cfg = text
        self.visual = Visual(cfg["vision_cfg"], cfg["embed_dim"], act)
        self.transformer = Tower(text, text["heads"], act)
        self.token_embedding = nn.Embedding(text["vocab_size"], text["width"])
        self.positional_embedding = nn.Parameter(torch.randn(text["context_length"], text["width"]))
        self.ln_final = nn.LayerNorm(text["width"])
        self.text_projection = nn.Parameter(torch.randn(text["width"], cfg["embed_dim"]))
        self.logit_scale = nn.Parameter(torch.tensor(2.0))
        if "init_logit_bias" in cfg:
            self.logit_bias = nn.Parameter(torch.tensor(cfg["init_logit_bias"]))

    def encode_image(self, x: torch.Tensor) -> torch.Tensor:
        return functional.normalize(self.visual(x), dim=-1)

    def encode_text(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.token_embedding(ids) + self.positional_embedding
        mask = torch.full((ids.shape[1], ids.shape[1]), float("-inf")).triu(1)
        x = self.ln_final(self.transformer(x, mask))
        if self.text_cfg["pool_type"] == "argmax":
            place = ids.argmax(-1)
        else:
            place = (ids == self.text_cfg["eos_id"]).int().argmax(-1)
        return functional.normalize(x[torch.arange(len(ids)), place] @ self.text_projection, dim=-1)


def write_model(folder: Path, **changes: Any) -> ImageTextModel:
    """A model with random weights; `changes` go into the configuration of both towers."""
    tokenizer = train_tokenizer([*TEXTS[:2]] * 3, 560, 16)
    model = build_model(SHAPE, tokenizer, seed=1).eval()
    for config in (model.network.config.vision_config, model.network.config.text_config):
        for name, value in changes.items():
            setattr(config, name, value)
    # Norms and biases start at 1 and 0, with which a mistake could hide.
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())) / 9)
    folder.mkdir(parents=True)
    model.save(folder)
    tokenizer.save_pretrained(folder)
    return load_model(folder)


def images() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_every_width_of_a_perceptron_is_found_again() -> None:
    for width in range(8, 200):
        for hidden in range(width, 5 * width, 3):
            assert int(width * _ratio(hidden, width)) == hidden
    assert _ratio(3072, 768) == 4.0


def padded_ids(model: ImageTextModel) -> torch.Tensor:
    """Ids as open_clip's `HFTokenizer` makes them."""
    options = {"return_tensors": "pt", "max_length": 16, "padding": "max_length", "truncation": True}
    return model.tokenizer(TEXTS, **options).input_ids


def read_reference(folder: Path) -> Reference:
    described = json.loads((folder / OPEN_CLIP_CONFIG).read_text())
    reference = Reference(described["model_cfg"])
    reference.load_state_dict(load_file(folder / WEIGHTS_FILE), strict=True)
    return reference.eval()


@pytest.mark.parametrize("act", ["gelu", "quick_gelu"])
@torch.no_grad()
def test_open_clip_computes_the_same_features(act: str, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", hidden_act=act)
    assert to_open_clip(str(tmp_path / "model"), str(tmp_path / "deep" / "out")) == tmp_path / "deep" / "out"
    reference = read_reference(tmp_path / "deep" / "out")
    torch.testing.assert_close(model.encode_image(images()), reference.encode_image(images()))
    torch.testing.assert_close(model.encode_text(TEXTS), reference.encode_text(padded_ids(model)))
    assert reference.logit_scale == model.logit_scale
    described = json.loads((tmp_path / "deep" / "out" / OPEN_CLIP_CONFIG).read_text())
    assert described["model_cfg"]["text_cfg"]["pool_type"] == "eos"
    assert described["preprocess_cfg"]["size"] == [32, 32]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


@torch.no_grad()
def test_there_and_back_is_the_same_model(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    model.network.config.logit_bias = -9.5
    model.save(tmp_path / "model")
    to_open_clip(str(tmp_path / "model"), str(tmp_path / "there"))
    assert load_file(tmp_path / "there" / WEIGHTS_FILE)["logit_bias"].item() == -9.5
    read_reference(tmp_path / "there")
    from_open_clip(str(tmp_path / "there"), str(tmp_path / "back"))
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (
        tmp_path / "model" / "model.safetensors"
    ).read_bytes()
    back = load_model(tmp_path / "back")
    assert (back.logit_bias, back.image_size, back.mean, back.std) == (-9.5, 32, model.mean, model.std)
    assert torch.equal(back.encode_text(TEXTS), model.encode_text(TEXTS))
    assert torch.equal(back.encode_image(images()), model.encode_image(images()))


@pytest.mark.parametrize("ends", ["highest", "not highest"])
@torch.no_grad()
def test_a_checkpoint_of_open_clips_training(ends: str, tmp_path: Path) -> None:
    """`epoch_N.pt` of several processes, its shape in a file, a text's end where the highest id is."""
    model = write_model(tmp_path / "model")
    words = model.tokenizer
    if ends == "highest":
        from transformers import CLIPTokenizer

        vocab = {"<|startoftext|>": 558, "<|endoftext|>": 559} | {f"token{n}": n for n in range(558)}
        words = CLIPTokenizer(vocab=vocab, merges=[], pad_token="<|endoftext|>", model_max_length=16)
    text = {"width": 64, "heads": 2, "layers": 3, "context_length": 16, "vocab_size": 560, "mlp_ratio": 4.0}
    vision = {"width": 48, "head_width": 16, "layers": 2, "patch_size": 8, "image_size": [32, 32], "mlp_ratio": 4.0}
    shape = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    reference = Reference({
        **shape,
        "vision_cfg": {**vision, "image_size": 32},
        "text_cfg": {**text, "pool_type": "argmax"},
    }).eval()
    state = {f"module.{name}": value for name, value in reference.state_dict().items()}
    torch.save({"epoch": 3, "name": "run", "state_dict": state, "optimizer": {}}, tmp_path / "epoch_3.pt")
    (tmp_path / "shape.json").write_text(json.dumps(shape))
    words.save_pretrained(tmp_path / "words")
    made = from_open_clip(
        str(tmp_path / "epoch_3.pt"),
        str(tmp_path / "out"),
        config=str(tmp_path / "shape.json"),
        tokenizer=str(tmp_path / "words"),
    )
    found = load_model(made)
    torch.testing.assert_close(found.encode_image(images()), reference.encode_image(images()))
    ids = (
        torch.tensor([[558, 4, 9, 559, *[559] * 12], [558, 7, 559, *[0] * 13]])
        if ends == "highest"
        else padded_ids(model)
    )
    torch.testing.assert_close(found.encode_ids(ids, torch.ones_like(ids)), reference.encode_text(ids))
    assert found.network.config.text_config.eos_token_id == (559 if ends == "highest" else 2)


@torch.no_grad()
def test_names_of_open_clips_models_and_a_custom_text_tower(tmp_path: Path) -> None:
    """A file with `text.` before the text tower's names, and a shape by its name."""
    small = {"image_layers": 1, "text_layers": 1}
    model = build_model(ModelConfig(**small), train_tokenizer(["a"] * 3, 520, 16), seed=0)
    model.save(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    to_open_clip(str(tmp_path), str(tmp_path / "there"))
    texts = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")
    state = load_file(tmp_path / "there" / WEIGHTS_FILE)
    renamed = {f"text.{name}" if name.startswith(texts) else name: value for name, value in state.items()}
    save_file(renamed, tmp_path / "there" / WEIGHTS_FILE)
    described = json.loads((tmp_path / "there" / OPEN_CLIP_CONFIG).read_text())
    described["model_cfg"]["custom_text"] = True
    described["model_cfg"]["vision_cfg"] |= {"pool_type": "tok", "no_ln_pre": False, "patch_dropout": 0.5}
    (tmp_path / "there" / OPEN_CLIP_CONFIG).write_text(json.dumps(described))
    from_open_clip(str(tmp_path / "there"), str(tmp_path / "back"))
    assert torch.equal(load_model(tmp_path / "back").encode_text(["a"]), model.eval().encode_text(["a"]))
    for name in ("ViT-B-32", "vit-b-32-quickgelu"):
        with pytest.raises(
            InputError, match=r"lacks text_model\.encoder\.layers\.1\.layer_norm1\.bias and \d+ more .* name its shape"
        ):
            from_open_clip(
                str(tmp_path / "there" / WEIGHTS_FILE), str(tmp_path / "other"), config=name, tokenizer=str(tmp_path)
            )
    assert not (tmp_path / "other").exists()
    assert not list(tmp_path.glob(".other*"))


def test_names_mean_the_same_shape_as_in_open_clip() -> None:
    """The shapes of open_clip 3.3.0's own files."""
    published = {
        "vit-s-32": (384, 384, 32, 384, 6),
        "vit-s-16": (384, 384, 16, 384, 6),
        "vit-b-32": (512, 768, 32, 512, 8),
        "vit-b-16": (512, 768, 16, 512, 8),
        "vit-l-14": (768, 1024, 14, 768, 12),
    }
    named = {name: shape for name, shape in MODELS.items() if shape.image_tower == "vit" and name != "vit-tiny"}
    found = {
        name: (shape.embed_dim, shape.image_width, shape.patch_size, shape.text_width, shape.text_heads)
        for name, shape in named.items()
    }
    assert found == published
    for shape in named.values():
        assert (shape.context_length, shape.vocab_size, shape.image_size, shape.text_layers) == (77, 49_408, 224, 12)
        assert shape.image_layers == (24 if shape.image_width == 1024 else 12)


def test_what_open_clip_has_not(tmp_path: Path) -> None:
    tokenizer = train_tokenizer([*TEXTS[:2]] * 3, 560, 16)
    shape = ModelConfig(
        **{
            "image_tower": "convnext",
            "patch_size": 4,
            "image_depths": (1, 1),
            "image_widths": (16, 32),
            "image_size": 32,
        },
        **{"text_width": 64, "text_layers": 1, "text_heads": 2, "context_length": 16, "embed_dim": 24},
    )
    model = build_model(shape, tokenizer, seed=0)
    (tmp_path / "convnext").mkdir()
    model.save(tmp_path / "convnext")
    tokenizer.save_pretrained(tmp_path / "convnext")
    with pytest.raises(InputError, match="is a VisionTextDualEncoderModel, of which open_clip has no equal"):
        to_open_clip(str(tmp_path / "convnext"), str(tmp_path / "out"))
    write_model(tmp_path / "eps", layer_norm_eps=1e-6)
    with pytest.raises(InputError, match=r"normalises with an epsilon of 1e-06; open_clip's is 1e-05"):
        to_open_clip(str(tmp_path / "eps"), str(tmp_path / "out"))
    write_model(tmp_path / "act", hidden_act="relu")
    with pytest.raises(InputError, match="computes relu in the image tower and relu in the text tower"):
        to_open_clip(str(tmp_path / "act"), str(tmp_path / "out"))
    with pytest.raises(InputError, match="act is there already; give the new model a folder of its own"):
        to_open_clip(str(tmp_path / "act"), str(tmp_path / "act"))


@pytest.mark.parametrize(
    ("place", "changes", "message"),
    [
        ("vision_cfg", {"ls_init_value": 0.1}, "has ls_init_value = 0.1, which a CLIP of transformers has not"),
        ("vision_cfg", {"timm_model_name": "vit_base"}, "has timm_model_name = 'vit_base'"),
        ("vision_cfg", {"layers": [3, 4, 6, 3]}, "is a ResNet of open_clip"),
        ("vision_cfg", {"image_size": [32, 64]}, "takes pictures of 32 by 64, and only squares"),
        ("vision_cfg", {"pool_type": "avg"}, "has pool_type = 'avg'"),
        ("text_cfg", {"no_causal_mask": True}, "has no_causal_mask = True"),
        ("text_cfg", {"tokenizer_mode": "clips"}, "has tokenizer_mode = 'clips'"),
        ("text_cfg", {"pool_type": "last"}, "pools texts by 'last', and only argmax and eos"),
        ("text_cfg", {"eos_id": 7}, "with the end mark 1; name the tokenizer"),
        ("text_cfg", {"vocab_size": 99}, "has 99 tokens, and the tokenizer 5"),
        ("text_cfg", {"width": 32}, r"and its shape says \(.*\); name its shape"),
        ("text_cfg", {"layers": 2}, r"holds text_model\.encoder\.layers\.2\.\S+, which its shape has not"),
    ],
)
def test_what_transformers_has_not(place: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    to_open_clip(str(tmp_path / "model"), str(tmp_path / "there"))
    described = json.loads((tmp_path / "there" / OPEN_CLIP_CONFIG).read_text())
    described["model_cfg"][place] |= changes
    (tmp_path / "there" / OPEN_CLIP_CONFIG).write_text(json.dumps(described))
    with pytest.raises(InputError, match=message):
        from_open_clip(str(tmp_path / "there"), str(tmp_path / "out"))


def test_sources_that_are_none(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    to_open_clip(str(tmp_path / "model"), str(tmp_path / "there"))
    out = str(tmp_path / "out")
    words = {"tokenizer": str(tmp_path / "model")}
    with pytest.raises(
        InputError, match=r"nowhere.open_clip_config.json cannot be read as a model's shape .* \(--config"
    ):
        from_open_clip(str(tmp_path / "nowhere"), out)
    with pytest.raises(InputError, match="nowhere holds no tokenizer; name the one"):
        from_open_clip(str(tmp_path / "nowhere"), out, config="ViT-B-32")
    (tmp_path / "bad.pt").write_bytes(b"junk")
    with pytest.raises(InputError, match=r"bad\.pt cannot be read as weights"):
        from_open_clip(str(tmp_path / "bad.pt"), out, config="ViT-B-32", **words)
    torch.save({"state_dict": {"a": 1}}, tmp_path / "numbers.pt")
    with pytest.raises(
        InputError, match=r"numbers\.pt is no checkpoint of open_clip: it holds no state_dict of tensors"
    ):
        from_open_clip(str(tmp_path / "numbers.pt"), out, config="ViT-B-32", **words)
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(InputError, match=r"list\.json describes no model of open_clip"):
        from_open_clip(str(tmp_path / "there"), out, config=str(tmp_path / "list.json"))
    (tmp_path / "there" / WEIGHTS_FILE).unlink()
    with pytest.raises(
        InputError, match=r"there holds no weights of open_clip; looked for open_clip_model\.safetensors"
    ):
        from_open_clip(str(tmp_path / "there"), out)
    described = json.loads((tmp_path / "there" / OPEN_CLIP_CONFIG).read_text())
    described["preprocess_cfg"]["resize_mode"] = "squash"
    (tmp_path / "there" / OPEN_CLIP_CONFIG).write_text(json.dumps(described))
    with pytest.raises(InputError, match="has resize_mode = 'squash'"):
        from_open_clip(str(tmp_path / "there"), out)
