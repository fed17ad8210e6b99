"""Evaluates image-text models on Winnow datasets, CLIP_benchmark folders (DataComp's tasks among them) and pairs of right and wrong captions."""

from train.evaluate.suite import evaluate, evaluate_model

__all__ = ["evaluate", "evaluate_model"]
