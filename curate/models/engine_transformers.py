"""Models of `transformers` in this process: captioners (BLIP, GIT, an encoder with a decoder), chat models that see, language models.

Rows are generated side by side, yet each as if alone, up to rounding: prompts are padded on the left and masked, and where chance decides
every row draws from its own stream of numbers, seeded by its request. On a GPU models run in bfloat16, on a CPU in float32. Only the
model's own settings of tokens are taken from its generation configuration; how answers are drawn is said by `Sampling` alone.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from curate.fingerprint import model_identity
from curate.models.engine import LENGTH, STOP, Answer, Engine, Request, Sampling, failed
from curate.models.prompt_reader import Prompt, load_reader
from curate.models.token_choice import StopAtText, TokenChoice

if TYPE_CHECKING:
    pass

# Rows of one call of the model; more requests are cut into such parts, those with prompts of like length together.
ROWS_PER_CALL = 32


class TransformersEngine(Engine):
    """One model in this process; threads take turns at it, and prepare their requests while others compute."""

    def __init__(self, model: str, revision: str = "") -> None:
        self._identity = {"engine": "transformers", **model_identity(model, revision)}
        self._reader = load_reader(model, revision)
        self._lock = threading.Lock()

    def identity(self) -> Mapping[str, Any]:
        """Return the weights' digest or the pinned commit."""
        return self._identity

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Answer]:
        """Return an answer for every request, in order."""
        answers = dict(pair for together in self.stream(requests, sampling) for pair in together)
        return [answers[number] for number in range(len(requests))]

    def stream(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[tuple[int, Answer]]]:
        """Yield the answers of each call of the model."""
        prompts: list[tuple[int, Prompt]] = []
        wrong: list[tuple[int, Answer]] = []
        for number, request in enumerate(requests):
            prompt = self._reader.read(request, sampling.max_new_tokens)
            if isinstance(prompt, str):
                wrong.append((number, failed(prompt)))
            else:
                prompts.append((number, prompt))
        if wrong:
            yield wrong
        for part in _group(prompts):
            with self._lock:
                answers = self._run([prompt for _, prompt in part], sampling)
            yield [(number, answer) for (number, _), answer in zip(part, answers, strict=True)]

    def _run(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Answer]:
        import torch
        from transformers import LogitsProcessorList, StoppingCriteriaList

        reader = self._reader
        max_new_tokens = prompts[0].max_new_tokens
        choice = TokenChoice(sampling, [prompt.seed for prompt in prompts], max_new_tokens)
        is_beamed = sampling.num_beams > 1
        length = max(len(prompt.ids) for prompt in prompts)
        stopping = [StopAtText(sampling.stop, reader.tokenizer, length)] if sampling.stop else []
        with torch.inference_mode():
            output = reader.network.generate(
                **reader.collate(prompts),
                max_new_tokens=max_new_tokens,
                num_beams=sampling.num_beams,
                do_sample=False,  # the choice draws, row by row
                length_penalty=1.0,
                logits_processor=LogitsProcessorList([] if is_beamed else [choice]),
                return_dict_in_generate=True,
                output_scores=is_beamed,
                stopping_criteria=StoppingCriteriaList(stopping),
            )
        rows = output.sequences[:, length:].cpu().numpy()
        means = output.sequences_scores.tolist() if is_beamed else None
        answers = []
        for number, prompt in enumerate(prompts):
            ids, is_ended = reader.cut(rows[number], has_stops=bool(sampling.stop))
            mean = means[number] if means else choice.mean_log_probability(number, len(ids) + is_ended)
            answers.append(self._answer(prompt, ids, is_ended, mean, sampling))
        return answers

    def _answer(
        self, prompt: Prompt, ids: np.ndarray, is_ended: bool, log_probability: float | None, sampling: Sampling
    ) -> Answer:
        text = self._reader.decode(prompt, ids)
        ends = [place for stop in sampling.stop if (place := text.find(stop)) >= 0]
        return Answer(
            text=text[: min(ends)] if ends else text,
            finish_reason=STOP if is_ended or ends else LENGTH,
            log_probability=log_probability if sampling.log_probabilities else None,
            num_prompt_tokens=len(prompt.ids),
            num_new_tokens=len(ids) + is_ended,
        )


def _group(prompts: Sequence[tuple[int, Prompt]]) -> Iterator[list[tuple[int, Prompt]]]:
    """Yield what goes through the model together: prompts of one kind, alike in length."""
    kinds: dict[object, list[tuple[int, Prompt]]] = {}
    for number, prompt in prompts:
        kinds.setdefault(prompt.kind, []).append((number, prompt))
    for members in kinds.values():
        # Longest first: what does not fit in memory shows at once.
        ordered = sorted(members, key=lambda member: (-len(member[1].ids), member[0]))
        for start in range(0, len(ordered), ROWS_PER_CALL):
            yield ordered[start : start + ROWS_PER_CALL]
