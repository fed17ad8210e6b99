"""Image-to-text model folders with random weights, one of each kind that `curate.models.captioner` reads."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.model import CAPTIONS

_SIZE, _PATCH = 32, 8
_LAYERS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_MARKS = ("<pad>", "<unk>", "<start>", "<end>", "<image>")
_CONTEXT = 24
# What a chat model's template makes of a message with a picture and a question.
_TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'image' %}<image> "
    "{% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
)
KINDS = ("blip", "git", "vision-encoder-decoder", "llava")


def make_captioner(folder: Path, kind: str, *, captions: Sequence[str] = CAPTIONS, seed: int = 0) -> Path:
    """Write a folder as `save_pretrained` does, with a tokenizer of the captions' words."""
    import torch

    tokenizer = make_tokenizer(captions)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _make_network(kind, len(tokenizer), tokenizer.convert_tokens_to_ids(list(_MARKS)))
    network.save_pretrained(folder)
    settings = {
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "image_processor_type": "CLIPImageProcessor" if kind == "llava" else "ViTImageProcessor",
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": _SIZE, "width": _SIZE},
    }
    if kind == "llava":
        from transformers import CLIPImageProcessor, LlavaProcessor

        settings |= {"do_center_crop": False}
        LlavaProcessor(
            image_processor=CLIPImageProcessor(**settings),
            tokenizer=tokenizer,
            patch_size=_PATCH,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=_TEMPLATE,
        ).save_pretrained(folder)
    else:
        (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2))
        tokenizer.save_pretrained(folder)
    return folder


def make_tokenizer(captions: Sequence[str]) -> Any:
    """Return a tokenizer of the captions' words, one token each, with marks for start, end, padding and pictures."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = sorted({word for caption in captions for word in caption.split()})
    backend = Tokenizer(models.WordLevel({w: n for n, w in enumerate([*_MARKS, *words])}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    pad, unknown, start, end, image = _MARKS
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=pad,
        unk_token=unknown,
        bos_token=start,
        eos_token=end,
        extra_special_tokens={"image_token": image},
    )


def _make_network(kind: str, vocab_size: int, ids: Sequence[int]) -> Any:
    import transformers as t

    pad, _, start, end, image = ids
    text = {**_LAYERS, "vocab_size": vocab_size, "bos_token_id": start, "eos_token_id": end, "pad_token_id": pad}
    # Wide enough for pictures to make a difference untrained.
    vision = {**_LAYERS, "image_size": _SIZE, "patch_size": _PATCH, "initializer_range": 0.2}
    context = {"max_position_embeddings": _CONTEXT}
    if kind == "blip":
        text |= {**context, "sep_token_id": end, "encoder_hidden_size": 32, "projection_dim": 16}
        return t.BlipForConditionalGeneration(
            t.BlipConfig(text_config=text, vision_config=vision, projection_dim=16, image_text_hidden_size=16)
        )
    if kind == "git":
        return t.GitForCausalLM(t.GitConfig(vision_config=vision, **text, **context))
    if kind == "vision-encoder-decoder":
        decoder = t.GPT2Config(
            vocab_size=vocab_size,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=_CONTEXT,
            bos_token_id=start,
            eos_token_id=end,
            add_cross_attention=True,
            is_decoder=True,
        )
        config = t.VisionEncoderDecoderConfig.from_encoder_decoder_configs(t.ViTConfig(**vision), decoder)
        config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = start, pad, end
        return t.VisionEncoderDecoderModel(config)
    config = t.LlavaConfig(
        vision_config=t.CLIPVisionConfig(**vision),
        text_config=t.LlamaConfig(**text, max_position_embeddings=256, num_key_value_heads=4),
        image_token_index=image,
        vision_feature_layer=-1,
    )
    return t.LlavaForConditionalGeneration(config)
