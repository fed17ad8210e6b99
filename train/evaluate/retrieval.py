"""Retrieval both ways between images and captions: recall at 1, 5 and 10.

An image has found its text when any of its captions is among the first K; a caption has found its image when that is (the protocol of
Karpathy and Fei-Fei, 2015, for Flickr30k and COCO). Every caption is a candidate. A caption whose text is, character for character, that
of a caption of the image counts as the image's own: two equal texts cannot be told apart. Ties count against the model: it must score its match
strictly higher than the others, so a model that gives every pair one score finds nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from train.evaluate.group import split_by_group
from train.evaluate.task import Groups

RECALL_AT = (1, 5, 10)

_CHUNK_SCORES = 1 << 25  # similarities held at a time: 128 MiB of float32


@dataclass(frozen=True)
class Matches:
    """The candidates that are hits for each query: those of query i are `columns[starts[i]:starts[i + 1]]`, never none."""

    starts: npt.NDArray[np.int64]
    columns: npt.NDArray[np.int64]

    @classmethod
    def of(cls, columns: Sequence[Sequence[int]]) -> "Matches":
        """Build from one list of candidates per query."""
        starts = np.cumsum([0, *(len(row) for row in columns)])
        return cls(starts, np.array([column for row in columns for column in row], dtype=np.int64))


@dataclass(frozen=True)
class UniqueTexts:
    """The captions of a set of images, each text once."""

    texts: list[str]
    counts: npt.NDArray[np.int64]  # how many captions have the text
    of_image: list[list[int]]  # the texts of each image, without repeats
    images: list[list[int]]  # the images of each text

    @classmethod
    def of(cls, captions: Sequence[Sequence[str]]) -> "UniqueTexts":
        """Number the texts in order of appearance."""
        numbers: dict[str, int] = {}
        counts: list[int] = []
        images: list[list[int]] = []
        of_image: list[list[int]] = []
        for image, own in enumerate(captions):
            for text in own:
                number = numbers.setdefault(text, len(numbers))
                if number == len(counts):
                    counts.append(0)
                    images.append([])
                counts[number] += 1
            of_image.append(sorted({numbers[text] for text in own}))
            for number in of_image[-1]:
                images[number].append(image)
        return cls(list(numbers), np.array(counts, dtype=np.int64), of_image, images)


def measure_retrieval(
    image_features: torch.Tensor, text_features: torch.Tensor, texts: UniqueTexts, groups: Sequence[Groups] = ()
) -> dict[str, float]:
    """Return the recalls, beside each what guessing scores (`chance_...`), and the numbers of images and captions.

    `image_features` (images, d) and `text_features` (unique texts, d) are unit vectors. Memory is bounded whatever their number. For each
    of `groups` follow both recalls at 1 of the images and captions of each group, among all candidates, and of the worst.
    """
    each_image = np.ones(len(image_features), dtype=np.int64)
    to_text = Matches.of(texts.of_image)
    to_image = Matches.of(texts.images)
    metrics: dict[str, float] = {}
    first: dict[str, npt.NDArray[np.bool_]] = {}
    for direction, ranks, weights, own, total in (
        (
            "image_to_text",
            rank_matches(image_features, text_features, to_text, texts.counts),
            each_image,
            np.add.reduceat(texts.counts[to_text.columns], to_text.starts[:-1]),
            int(texts.counts.sum()),
        ),
        (
            "text_to_image",
            rank_matches(text_features, image_features, to_image, each_image),
            texts.counts,
            np.diff(to_image.starts),
            len(each_image),
        ),
    ):
        first[direction] = ranks < 1
        for limit in RECALL_AT:
            metrics[f"{direction}_recall@{limit}"] = float(np.average(ranks < limit, weights=weights))
            guessed = [_chance(int(hits), total, limit) for hits in own]
            metrics[f"chance_{direction}_recall@{limit}"] = float(np.average(guessed, weights=weights))
    for group in groups:
        name = "image_to_text_recall@1"
        metrics |= split_by_group(group.name, group.values, {name: first["image_to_text"]})
        # A text that images of two groups share is a caption of either.
        pairs = [(text, group.values[image]) for text, images in enumerate(texts.images) for image in images]
        found = first["text_to_image"][[text for text, _ in pairs]]
        metrics |= split_by_group(group.name, [value for _, value in pairs], {"text_to_image_recall@1": found})
    both = (metrics["image_to_text_recall@1"] + metrics["text_to_image_recall@1"]) / 2
    return metrics | {
        "mean_recall@1": both,
        "num_images": float(len(each_image)),
        "num_captions": float(texts.counts.sum()),
    }


def rank_matches(
    queries: torch.Tensor, candidates: torch.Tensor, matches: Matches, counts: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return for each query how many candidates that are no match score at least as high as its best match; 0 is first place.

    Candidate j stands for `counts[j]` equal ones. A similarity that is not a number counts as higher.
    """
    step = max(1, _CHUNK_SCORES // max(1, len(candidates)))
    repeats = torch.from_numpy(counts).to(candidates.device, torch.float64)
    parts = []
    for start in range(0, len(queries), step):
        stop = min(start + step, len(queries))
        scores = queries[start:stop] @ candidates.T
        first, last = matches.starts[start], matches.starts[stop]
        lengths = torch.from_numpy(np.diff(matches.starts[start : stop + 1])).to(scores.device)
        rows = torch.repeat_interleave(torch.arange(stop - start, device=scores.device), lengths)
        columns = torch.from_numpy(matches.columns[first:last]).to(scores.device)
        own = scores[rows, columns]
        best = torch.full((stop - start,), -torch.inf, device=scores.device, dtype=scores.dtype)
        best = best.scatter_reduce(0, rows, own, "amax")
        not_lower = ~(scores < best[:, None])
        not_lower[rows, columns] = False
        parts.append((not_lower.to(torch.float64) @ repeats).to(torch.int64).cpu().numpy())
    return np.concatenate(parts)


def _chance(hits: int, total: int, limit: int) -> float:
    """Return the probability that a random order of `total` candidates has one of `hits` among the first `limit`."""
    missed = 1.0
    for place in range(min(limit, total)):
        missed *= max(0, total - hits - place) / (total - place)
    return 1.0 - missed
