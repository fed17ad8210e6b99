"""Requests as the inputs of a model of `transformers`, and its tokens as text: captioners, chat models that see, language models."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from curate import images
from curate.models.captioner import CAPTIONER_TYPES
from curate.models.clip import quiet_transformers
from curate.models.engine import Request
from curate.models.preprocess import ImageSettings, load_settings, prepare_images, read_config, stack_images
from schemas.errors import InputError

if TYPE_CHECKING:
    import torch

# Where a configuration does not say how many tokens a model can hold.
_NO_LIMIT = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A request's inputs. Those of the same `kind` can go through the model together."""

    ids: list[int]
    seed: int
    max_new_tokens: int
    kind: object
    pixels: np.ndarray | None = None
    extras: Mapping[str, "torch.Tensor"] = field(default_factory=dict)


class PromptReader(ABC):
    """Knows one model: its network, its tokenizer, its template."""

    def __init__(self, network: Any, tokenizer: Any, end_ids: Sequence[int]) -> None:
        self.network = network
        self.tokenizer = tokenizer
        self.pad_id = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end_ids[0])
        self._end_ids = np.array(end_ids)
        self._context = _context_length(network.config)

    @abstractmethod
    def read(self, request: Request, max_new_tokens: int) -> Prompt | str:
        """Return a request's inputs, or what is wrong with it."""

    @abstractmethod
    def collate(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """Return the inputs of several requests of one kind, on the model's device."""

    def decode(self, prompt: Prompt, ids: np.ndarray) -> str:  # noqa: ARG002
        """Return an answer's text."""
        return str(self.tokenizer.decode(ids.tolist(), skip_special_tokens=True)).strip()

    def cut(self, ids: np.ndarray, *, has_stops: bool) -> tuple[np.ndarray, bool]:
        """Return an answer's tokens before its end mark, and whether it has one."""
        # Where answers may be stopped at a text, padding without an end mark follows them; elsewhere it is a token like any other.
        ends = [*self._end_ids, self.pad_id] if has_stops else self._end_ids
        (places,) = np.nonzero(np.isin(ids, ends))
        return (ids[: places[0]], bool(ids[places[0]] in self._end_ids)) if len(places) else (ids, False)

    def room(self, num_ids: int, max_new_tokens: int) -> int | str:
        """Return how many tokens an answer may have, or the message where the prompt leaves none."""
        left = self._context - num_ids
        if left < 1:
            return f"the prompt has {num_ids} tokens and the model holds {self._context}"
        return min(left, max_new_tokens)

    def _pad(self, prompts: Sequence[Prompt]) -> dict[str, "torch.Tensor"]:
        """Pad on the left, so that every row's answer begins where its prompt ends."""
        import torch

        longest = max(len(prompt.ids) for prompt in prompts)
        ids = torch.full((len(prompts), longest), self.pad_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt.ids) :] = torch.tensor(prompt.ids, dtype=torch.long)
            mask[row, longest - len(prompt.ids) :] = 1
        return {"input_ids": ids.to(self.network.device), "attention_mask": mask.to(self.network.device)}


class CaptionerReader(PromptReader):
    """Captioners write unasked; the user's message is the beginning of the caption that they go on with, and part of the answer."""

    def __init__(
        self, network: Any, tokenizer: Any, end_ids: Sequence[int], start_id: int, settings: ImageSettings
    ) -> None:
        super().__init__(network, tokenizer, end_ids)
        self._start_id = start_id
        self._settings = settings
        self._kind = network.config.model_type

    def read(self, request: Request, max_new_tokens: int) -> Prompt | str:
        """Return a picture and the beginning of its caption."""
        if not request.image:
            return "a captioner needs a picture"
        try:
            picture = images.decode(request.image)
        except images.ImageError as error:
            return str(error)
        column = prepare_images(self._settings, images.to_column([picture]))
        texts = [message.text for message in request.messages if message.role == "user"]
        words = self.tokenizer(texts[-1], add_special_tokens=False)["input_ids"] if texts and texts[-1] else []
        ids = [self._start_id, *words]
        room = self.room(len(ids), max_new_tokens)
        if isinstance(room, str):
            return room
        pixels = stack_images(self._settings, _as_chunked(column))
        # Of one length: not every captioner's positions take padding on the left into account.
        return Prompt(ids=ids, seed=request.seed, max_new_tokens=room, kind=(len(ids), room), pixels=pixels)

    def collate(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """Return pictures as the tower takes them, and the beginnings."""
        import torch

        device, settings = self.network.device, self._settings
        batch = np.concatenate([prompt.pixels for prompt in prompts if prompt.pixels is not None])
        values = torch.from_numpy(batch).to(device).permute(0, 3, 1, 2).float() * settings.scale
        mean = torch.tensor(settings.mean, device=device).view(1, 3, 1, 1)
        std = torch.tensor(settings.std, device=device).view(1, 3, 1, 1)
        inputs: dict[str, Any] = {"pixel_values": ((values - mean) / std).to(self.network.dtype).contiguous()}
        padded = self._pad(prompts)
        if self._kind == "vision-encoder-decoder":
            return inputs | {"decoder_input_ids": padded["input_ids"]}
        if self._kind == "blip":
            # BLIP takes a finished caption and drops its end mark.
            end = torch.full_like(padded["input_ids"][:, :1], int(self._end_ids[0]))
            padded = {"input_ids": torch.cat([padded["input_ids"], end], dim=1)}
            padded["attention_mask"] = torch.ones_like(padded["input_ids"])
        return inputs | padded

    def decode(self, prompt: Prompt, ids: np.ndarray) -> str:
        """Return the whole caption, its given beginning included."""
        return str(self.tokenizer.decode([*prompt.ids[1:], *ids.tolist()], skip_special_tokens=True)).strip()


class ChatReader(PromptReader):
    """Models with a chat template, and those without, which see the messages one after the other; `processor` where they see pictures."""

    def __init__(self, network: Any, tokenizer: Any, end_ids: Sequence[int], processor: Any) -> None:
        super().__init__(network, tokenizer, end_ids)
        self._processor = processor
        self._template = processor if processor is not None else tokenizer

    def read(self, request: Request, max_new_tokens: int) -> Prompt | str:
        """Return the conversation up to where the answer begins."""
        from jinja2 import TemplateError

        if request.image and self._processor is None:
            return "the model takes no pictures"
        try:
            text = self._text(request)
        except TemplateError as error:
            return f"the model's chat template does not take these messages: {error}"
        extras: dict[str, Any] = {}
        if self._processor is None:
            # A template writes its own start mark.
            ids = self.tokenizer(text, add_special_tokens=not self._has_template)["input_ids"]
        else:
            try:
                pictures = [images.decode(request.image)] if request.image else None
            except images.ImageError as error:
                return str(error)
            found = dict(self._processor(text=[text], images=pictures, return_tensors="pt"))
            ids = found.pop("input_ids")[0].tolist()
            found.pop("attention_mask", None)
            # The kind of each token is as long as the prompt, and so unlike every other input; it says what the ids say.
            extras = {name: value for name, value in found.items() if value.shape[:2] != (1, len(ids))}
        room = self.room(len(ids), max_new_tokens)
        if isinstance(room, str):
            return room
        kind = (room, tuple((name, tuple(value.shape[1:])) for name, value in sorted(extras.items())))
        return Prompt(ids=ids, seed=request.seed, max_new_tokens=room, kind=kind, extras=extras)

    def collate(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """Return conversations padded to one length, and what the processor made of their pictures."""
        import torch

        device, dtype = self.network.device, self.network.dtype
        inputs: dict[str, Any] = dict(self._pad(prompts))
        for name in prompts[0].extras:
            value = torch.cat([prompt.extras[name] for prompt in prompts])
            inputs[name] = value.to(device, dtype) if value.is_floating_point() else value.to(device)
        return inputs

    @property
    def _has_template(self) -> bool:
        return bool(getattr(self._template, "chat_template", None))

    def _text(self, request: Request) -> str:
        if not self._has_template:
            return "\n\n".join(message.text for message in request.messages)
        users = [number for number, message in enumerate(request.messages) if message.role == "user"]
        messages: list[dict[str, Any]] = []
        for number, message in enumerate(request.messages):
            content: Any = message.text
            if self._processor is not None:
                pictures = [{"type": "image"}] if request.image and number == users[-1] else []
                content = [*pictures, {"type": "text", "text": message.text}]
            messages.append({"role": message.role, "content": content})
        return str(self._template.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


def load_reader(model: str, revision: str = "") -> PromptReader:
    """Load a model of any of the kinds onto this process's GPU, or the CPU."""
    import torch
    import transformers

    config = read_config(model, revision, "config.json") or {}
    kind = config.get("model_type", "")
    pinned = {"revision": revision} if revision else {}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)
    sees = kind in transformers.models.auto.modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    sees = sees or kind in CAPTIONER_TYPES
    loader = transformers.AutoModelForImageTextToText if sees else transformers.AutoModelForCausalLM
    with quiet_transformers():
        try:
            network = loader.from_pretrained(
                model, dtype=torch.float32 if device.type == "cpu" else torch.bfloat16, **pinned
            )
            is_chat = sees and kind not in CAPTIONER_TYPES
            processor: Any = transformers.AutoProcessor.from_pretrained(model, **pinned) if is_chat else None
            tokenizer = processor.tokenizer if is_chat else transformers.AutoTokenizer.from_pretrained(model, **pinned)
        except (OSError, ValueError, ImportError, KeyError, AttributeError) as error:
            raise InputError(
                f"{model} holds no model that writes text and that transformers can load: {error}"
            ) from error
    # Loaded tensors are views into the file at any address, and matrix products on a CPU give other last bits at other alignments.
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.clone()
    network = network.to(device).eval()
    start_id, end_ids = _marks(network, tokenizer, model)
    # How a model's makers like it drawn is no part of its identity, and must not change answers.
    network.generation_config = transformers.GenerationConfig(
        bos_token_id=start_id,
        decoder_start_token_id=start_id,
        eos_token_id=end_ids,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end_ids[0],
    )
    if hasattr(network, "text_decoder"):
        network.text_decoder.generation_config = network.generation_config
    if not is_chat and sees:
        return CaptionerReader(network, tokenizer, end_ids, start_id, load_settings(model, revision))
    return ChatReader(network, tokenizer, end_ids, processor)


def _marks(network: Any, tokenizer: Any, model: str) -> tuple[int, list[int]]:
    """Return the token that answers start after, and those that end them."""
    config = network.config
    text = config.get_text_config(decoder=True)
    if config.model_type == "blip":
        # BLIP ends with the separator whatever its configuration calls the end.
        return int(text.bos_token_id), [int(text.sep_token_id)]
    places = (getattr(network, "generation_config", None), config, text, tokenizer)
    starts = [getattr(config, "decoder_start_token_id", None), *(getattr(p, "bos_token_id", None) for p in places)]
    ends = next((found for p in places if (found := getattr(p, "eos_token_id", None)) is not None), None)
    if ends is None:
        raise InputError(f"{model} does not say which token ends an answer (eos_token_id)")
    start = next((int(found) for found in starts if found is not None), 0)
    return start, [int(end) for end in ends] if isinstance(ends, list | tuple) else [int(ends)]


def _context_length(config: Any) -> int:
    text = config.get_text_config(decoder=True)
    found = [getattr(text, name, None) for name in ("max_position_embeddings", "n_positions")]
    return next((int(value) for value in found if value), _NO_LIMIT)


def _as_chunked(array: Any) -> Any:
    import pyarrow as pa

    return pa.chunked_array([array])
