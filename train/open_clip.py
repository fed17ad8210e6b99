"""Models in open_clip's layout and back: a CLIP with a ViT is the same network there under other names.

A folder of open_clip holds `open_clip_config.json`, `open_clip_model.safetensors` and, here always, a tokenizer's files; whoever hands a model's name
on to open_clip reads it as `local-dir:FOLDER`.
"""

import json
import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from schemas.errors import InputError
from schemas.model_layout import OPEN_CLIP_CONFIG
from train.checkpoint import find_checkpoint, new_model_folder
from train.config import MODELS

if TYPE_CHECKING:
    from transformers import CLIPConfig, PreTrainedTokenizerBase

    from train.model import ImageTextModel

WEIGHTS_FILE = "open_clip_model.safetensors"
# What open_clip's own folders are called; the first that is there is read.
_WEIGHTS_FILES = (WEIGHTS_FILE, "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")

# open_clip's name, then that of `transformers`; both towers have the same blocks.
_BLOCKS = {
    "visual.transformer.resblocks.": "vision_model.encoder.layers.",
    "transformer.resblocks.": "text_model.encoder.layers.",
}
_PARTS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_FUSED = "attn.in_proj_"
_QUERY_KEY_VALUE = ("self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj.")
_OUTSIDE = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "logit_scale": "logit_scale",
}
_TRANSPOSED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
# What a model of open_clip may be: the keys that are read, with their defaults, those that change no output, and the one value that others may have.
_TOWER = {"layers": 12, "mlp_ratio": 4.0}
_VISION = {**_TOWER, "width": 768, "head_width": 64, "patch_size": 16, "image_size": 224}
_TEXT = {
    **_TOWER,
    "width": 512,
    "heads": 8,
    "context_length": 77,
    "vocab_size": 49_408,
    "pool_type": "argmax",
    "eos_id": 2,
}
_WITHOUT_EFFECT = {"patch_dropout", "output_tokens", "pad_id", "hf_tokenizer_name"}
_ONLY = {
    "pool_type": "tok",
    "pos_embed_type": "learnable",
    "proj_type": "linear",
    "resize_mode": "shortest",
    "interpolation": "bicubic",
    "mode": "RGB",
}
# Where a config of `transformers` says so, the end of a text is where its highest id is, as open_clip's `argmax` has it.
_HIGHEST_ID_ENDS = 2
_LAYER_NORM_EPS = 1e-5
# What torch's reader raises over bytes that are no checkpoint, or not a whole one.
_DAMAGED = (
    *(OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, struct.error),
    pickle.UnpicklingError,
)


def to_open_clip(model: str, out: str, *, revision: str = "") -> Path:
    """Write a model into the new folder `out` in open_clip's layout and return the folder.

    `model` is a run (its newest checkpoint), a model folder, or a hub id with its `revision`; it must be a CLIP with a ViT, because
    open_clip has no other of the towers here.
    """
    from safetensors.torch import save_file

    from train.model import load_model

    with new_model_folder(out) as staging:
        loaded = load_model(model if revision else find_checkpoint(model), revision=revision)
        config = {"model_cfg": _describe(loaded, model, Path(out).name), "preprocess_cfg": _describe_pictures(loaded)}
        state = _rename_to_open_clip(loaded.network.state_dict())
        if loaded.logit_bias is not None:
            state["logit_bias"] = torch.tensor(loaded.logit_bias)
        save_file(state, staging / WEIGHTS_FILE, metadata={"format": "pt"})
        (staging / OPEN_CLIP_CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        loaded.tokenizer.save_pretrained(staging)
    return Path(out)


def from_open_clip(
    source: str, out: str, *, config: str = "", tokenizer: str = "", tokenizer_revision: str = ""
) -> Path:
    """Write a model of open_clip into the new folder `out`, as `transformers` and everything here reads it, and return the folder.

    `source` is a folder of open_clip, or a checkpoint of its training (`epoch_32.pt`), whose shape `config` names: a model of open_clip
    that is also one here (`ViT-B-32`, with `-quickgelu` where it has that), or a JSON file such as `open_clip_config.json`.
    `tokenizer` is a folder, or a hub id with its `tokenizer_revision`, of the tokenizer that the model was trained with; a folder of
    open_clip may hold one itself. Pickles are read as weights only.
    """
    from transformers import CLIPModel

    from train.model import ImageTextModel
    from train.tokenizer import load_tokenizer

    folder = Path(source)
    with new_model_folder(out) as staging:
        described = _read_config(folder, config)
        model_config, pictures = described["model_cfg"], described.get("preprocess_cfg", {})
        if not tokenizer and not (folder / "tokenizer_config.json").is_file():
            raise InputError(
                f"{source} holds no tokenizer; name the one it was trained with (--tokenizer; for most, that of any CLIP of OpenAI)"
            )
        words = load_tokenizer(tokenizer or source, tokenizer_revision)
        _take(pictures, {"size": 0, "mean": None, "std": None, "fill_color": 0}, source)
        state = _read_weights(folder)
        network = CLIPModel(_network_config(model_config, words, source))
        bias = state.pop("logit_bias", None)
        _load(network, _rename_from_open_clip(state), source)
        if bias is not None:
            network.config.logit_bias = bias.item()
        network.config.architectures = [CLIPModel.__name__]
        network.config.dtype = torch.float32
        colours = {name: pictures[name] for name in ("mean", "std") if name in pictures}
        made = ImageTextModel(network, words, image_size=network.config.vision_config.image_size, **colours)
        made.save(staging)
        words.save_pretrained(staging)
    return Path(out)


def _describe(model: "ImageTextModel", name: str, tokenizer_name: str) -> dict[str, object]:
    """Return open_clip's `model_cfg` of a CLIP with a ViT; refuse what it would compute otherwise."""
    from transformers import CLIPModel

    network = model.network
    if not isinstance(network, CLIPModel):
        raise InputError(
            f"{name} is a {type(network).__name__}, of which open_clip has no equal; only a CLIP with a ViT can be converted"
        )
    vision, text = network.config.vision_config, network.config.text_config
    if {vision.hidden_act, text.hidden_act} not in ({"gelu"}, {"quick_gelu"}):
        raise InputError(
            f"{name} computes {vision.hidden_act} in the image tower and {text.hidden_act} in the text tower; open_clip has gelu or quick_gelu for both"
        )
    for side in (vision, text):
        if side.layer_norm_eps != _LAYER_NORM_EPS:
            raise InputError(
                f"{name} normalises with an epsilon of {side.layer_norm_eps}; open_clip's is {_LAYER_NORM_EPS}"
            )
    ends = (
        {"pool_type": "argmax"}
        if text.eos_token_id == _HIGHEST_ID_ENDS
        else {"pool_type": "eos", "eos_id": text.eos_token_id}
    )
    return {
        "embed_dim": model.embed_dim,
        **({"quick_gelu": True} if vision.hidden_act == "quick_gelu" else {}),
        **({} if model.logit_bias is None else {"init_logit_bias": model.logit_bias}),
        "vision_cfg": {
            "image_size": vision.image_size,
            "layers": vision.num_hidden_layers,
            "width": vision.hidden_size,
            "head_width": vision.hidden_size // vision.num_attention_heads,
            "mlp_ratio": _ratio(vision.intermediate_size, vision.hidden_size),
            "patch_size": vision.patch_size,
        },
        "text_cfg": {
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "hf_tokenizer_name": tokenizer_name,
            "width": text.hidden_size,
            "heads": text.num_attention_heads,
            "layers": text.num_hidden_layers,
            "mlp_ratio": _ratio(text.intermediate_size, text.hidden_size),
            **ends,
        },
    }


def _ratio(hidden: int, width: int) -> float:
    """Return a number by which open_clip, which cuts off what is behind the point, comes to `hidden` again."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width


def _describe_pictures(model: "ImageTextModel") -> dict[str, object]:
    size = {"size": [model.image_size, model.image_size], "mode": "RGB"}
    return {
        **size,
        "mean": list(model.mean),
        "std": list(model.std),
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }


def _read_config(folder: Path, named: str) -> dict[str, Any]:
    """Return `model_cfg` and, where it is there, `preprocess_cfg`, from the folder or from what `named` names."""
    shape = MODELS.get(named.lower().removesuffix("-quickgelu"))
    if shape is not None and shape.image_tower == "vit" and not Path(named).is_file():
        quick = {"quick_gelu": True} if named.lower().endswith("-quickgelu") else {}
        vision = {
            "layers": shape.image_layers,
            "width": shape.image_width,
            "head_width": shape.image_width // shape.image_heads,
        }
        vision |= {"patch_size": shape.patch_size, "image_size": shape.image_size}
        text = {"context_length": shape.context_length, "vocab_size": shape.vocab_size, "width": shape.text_width}
        text |= {"heads": shape.text_heads, "layers": shape.text_layers}
        return {"model_cfg": {"embed_dim": shape.embed_dim, **quick, "vision_cfg": vision, "text_cfg": text}}
    path = Path(named) if named else folder / OPEN_CLIP_CONFIG
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        known = ", ".join(name for name, shape in MODELS.items() if shape.image_tower == "vit")
        raise InputError(
            f"{path} cannot be read as a model's shape ({error}); name a JSON file or one of {known} (--config)"
        ) from error
    described = content if isinstance(content, dict) and "model_cfg" in content else {"model_cfg": content}
    model = described["model_cfg"]
    if not (
        isinstance(model, dict)
        and isinstance(model.get("vision_cfg"), dict)
        and isinstance(model.get("text_cfg"), dict)
    ):
        raise InputError(
            f"{path} describes no model of open_clip: it has no model_cfg with embed_dim, vision_cfg and text_cfg"
        )
    return described


def _network_config(described: Mapping[str, Any], tokenizer: "PreTrainedTokenizerBase", source: str) -> "CLIPConfig":
    """Return the same shape for `transformers`; a key that would make it another network is refused by its name."""
    from transformers import CLIPConfig

    others = {key: value for key, value in described.items() if key not in {"vision_cfg", "text_cfg"}}
    vision, text = _take(described["vision_cfg"], _VISION, source), _take(described["text_cfg"], _TEXT, source)
    _take(
        others,
        {"embed_dim": 0, "quick_gelu": False, "custom_text": False, "init_logit_bias": 0.0, "init_logit_scale": 0.0},
        source,
    )
    if isinstance(vision["layers"], list):
        raise InputError(
            f"the image tower of {source} is a ResNet of open_clip, which transformers has not; only ViTs can be converted"
        )
    size = vision["image_size"]
    if isinstance(size, list):
        if len(set(size)) != 1:
            raise InputError(f"{source} takes pictures of {size[0]} by {size[1]}, and only squares can be converted")
        size = size[0]
    end = _end_of_text(text, tokenizer, source)
    shared = {"hidden_act": "quick_gelu" if others.get("quick_gelu") else "gelu", "projection_dim": others["embed_dim"]}
    return CLIPConfig(
        projection_dim=others["embed_dim"],
        vision_config={
            **shared,
            **_blocks(vision),
            "num_attention_heads": vision["width"] // vision["head_width"],
            "image_size": size,
            "patch_size": vision["patch_size"],
        },
        text_config={
            **shared,
            **_blocks(text),
            "num_attention_heads": text["heads"],
            "max_position_embeddings": text["context_length"],
            "vocab_size": text["vocab_size"],
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": end,
            "pad_token_id": tokenizer.pad_token_id,
        },
    )


def _end_of_text(text: Mapping[str, Any], tokenizer: "PreTrainedTokenizerBase", source: str) -> int:
    """Return the `eos_token_id` by which `transformers` finds the token that stands for a text where open_clip does."""
    own = tokenizer.eos_token_id
    if text["pool_type"] not in {"argmax", "eos"}:
        raise InputError(f"{source} pools texts by {text['pool_type']!r}, and only argmax and eos can be converted")
    if own is None or len(tokenizer) > text["vocab_size"] or (text["pool_type"] == "eos" and own != text["eos_id"]):
        raise InputError(
            f"{source} has {text['vocab_size']} tokens, and the tokenizer {len(tokenizer)} with the end mark {own}; "
            "name the tokenizer that it was trained with (--tokenizer)"
        )
    if text["pool_type"] == "eos" and own == _HIGHEST_ID_ENDS:
        raise InputError(
            f"{source} ends texts with the id 2, for which transformers takes a text's highest id as its end"
        )
    return int(own) if text["pool_type"] == "eos" or own == text["vocab_size"] - 1 else _HIGHEST_ID_ENDS


def _blocks(tower: Mapping[str, Any]) -> dict[str, int]:
    width = tower["width"]
    return {
        "hidden_size": width,
        "num_hidden_layers": tower["layers"],
        "intermediate_size": int(width * tower["mlp_ratio"]),
    }


def _take(given: Mapping[str, Any], defaults: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return the values of the keys of `defaults`; refuse others that say anything."""
    for key, value in given.items():
        if key not in defaults and key not in _WITHOUT_EFFECT and value and value != _ONLY.get(key):
            raise InputError(
                f"{source} has {key} = {value!r}, which a CLIP of transformers has not, so it would compute something else"
            )
    return {key: given[key] if given.get(key) is not None else default for key, default in defaults.items()}


def _read_weights(source: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint, without what a wrapper put before their names."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = (
        next((source / name for name in _WEIGHTS_FILES if (source / name).is_file()), None)
        if source.is_dir()
        else source
    )
    if path is None:
        raise InputError(f"{source} holds no weights of open_clip; looked for {', '.join(_WEIGHTS_FILES)}")
    try:
        content = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except (*_DAMAGED, SafetensorError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise InputError(
            f"{path} cannot be read as weights: {reason}; give a checkpoint of open_clip (.pt, .bin or .safetensors)"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"{path} is no checkpoint of open_clip: it holds no state_dict of tensors")
    return {name.removeprefix("module.").removeprefix("text."): value.float() for name, value in state.items()}


def _load(network: torch.nn.Module, state: Mapping[str, torch.Tensor], source: str) -> None:
    own = network.state_dict()
    if missing := sorted(own.keys() - state.keys()):
        raise InputError(
            f"{source} lacks {missing[0]} and {len(missing) - 1} more of the tensors that its shape has; name its shape (--config)"
        )
    for name, value in state.items():
        if name not in own:
            raise InputError(f"{source} holds {name}, which its shape has not; name its shape (--config)")
        if value.shape != own[name].shape:
            raise InputError(
                f"{source}: {name} is {tuple(value.shape)}, and its shape says {tuple(own[name].shape)}; name its shape (--config)"
            )
    network.load_state_dict(dict(state))


def _rename_to_open_clip(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a CLIP's tensors under open_clip's names."""
    found = {ours: state[name] for ours, name in _OUTSIDE.items()}
    found |= {ours: state[name].T for ours, name in _TRANSPOSED.items()}
    for ours, prefix in _BLOCKS.items():
        numbers = {name[len(prefix) :].split(".", 1)[0] for name in state if name.startswith(prefix)}
        for number in numbers:
            for kind in ("weight", "bias"):
                found |= {
                    f"{ours}{number}.{part}.{kind}": state[f"{prefix}{number}.{name}.{kind}"]
                    for part, name in _PARTS.items()
                }
                parts = [state[f"{prefix}{number}.{name}{kind}"] for name in _QUERY_KEY_VALUE]
                found[f"{ours}{number}.{_FUSED}{kind}"] = torch.cat(parts)
    return {name: value.detach().cpu().contiguous() for name, value in found.items()}


def _rename_from_open_clip(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return open_clip's tensors under the names of a CLIP; an unknown name stays."""
    found = {}
    names = _OUTSIDE | {
        f"{part}.{kind}": f"{name}.{kind}" for part, name in _PARTS.items() for kind in ("weight", "bias")
    }
    for ours, value in state.items():
        if ours in _TRANSPOSED:
            found[_TRANSPOSED[ours]] = value.T.contiguous()
            continue
        block = next((prefix for prefix in _BLOCKS if ours.startswith(prefix)), "")
        number, _, part = ours[len(block) :].partition(".") if block else ("", "", ours)
        place = f"{_BLOCKS[block]}{number}." if block else ""
        if block and part.startswith(_FUSED):
            kind = part.removeprefix(_FUSED)
            found |= {f"{place}{name}{kind}": each for name, each in zip(_QUERY_KEY_VALUE, value.chunk(3), strict=True)}
        else:
            found[place + names.get(part, part)] = value
    return found
