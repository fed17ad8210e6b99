"""From a loader's batch to what the towers and the losses take: tensors on the device, by the keys of the losses' requests."""

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from random import Random

import numpy as np
import numpy.typing as npt
import torch

from train.columns import SampleColumns
from train.config import Decode
from train.gpu_decoder import open_decoder
from train.loader import Batch
from train.model import KEPT_PATCHES, ImageTextModel
from train.packing import grid_key
from train.rates import DrawRates
from train.request import Ids, Present, Rate, Request, Row, wanted_texts, wanted_views
from train.sampler import Indices
from train.view_layout import ViewLayout

# BERT's rates, as DeCLIP takes them: tokens to predict; of those, shown as the mask, and as some other token.
_MASKED_SHARE, _MASK_SHARE, _RANDOM_SHARE = 0.15, 0.8, 0.1


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """One process's share of a step; row i of everything belongs to sample i."""

    towers: dict[str, torch.Tensor]  # pictures, token ids and masks
    fields: dict[str, torch.Tensor]  # what losses read beside the towers' outputs
    indices: Indices  # rows of the dataset
    caption_columns: npt.NDArray[np.int32] | None = None  # as in `Batch`

    def split(self, num_parts: int) -> list[dict[str, torch.Tensor]]:
        """Return what the towers take in `num_parts` pieces."""
        chunks = {key: value.chunk(num_parts) for key, value in self.towers.items()}
        return [{key: value[part] for key, value in chunks.items()} for part in range(num_parts)]


class InputMaker:
    """Turns batches into inputs; a value, safe to use from a thread beside the training."""

    def __init__(
        self,
        model: ImageTextModel,
        requests: Sequence[Request],
        columns: SampleColumns,
        device: torch.device,
        rates: DrawRates | None = None,
        decode: Decode = "cpu",
    ) -> None:
        """`rates` answers a request for a `Rate`; `decode` is the loader's."""
        self._rates = rates
        self._decoder = open_decoder(decode, model.image_size, device)
        self._model = model
        self._requests = requests
        self._columns = columns
        self._device = device
        # Copies to a GPU wait for nothing that it computes, and nothing waits for them.
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def make(self, batch: Batch) -> Inputs:
        """Return the inputs of a batch, which are on the device when this returns."""
        if self._stream is None:
            return self._make(batch)
        with torch.cuda.stream(self._stream):
            inputs = self._make(batch)
        self._stream.synchronize()
        for tensor in (*inputs.towers.values(), *inputs.fields.values()):
            # Its memory is this stream's, which may not use it again before the training has.
            tensor.record_stream(torch.cuda.default_stream(self._device))
        return inputs

    def _make(self, batch: Batch) -> Inputs:
        views = wanted_views(self._requests)
        pictures = self._place_pictures(batch)
        layout = ViewLayout(views, self._model.image_size)
        towers = {view.key: layout.take(pictures, view) for view in views}
        if batch.grids is not None:
            towers |= {grid_key(view): batch.grids[:, number] for number, view in enumerate(views)}
        if views and self._model.patch_dropper is not None:
            towers[KEPT_PATCHES] = self._model.patch_dropper.draw(batch.seeds)
        fields = {
            key: _widen(torch.from_numpy(values))
            for key, values in self._columns.take(batch.indices, batch.seeds).items()
        }
        tokens, found = self._tokenize(batch)
        asked = {request.key for request in self._requests}
        fields |= {key: value for key, value in found.items() if key in asked}
        if Rate().key in asked:
            assert self._rates is not None, "the trainer gives rates where a loss asks for them"
            fields[Rate().key] = torch.from_numpy(self._rates.take(batch.epoch, batch.indices))
        if Row().key in asked:
            fields[Row().key] = torch.from_numpy(batch.indices).long()
        return Inputs(
            towers=self._move(towers | tokens),
            fields=self._move(fields),
            indices=batch.indices,
            caption_columns=batch.caption_columns,
        )

    def _place_pictures(self, batch: Batch) -> torch.Tensor:
        """Return uint8 (rows, views, ...) on the device: all views in one copy."""
        if batch.files is None:
            return batch.pictures.to(self._device, non_blocking=True)
        assert self._decoder is not None, "decode is the loader's"
        rows, views = batch.pictures.shape[:2]
        places = batch.pictures.permute(0, 1, 3, 4, 2).reshape(rows * views, -1)
        uids = [uid for uid in batch.uids for _ in range(views)]
        found = self._decoder.decode(places, batch.files.flatten(0, 1), uids)
        return found.reshape(rows, views, *found.shape[1:])

    def _move(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {key: value.to(self._device, non_blocking=True) for key, value in tensors.items()}

    def _tokenize(self, batch: Batch) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        towers: dict[str, torch.Tensor] = {}
        fields: dict[str, torch.Tensor] = {}
        requests = wanted_texts(self._requests)
        if not requests:
            return towers, fields
        # All at once, so that all are padded to one length.
        flat = [text for texts in batch.captions for text in texts]
        ids, mask = self._model.tokenize(flat)
        ids, mask = (value.reshape(len(batch.captions), -1, value.shape[-1]) for value in (ids, mask))
        first = 0
        for text in requests:
            place = first if text.count == 1 else slice(first, first + text.count)
            own, own_mask = ids[:, place], mask[:, place]
            given = [texts[first : first + text.count] for texts in batch.captions]
            first += text.count
            present = torch.tensor([[bool(word) for word in texts] for texts in given])
            fields[Present(text).key] = present[:, 0] if text.count == 1 else present
            labels = own.masked_fill(own_mask == 0, -1)
            if text.variant == "masked":
                own, labels = mask_tokens(own, own_mask, self._model, batch.seeds)
            fields[Ids(text).key] = labels
            towers |= {f"{text.key}.ids": own, f"{text.key}.mask": own_mask}
        return towers, fields


def mask_tokens(
    ids: torch.Tensor, mask: torch.Tensor, model: ImageTextModel, seeds: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids (n, length) with 15 % of the words' tokens hidden, and as labels what was there, -1 elsewhere.

    Of the hidden ones 80 % show the tokenizer's mask token (its padding where it has none), 10 % another token, 10 % themselves.
    """
    tokenizer = model.tokenizer
    shown = tokenizer.pad_token_id if tokenizer.mask_token_id is None else tokenizer.mask_token_id
    specials = np.isin(ids.numpy(), tokenizer.all_special_ids) | (mask.numpy() == 0)
    found, labels = ids.clone(), torch.full_like(ids, -1)
    for row, seed in enumerate(seeds):
        generator = Random(seed)
        for place in np.flatnonzero(~specials[row]).tolist():
            if generator.random() >= _MASKED_SHARE:
                continue
            labels[row, place] = ids[row, place]
            how = generator.random()
            if how < _MASK_SHARE:
                found[row, place] = shown
            elif how < _MASK_SHARE + _RANDOM_SHARE:
                found[row, place] = generator.randrange(len(tokenizer))
    return found, labels


def prefetch(batches: Iterator[Batch], maker: InputMaker) -> Generator[Inputs]:
    """Yield inputs, one batch ahead: waiting for pictures and tokenizing hide behind the step before."""

    def fetch() -> Inputs | None:
        batch = next(batches, None)
        return None if batch is None else maker.make(batch)

    with ThreadPoolExecutor(1, "winnow-prefetch") as pool:
        ahead = pool.submit(fetch)
        try:
            while (inputs := ahead.result()) is not None:
                ahead = pool.submit(fetch)
                yield inputs
        finally:
            wait([ahead])  # whoever closes this closes the loader next


def _widen(values: torch.Tensor) -> torch.Tensor:
    return values.float() if values.is_floating_point() else values.long()
