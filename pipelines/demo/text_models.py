"""The demo's own models of text, trained on a laptop's CPU: a captioner of its scenes, and a rewriter of its captions.

Nothing is downloaded for the demo, so the operators that ask models for text (`recaption`, `rewrite`) get models that are made here, in
the formats that `transformers` loads. They know the miniature web's language and no other. They learn from scenes of their own, which
neither the web's lists nor the held-back sets contain.
"""

import io
import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTModel,
)

from pipelines.demo.captions import caption
from pipelines.demo.picture import Picture, draw_all
from pipelines.demo.scenes import Scene, make_scene
from schemas.progress import Progress
from train.checkpoint import publish_folder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CAPTIONER_FOLDER = "captioner"
REWRITER_FOLDER = "rewriter"
EXAMPLES_FILE = "examples.json"

# Scenes below these numbers belong to the web and to the held-back sets.
_SCENES = 50_000_000
_PAD, _BEGIN, _END = "<pad>", "<s>", "</s>"
_PAD_ID, _BEGIN_ID, _END_ID = range(3)
_VOCABULARY = 768
_IGNORED = -100
_STYLES = 1_000  # of captions: seeds of their wording
_PAIRS_PER_SOURCE = 16


@dataclass(frozen=True, kw_only=True)
class TextModelConfig:
    """How large and how long."""

    num_scenes: int = 10_000  # that the captioner sees
    image_size: int = 64
    width: int = 128
    captioner_steps: int = 3_000
    rewriter_steps: int = 1_000  # its loss is level from 700 on
    batch_size: int = 48
    lr: float = 1e-3
    seed: int = 0


def train_text_models(folder: Path, config: TextModelConfig, *, progress: Progress) -> None:
    """Make `captioner`, `rewriter` and `examples.json` in a folder, whatever of them is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / EXAMPLES_FILE).exists():
        (folder / EXAMPLES_FILE).write_text(json.dumps(make_examples(config.seed), indent=2), encoding="utf-8")
    for name, train in ((REWRITER_FOLDER, _train_rewriter), (CAPTIONER_FOLDER, _train_captioner)):
        if not (folder / name).exists():
            staging = folder / f".{name}.staging"
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.seed)
                train(staging, config, progress)
            publish_folder(staging, folder / name)


def make_examples(seed: int) -> dict[str, Any]:
    """Return four sources of example pairs in the miniature web's words, as the operator `rewrite` reads them."""
    draws = random.Random(f"examples {seed}")
    sources: dict[str, Any] = {}
    for name in ("first", "second", "third", "fourth"):
        scenes = [make_scene(_SCENES - 1 - draws.randrange(1_000_000)) for _ in range(_PAIRS_PER_SOURCE)]
        sources[name] = {"pairs": [list(_draw_pair(scene, draws)) for scene in scenes]}
    return sources


def _train_captioner(folder: Path, config: TextModelConfig, progress: Progress) -> None:
    scenes = [make_scene(_SCENES + number) for number in range(config.num_scenes)]
    pictures = _draw(scenes, config.image_size, progress)
    tokenizer = _make_tokenizer(caption(scene, style) for scene in scenes for style in range(3))
    draws = np.random.default_rng(config.seed)

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        while True:
            chosen = draws.integers(0, len(scenes), config.batch_size)
            texts = [caption(scenes[number], int(draws.integers(_STYLES))) for number in chosen]
            yield _to_pixels(pictures[chosen]), _to_ids(tokenizer, texts)

    model = _make_captioner(config)

    def loss(batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        pixels, ids = batch
        given = ids[:, :-1].clamp(min=0)
        logits = model(
            pixel_values=pixels, decoder_input_ids=given, decoder_attention_mask=(ids[:, :-1] >= 0).long()
        ).logits
        return functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=_IGNORED)

    _fit(model, batches(), loss, config.captioner_steps, config.lr, progress, "train the captioner")
    _save(model, tokenizer, folder)
    settings = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": config.image_size, "width": config.image_size},
        "resample": 2,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")


def _train_rewriter(folder: Path, config: TextModelConfig, progress: Progress) -> None:
    """Teach a small causal model to continue the operator's prompts; first only their ends, because examples cost time."""
    from curate.captions.examples import read_sources
    from curate.captions.framing import ARROW, frame
    from curate.operators.rewrite import Rewrite

    examples = folder.parent / EXAMPLES_FILE
    sources = read_sources(str(examples))
    operator = Rewrite(model=str(folder.parent), examples=str(examples))
    draws = random.Random(f"rewriter {config.seed}")

    def make(scene: Scene, num_examples: int) -> tuple[str, str]:
        given, wanted = _draw_pair(scene, draws)
        prompt = f"{given} {ARROW}"
        if num_examples:
            prompt = frame(operator.prompt(given, draws.choice(sources).draw(num_examples, draws)))[0].text
        return prompt, f" {wanted}\n"

    sample = [make(make_scene(_SCENES + number), 1) for number in range(3_000)]
    tokenizer = _make_tokenizer(text for pair in sample for text in pair)

    def batches() -> Iterator[torch.Tensor]:
        for step in range(config.rewriter_steps):
            is_late = step >= 0.7 * config.rewriter_steps
            count, examples_shown = (
                (config.batch_size // 2, operator.num_examples) if is_late else (config.batch_size, 0)
            )
            scenes = [make_scene(_SCENES + draws.randrange(10_000_000)) for _ in range(count)]
            yield _join([make(scene, examples_shown) for scene in scenes], tokenizer)

    model = _make_rewriter(config.width)

    def loss(batch: torch.Tensor) -> torch.Tensor:
        ids, targets = batch
        logits = model(input_ids=ids, attention_mask=(ids != _PAD_ID).long()).logits
        return functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten(), ignore_index=_IGNORED)

    _fit(model, batches(), loss, config.rewriter_steps, config.lr, progress, "train the rewriter")
    _save(model, tokenizer, folder)


def _fit(
    model: torch.nn.Module,
    batches: Iterator[Any],
    loss: Callable[[Any], torch.Tensor],
    num_steps: int,
    lr: float,
    progress: Progress,
    title: str,
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.05)
    progress.start(title, num_steps, "steps")
    try:
        for step in range(num_steps):
            rate = lr * min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / num_steps))
            for group in optimizer.param_groups:
                group["lr"] = rate
            value = loss(next(batches))
            optimizer.zero_grad(set_to_none=True)
            value.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            progress.advance(1, loss=f"{value.item():.3f}")
    finally:
        progress.close()


def _make_captioner(config: TextModelConfig) -> VisionEncoderDecoderModel:
    encoder = ViTModel(
        ViTConfig(
            hidden_size=config.width,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=4 * config.width,
            image_size=config.image_size,
            patch_size=8,
        ),
        add_pooling_layer=False,
    )
    decoder = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=_VOCABULARY,
            n_positions=64,
            n_embd=config.width,
            n_layer=3,
            n_head=4,
            add_cross_attention=True,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            pad_token_id=_PAD_ID,
            bos_token_id=_BEGIN_ID,
            eos_token_id=_END_ID,
        )
    )
    model = VisionEncoderDecoderModel(encoder=encoder, decoder=decoder)
    for settings in (model.config, model.generation_config):
        settings.decoder_start_token_id = _BEGIN_ID
        settings.pad_token_id, settings.eos_token_id = _PAD_ID, _END_ID
    return model


def _make_rewriter(width: int) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=_VOCABULARY,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            pad_token_id=_PAD_ID,
            bos_token_id=_BEGIN_ID,
            eos_token_id=_END_ID,
        )
    )


def _make_tokenizer(texts: Iterator[str]) -> "Tokenizer":
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=[_PAD, _BEGIN, _END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _save(model: Any, tokenizer: "Tokenizer", folder: Path) -> None:
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=_PAD, bos_token=_BEGIN, eos_token=_END, padding_side="left"
    ).save_pretrained(folder)


def _draw_pair(scene: Scene, draws: random.Random) -> tuple[str, str]:
    """Return a caption and the same in other words."""
    given = caption(scene, draws.randrange(_STYLES))
    for _ in range(20):
        wanted = caption(scene, draws.randrange(_STYLES))
        if wanted != given:
            break
    return given, wanted


def _draw(scenes: Sequence[Scene], size: int, progress: Progress) -> np.ndarray:
    files = draw_all([Picture(scene=scene) for scene in scenes], progress)
    return np.stack([read_pixels(data, size) for data in files])


def read_pixels(data: bytes, size: int) -> np.ndarray:
    """Return a picture's file as size x size x 3 bytes, squeezed to a square as the captioner's processor does."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))


def _to_pixels(pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def _to_ids(tokenizer: "Tokenizer", texts: Sequence[str]) -> torch.Tensor:
    """Return begin, tokens, end of each text, filled up with what the loss ignores."""
    rows = [[_BEGIN_ID, *encoding.ids, _END_ID] for encoding in tokenizer.encode_batch(list(texts))]
    ids = torch.full((len(rows), max(map(len, rows))), _IGNORED)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
    return ids


def _join(pairs: Sequence[tuple[str, str]], tokenizer: "Tokenizer") -> torch.Tensor:
    """Return ids and targets (2, n, length) of prompts with their answers; only the answers are targets."""
    prompts = tokenizer.encode_batch([prompt for prompt, _ in pairs])
    answers = tokenizer.encode_batch([answer for _, answer in pairs])
    rows = [([*given.ids], [*wanted.ids, _END_ID]) for given, wanted in zip(prompts, answers, strict=True)]
    length = max(len(given) + len(wanted) for given, wanted in rows)
    joined = torch.full((2, len(rows), length), _PAD_ID)
    joined[1] = _IGNORED
    for number, (given, wanted) in enumerate(rows):
        joined[0, number, : len(given) + len(wanted)] = torch.tensor([*given, *wanted])
        joined[1, number, len(given) : len(given) + len(wanted)] = torch.tensor(wanted)
    return joined
