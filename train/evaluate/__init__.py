"""Evaluates image-text models: retrieval and zero-shot classification, over CLIP_benchmark folders and Winnow datasets."""

from train.evaluate.suite import evaluate, evaluate_model

__all__ = ["evaluate", "evaluate_model"]
