"""Runs an image tower over pictures of any aspect, several in a row of tokens: what each gets is what it gets alone (NaViT, arXiv 2307.06304).

The tower is SigLIP 2's vision model, whose table of positions is interpolated to a picture's own grid of patches. Its layers run over
rows of `row_length` tokens with a mask that keeps pictures apart; its head, which has one query, pools picture by picture.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from schemas.errors import InputError
from train.request import Patches, Request, View, tower_requests, wanted_views

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NATIVE_TOWER = "siglip2_vision_model"


def pack_rows(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Return which sequences share a row: the longest first, each into the first row that has room (first fit decreasing)."""
    rows: list[list[int]] = []
    room: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        assert lengths[number] <= row_length, "a row takes the longest sequence"
        place = next((place for place, left in enumerate(room) if left >= lengths[number]), len(rows))
        if place == len(rows):
            rows.append([])
            room.append(row_length)
        rows[place].append(number)
        room[place] -= lengths[number]
    return rows


def encode_packed(
    tower: "PreTrainedModel", patches: torch.Tensor, grids: torch.Tensor, *, row_length: int = 0
) -> torch.Tensor:
    """Return what the tower pools of each picture, (n, width).

    `patches` (n, most, patch * patch * 3) are normalised, those past a picture's own are not read; `grids` (n, 2) are its rows and columns of
    patches. `row_length` 0 is that of the longest picture here.
    """
    parts: Any = tower
    shapes = [(int(rows), int(columns)) for rows, columns in grids.tolist()]
    lengths = [rows * columns for rows, columns in shapes]
    longest = max(lengths)
    rows = pack_rows(lengths, max(row_length, longest))
    embedded = parts.embeddings.patch_embedding(
        torch.cat([own[:length] for own, length in zip(patches, lengths, strict=True)])
    )
    table = _positions(parts.embeddings, shapes)
    tokens = [part + table[shape].to(part.dtype) for part, shape in zip(embedded.split(lengths), shapes, strict=True)]
    packed, owners = _fill(tokens, rows, max(row_length, longest))
    # Padding, which is -1 everywhere, attends to padding: a row of a mask must not be empty.
    mask = (owners[:, None, :, None] == owners[:, None, None, :]).to(packed.device)
    hidden = parts.post_layernorm(parts.encoder(inputs_embeds=packed, attention_mask=mask).last_hidden_state)
    found = hidden.new_zeros(len(lengths), longest, hidden.shape[-1])
    present = torch.zeros(len(lengths), longest, dtype=torch.bool)
    for row, members in enumerate(rows):
        start = 0
        for number in members:
            found[number, : lengths[number]] = hidden[row, start : start + lengths[number]]
            present[number, : lengths[number]] = True
            start += lengths[number]
    pooled: torch.Tensor = parts.head(found, present.to(packed.device))
    return pooled


def square_patches(images: torch.Tensor, patch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pictures (n, 3, S, S) as patches in reading order, (n, patches, patch * patch * 3), and their grids."""
    side = images.shape[-1] // patch_size
    parts = images.reshape(*images.shape[:2], side, patch_size, side, patch_size)
    grids = torch.full((len(images), 2), side)
    return parts.permute(0, 2, 4, 3, 5, 1).reshape(len(images), side * side, -1), grids


def check_native(requests: Sequence[Request], *, is_compiled: bool) -> None:
    """Raise where a loss or a setting asks for what pictures of their own aspect cannot give."""
    asked = tower_requests(requests)
    if is_compiled:
        raise InputError(
            "image_tower navit does not go with compile: every batch has other shapes; leave one of them out"
        )
    if any(isinstance(request, Patches) for request in asked):
        raise InputError("image_tower navit gives no patches, which a loss reads; use a ViT, or another loss")
    if any(view.number for view in wanted_views(asked)):
        raise InputError("image_tower navit has no augmented views, which a loss reads; use a ViT, or another loss")


def grid_key(view: View) -> str:
    """Return the key under which the towers find the rows and columns of patches of a view's pictures."""
    return f"{view.key}.grid"


def _positions(embeddings: Any, shapes: Sequence[tuple[int, int]]) -> dict[tuple[int, int], torch.Tensor]:
    """Return the positions of each grid there is, (rows * columns, width)."""
    side = embeddings.position_embedding_size
    table = embeddings.position_embedding.weight.reshape(side, side, -1)
    return {
        shape: embeddings.resize_positional_embeddings(table, torch.tensor([shape]), max_length=shape[0] * shape[1])[0]
        for shape in dict.fromkeys(shapes)
    }


def _fill(
    tokens: Sequence[torch.Tensor], rows: Sequence[Sequence[int]], length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows of tokens (rows, length, width), and whose each token is, -1 for padding."""
    owners = torch.full((len(rows), length), -1)
    filled = []
    for row, members in enumerate(rows):
        start = 0
        for number in members:
            owners[row, start : start + len(tokens[number])] = number
            start += len(tokens[number])
        padding = tokens[0].new_zeros(length - start, tokens[0].shape[1])
        filled.append(torch.cat([*(tokens[number] for number in members), padding]))
    return torch.stack(filled), owners
