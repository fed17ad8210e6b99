"""NDCG at 10 of pictures found by texts, where a picture is more or less relevant to a text: what GCL measures (Zhu et al. 2024, arXiv 2404.08535).

The gain of a picture is its grade, its discount at place r (from 1) log2(1 + r), the sum over the first ten places divided by that of the best order
(Jarvelin and Kekalainen, 2002; trec_eval's `ndcg_cut_10`). Pictures without a grade for a text have grade 0. Ties count against the model,
and what is no number too: of equal scores the lower grade comes first.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

NDCG_AT = 10
_NAME = f"text_to_image_ndcg@{NDCG_AT}"

_CHUNK_SCORES = 1 << 23  # similarities held at a time; where all are ties, with 32 bytes more each


def measure_relevance(
    image_features: torch.Tensor,
    text_features: torch.Tensor,
    texts: Sequence[str],
    grades: Sequence[Mapping[str, float]],
) -> dict[str, float]:
    """Return the mean NDCG of the texts that some picture is relevant to, each once, what guessing scores, and how many these are.

    `grades` holds for each picture how relevant it is (0 or more) to texts of `texts`; features are unit vectors. All pictures are candidates.
    """
    numbers = {text: number for number, text in enumerate(texts)}
    by_text: list[dict[int, float]] = [{} for _ in texts]
    for image, own in enumerate(grades):
        for text, grade in own.items():
            if grade > 0:
                by_text[numbers[text]][image] = grade
    asked = [number for number, own in enumerate(by_text) if own]
    metrics = {"num_graded_texts": float(len(asked))}
    if not asked:
        return metrics
    relevant = [by_text[number] for number in asked]
    places = min(NDCG_AT, len(image_features))
    discounts = 1 / np.log2(np.arange(2, places + 2))
    best = np.array([_sum_best(list(own.values()), discounts) for own in relevant])
    found = _rank_gains(text_features[asked], image_features, relevant, places) @ discounts
    guessed = np.array([sum(own.values()) for own in relevant]) / len(image_features) * discounts.sum()
    return metrics | {_NAME: float((found / best).mean()), f"chance_{_NAME}": float((guessed / best).mean())}


def _sum_best(grades: list[float], discounts: npt.NDArray[np.float64]) -> float:
    gains = np.sort(np.array(grades, dtype=np.float64))[::-1][: len(discounts)]
    return float(gains @ discounts[: len(gains)])


def _rank_gains(
    queries: torch.Tensor, candidates: torch.Tensor, relevant: Sequence[Mapping[int, float]], places: int
) -> npt.NDArray[np.float64]:
    """Return the grades of the first `places` candidates of each query, (queries, places)."""
    step = max(1, _CHUNK_SCORES // len(candidates))
    parts = []
    for start in range(0, len(queries), step):
        own = relevant[start : start + step]
        scores = queries[start : start + step] @ candidates.T
        rows = torch.tensor([row for row, graded in enumerate(own) for _ in graded])
        columns = torch.tensor([column for graded in own for column in graded])
        values = torch.tensor([value for graded in own for value in graded.values()], dtype=torch.float64)
        grades = torch.zeros(scores.shape, dtype=torch.float64).index_put((rows, columns), values)
        worst = torch.where(grades > 0, -torch.inf, torch.inf).to(scores.dtype)
        scores = torch.where(scores.isnan(), worst, scores)
        # All that may be among the first: those with the score of the last place are ties for it.
        last = scores.topk(places, dim=1).values[:, -1:]
        row, column = (scores >= last).nonzero(as_tuple=True)
        score, grade = scores[row, column].numpy(), grades[row, column].numpy()
        order = np.lexsort((grade, -score, row.numpy()))
        firsts = np.searchsorted(row.numpy(), np.arange(len(own)))  # sorted by row before and after
        parts.append(grade[order][firsts[:, None] + np.arange(places)])
    return np.concatenate(parts)
