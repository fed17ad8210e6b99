"""Model folders with random weights, small enough to make and run in a test: one of each kind that `clip_embedding` reads."""

import json
from pathlib import Path

CAPTIONS = [
    f"a {colour} {shape} number {number} on grey ground"
    for colour in ("red", "green", "blue", "yellow")
    for shape in ("circle", "square")
    for number in range(40)
]
_VOCAB_SIZE = 600
_CONTEXT = 20
_TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def make_checkpoint(folder: Path, *, image_tower: str = "vit", seed: int = 0) -> Path:
    """Write a folder as `winnow train` does: a CLIPModel for "vit", a VisionTextDualEncoder for "convnext", "resnet" and "navit"."""
    from train.config import ModelConfig
    from train.model import build_model
    from train.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(CAPTIONS, _VOCAB_SIZE, _CONTEXT)
    config = ModelConfig(
        image_tower=image_tower,  # type: ignore[arg-type]
        image_size=32,
        patch_size=4 if image_tower == "convnext" else 8,
        image_width=32,
        image_layers=2,
        image_heads=4,
        image_depths=(1, 1),
        image_widths=(16, 32),
        text_width=32,
        text_layers=2,
        text_heads=4,
        context_length=_CONTEXT,
        vocab_size=_VOCAB_SIZE,
        embed_dim=24,
    )
    folder.mkdir(parents=True)
    build_model(config, tokenizer, seed=seed).save(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_siglip(folder: Path, *, seed: int = 0) -> Path:
    """Write a SigLIP folder: pictures stretched to a square, texts padded to the full length."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, SiglipConfig, SiglipModel, SiglipTextConfig, SiglipVisionConfig

    words = sorted({word for caption in CAPTIONS for word in caption.split()})
    vocab = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *words])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=16
    )
    text = SiglipTextConfig(vocab_size=len(vocab), max_position_embeddings=16, projection_size=32, **_TEXT)
    vision = SiglipVisionConfig(image_size=32, patch_size=8, **_TEXT)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SiglipModel(SiglipConfig(text_config=text.to_dict(), vision_config=vision.to_dict()))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = {
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "image_processor_type": "SiglipImageProcessor",
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": 32, "width": 32},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2))
    return folder


def make_siglip2(folder: Path, *, seed: int = 0) -> Path:
    """Write a SigLIP 2 folder for pictures of any shape (NaFlex): up to 20 patches of 8 pixels, a table of 16 positions."""
    import torch
    from transformers import Siglip2Config, Siglip2Model, Siglip2TextConfig, Siglip2Tokenizer, Siglip2VisionConfig

    letters = sorted({letter for caption in CAPTIONS for letter in caption.replace(" ", "\u2581")})
    vocab = {word: number for number, word in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *letters])}
    text = Siglip2TextConfig(vocab_size=len(vocab), max_position_embeddings=16, projection_size=32, **_TEXT)
    vision = Siglip2VisionConfig(num_patches=16, patch_size=8, **_TEXT)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Siglip2Model(Siglip2Config(text_config=text.to_dict(), vision_config=vision.to_dict()))
    model.save_pretrained(folder)
    Siglip2Tokenizer(vocab=vocab, model_max_length=16).save_pretrained(folder)
    settings = {
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "image_processor_type": "Siglip2ImageProcessor",
        "max_num_patches": 20,
        "patch_size": 8,
        "resample": 2,
        "rescale_factor": 1 / 255,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2))
    return folder
