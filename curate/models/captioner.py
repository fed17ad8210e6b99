"""Image-to-text models of `transformers`, and how likely they find a caption: BLIP, GIT, an encoder with a decoder, chat models.

A caption is scored as the model would have written it: its start mark, the caption's tokens, its end mark, each given the true ones
before it. Padding follows the tokens, where a causal decoder does not see it, so a score does not depend on the captions beside it, up
to rounding. On a GPU models run in bfloat16, on a CPU in float32; probabilities are always taken in float32.
"""

import functools
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from curate.models.clip import quiet_transformers
from curate.models.preprocess import load_settings, read_config
from schemas.errors import InputError

if TYPE_CHECKING:
    import torch

# Models that write captions unasked, from pictures of one size: theirs are prepared in the decoding process.
CAPTIONER_TYPES = ("blip", "git", "vision-encoder-decoder")
_MODELS_KEPT = 2
_load_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class TokenizedCaption:
    """The tokens that are scored: the caption's, and the end mark where nothing was cut off."""

    ids: tuple[int, ...]
    is_truncated: bool


class Captioner(ABC):
    """A loaded model. `encode` turns pictures into what `score` takes, a row per caption or one row for all of them."""

    def __init__(self, network: Any, tokenizer: Any, start_id: int, end_id: int, context: int) -> None:
        self.network = network
        self.tokenizer = tokenizer
        self.start_id = start_id
        self._end_id = end_id
        self._context = context  # tokens that the decoder can be given, the start mark included

    def tokenize(self, captions: Sequence[str], max_tokens: int) -> list[TokenizedCaption]:
        """Return each caption's tokens; one of more than `max_tokens`, or than the model's context holds, is cut and has no end mark."""
        if not captions:
            return []
        found = self.tokenizer(list(captions), add_special_tokens=False)["input_ids"]
        limit = min(max_tokens, self._context - 1)
        return [
            TokenizedCaption((*ids, self._end_id), False)
            if len(ids) <= limit
            else TokenizedCaption(tuple(ids[:limit]), True)
            for ids in found
        ]

    @abstractmethod
    def encode(self, pictures: Any) -> Any:
        """Return the features of pictures."""

    @abstractmethod
    def score(self, features: Any, captions: Sequence[TokenizedCaption]) -> np.ndarray:
        """Return the natural logarithm of each caption's probability given its picture, float64."""


class PictureCaptioner(Captioner):
    """A model that writes captions unasked; pictures come as bytes (rows, height, width, 3), as `prepare_images` makes them."""

    def __init__(self, network: Any, tokenizer: Any, model: str, revision: str) -> None:
        import torch

        kind = network.config.model_type
        text = (
            network.config.decoder
            if kind == "vision-encoder-decoder"
            else getattr(network.config, "text_config", network.config)
        )
        start_id, end_id = _marks(network, text, tokenizer, model)
        super().__init__(network, tokenizer, start_id, end_id, _context_length(text, model))
        self.settings = load_settings(model, revision)
        self._kind = kind
        device = network.device
        self._mean = torch.tensor(self.settings.mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(self.settings.std, device=device).view(1, 3, 1, 1)

    def encode(self, pictures: np.ndarray) -> "torch.Tensor":
        """Return the image tower's states, or for GIT, whose decoder reads them as a prefix, the pixels."""
        import torch

        with torch.inference_mode():
            # Copied because the bytes may lie in read-only memory at any address; see `load_captioner`.
            images = torch.from_numpy(pictures.copy()).to(self.network.device).permute(0, 3, 1, 2)
            values = (
                ((images.float() * self.settings.scale - self._mean) / self._std).to(self.network.dtype).contiguous()
            )
            if self._kind == "git":
                return values
            tower = self.network.vision_model if self._kind == "blip" else self.network.encoder
            states: torch.Tensor = tower(pixel_values=values).last_hidden_state
            return states

    def score(self, features: "torch.Tensor", captions: Sequence[TokenizedCaption]) -> np.ndarray:
        """Return the logarithm of each caption's probability, all captions in one run of the decoder."""
        import torch

        if not captions:
            return np.empty(0)
        device = self.network.device
        longest = max(len(caption.ids) for caption in captions)
        targets = torch.full((len(captions), longest), self.start_id, dtype=torch.long)
        mask = torch.zeros((len(captions), longest), dtype=torch.long)
        for row, caption in enumerate(captions):
            targets[row, : len(caption.ids)] = torch.tensor(caption.ids)
            mask[row, : len(caption.ids)] = 1
        targets, mask = targets.to(device), mask.to(device)
        inputs = torch.cat([torch.full_like(targets[:, :1], self.start_id), targets[:, :-1]], dim=1)
        with torch.inference_mode():
            logits = self._logits(features, inputs, mask)
            return _sum_log_probabilities(logits[:, -longest:], targets, mask)

    def _logits(self, features: "torch.Tensor", ids: "torch.Tensor", mask: "torch.Tensor") -> "torch.Tensor":
        if self._kind == "git":
            # One picture for all captions is repeated by the model itself.
            found = self.network(pixel_values=features, input_ids=ids, attention_mask=mask, use_cache=False)
        else:
            states = features.expand(len(ids), -1, -1).contiguous()
            if self._kind == "blip":
                found = self.network.text_decoder(
                    input_ids=ids, attention_mask=mask, encoder_hidden_states=states, use_cache=False
                )
            else:
                found = self.network(
                    encoder_outputs=(states,), decoder_input_ids=ids, decoder_attention_mask=mask, use_cache=False
                )
        logits: torch.Tensor = found.logits
        return logits


class ChatCaptioner(Captioner):
    """A chat model, asked `prompt` about the picture; pictures come as arrays (height, width, 3). One caption at a time."""

    def __init__(self, network: Any, processor: Any, model: str, prompt: str) -> None:
        tokenizer = getattr(processor, "tokenizer", None)
        if tokenizer is None or not getattr(processor, "chat_template", None):
            raise InputError(
                f"{model} holds a {network.config.model_type} model without a chat template; captioners are supported "
                f"({', '.join(CAPTIONER_TYPES)}), and models that chat about pictures"
            )
        text = network.config.get_text_config()
        # A chat has no start mark: the prompt's last token stands before the caption.
        _, end_id = _marks(network, text, tokenizer, model)
        super().__init__(network, tokenizer, -1, end_id, _context_length(text, model))
        question = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]
        self._question = processor.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
        self._processor = processor

    def encode(self, pictures: Sequence[np.ndarray]) -> list[Mapping[str, "torch.Tensor"]]:
        """Return the model's inputs up to where its answer begins, for each picture."""
        return [
            dict(self._processor(text=[self._question], images=[picture], return_tensors="pt")) for picture in pictures
        ]

    def score(
        self, features: Sequence[Mapping[str, "torch.Tensor"]], captions: Sequence[TokenizedCaption]
    ) -> np.ndarray:
        """Return the logarithm of each caption's probability, one run of the model each."""
        shared = list(features) * len(captions) if len(features) == 1 else features
        return np.array([self._score_one(*pair) for pair in zip(shared, captions, strict=True)])

    def _score_one(self, question: Mapping[str, "torch.Tensor"], caption: TokenizedCaption) -> float:
        import torch

        device, dtype = self.network.device, self.network.dtype
        answer = torch.tensor([caption.ids], dtype=torch.long)
        length = question["input_ids"].shape[1]
        inputs = {}
        for name, value in question.items():
            if name == "input_ids":
                value = torch.cat([value, answer], dim=1)
            elif value.shape == question["input_ids"].shape:
                # The mask goes on with ones; the kind of a token, with that of text.
                filler = torch.ones_like(answer) if name == "attention_mask" else torch.zeros_like(answer)
                value = torch.cat([value, filler.to(value.dtype)], dim=1)
            inputs[name] = value.to(device, dtype) if value.is_floating_point() else value.to(device)
        with torch.inference_mode():
            logits = self.network(**inputs, use_cache=False).logits[:, length - 1 : -1]
            answer = answer.to(device)
            return float(_sum_log_probabilities(logits, answer, torch.ones_like(answer))[0])


def is_chat_model(model: str, revision: str = "") -> bool:
    """Tell from a model's configuration, without its weights, whether it has to be asked."""
    config = read_config(model, revision, "config.json")
    if config is None or "model_type" not in config:
        raise InputError(f"{model} has no config.json that names its model_type, so it is no model of transformers")
    return config["model_type"] not in CAPTIONER_TYPES


def load_captioner(model: str, revision: str = "", prompt: str = "") -> Captioner:
    """Load a model onto this process's GPU, or the CPU; operators that ask for the same one share it. `prompt` is what chat models are asked."""
    with _load_lock:
        return _load_captioner(model, revision, prompt if is_chat_model(model, revision) else "")


@functools.lru_cache(maxsize=_MODELS_KEPT)
def _load_captioner(model: str, revision: str, prompt: str) -> Captioner:
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

    pinned = {"revision": revision} if revision else {}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)
    with quiet_transformers():
        try:
            network = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32, **pinned)
            is_chat = network.config.model_type not in CAPTIONER_TYPES
            # A captioner's own processor may read its texts together with pictures only.
            reader = (AutoProcessor if is_chat else AutoTokenizer).from_pretrained(model, **pinned)
        except (OSError, ValueError, ImportError, KeyError) as error:
            raise InputError(f"{model} holds no image-to-text model that transformers can load: {error}") from error
    # Loaded tensors are views into the file at any address, and matrix products on a CPU give other last bits at other alignments.
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.clone()
    network = network.to(device, torch.bfloat16 if device.type == "cuda" else torch.float32).eval()
    if is_chat:
        return ChatCaptioner(network, reader, model, prompt)
    return PictureCaptioner(network, reader, model, revision)


def _marks(network: Any, text: Any, tokenizer: Any, model: str) -> tuple[int, int]:
    """Return the token that a caption starts after and the one that ends it."""
    config, generation = network.config, getattr(network, "generation_config", None)
    if config.model_type == "blip":
        # BLIP ends with the separator whatever its configuration calls the end.
        return int(text.bos_token_id), int(text.sep_token_id)
    starts = [getattr(part, "decoder_start_token_id", None) for part in (config, generation)]
    starts += [getattr(part, "bos_token_id", None) for part in (text, config, generation, tokenizer)]
    ends = [getattr(part, "eos_token_id", None) for part in (generation, config, text, tokenizer)]
    start = next((value for value in starts if value is not None), None)
    end = next((value for value in ends if value is not None), None)
    # Where several tokens end an answer the first is the one that ends a turn.
    end = end[0] if isinstance(end, list | tuple) else end
    if end is None or (start is None and config.model_type in CAPTIONER_TYPES):
        raise InputError(
            f"{model} does not say which tokens its captions start and end with (bos_token_id, eos_token_id)"
        )
    return -1 if start is None else int(start), int(end)


def _context_length(text: Any, model: str) -> int:
    for name in ("max_position_embeddings", "n_positions"):
        if getattr(text, name, None):
            return int(getattr(text, name))
    raise InputError(f"the configuration of {model} does not say how many tokens its decoder can hold")


def _sum_log_probabilities(logits: "torch.Tensor", targets: "torch.Tensor", mask: "torch.Tensor") -> np.ndarray:
    import torch

    scores = torch.log_softmax(logits.float(), dim=-1).gather(2, targets[:, :, None])[:, :, 0]
    sums: np.ndarray = torch.where(mask > 0, scores, 0.0).double().sum(dim=1).cpu().numpy()
    return sums
