"""The names of classes as a two-tower model embeds them: zero-shot classifiers from a text file."""

from pathlib import Path

import numpy as np

from curate.embedding import normalise
from curate.models.clip import BATCH_SIZE, load_model, load_tokenize
from schemas.errors import InputError

_TEMPLATE_MARK = "|"


def read_names(path: str) -> list[str]:
    """Return the lines of a text file that hold something; raises InputError where there is none, or one twice."""
    if not Path(path).is_file():
        raise InputError(f"file of labels {path!r} does not exist")
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"file of labels {path!r} is not UTF-8 text, a name a line: {error}") from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise InputError(f"file of labels {path!r} holds no names; write one a line")
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InputError(f"file of labels {path!r} holds {name!r} twice; tell the two apart, or leave one out")
        seen.add(name)
    return names


def encode_labels(path: str, model: str, revision: str, template: str) -> np.ndarray:
    """Return a unit vector per name: the mean of its prompts' features, of which `template` holds several separated by |."""
    names = read_names(path)
    templates = [part.strip() for part in template.split(_TEMPLATE_MARK) if part.strip()]
    prompts = [part.replace("{c}", name) for name in names for part in templates]
    tokenize, network = load_tokenize(model, revision), load_model(model, revision)
    features = [
        network.encode_ids(tokenize(prompts[start : start + BATCH_SIZE]), tokenize.pad_id)
        for start in range(0, len(prompts), BATCH_SIZE)
    ]
    return normalise(np.concatenate(features).reshape(len(names), len(templates), -1).mean(axis=1))
