"""The identity of an annotation: what was computed, with which weights, from which columns; never where or how.

Two runs with the same fingerprint write the same rows, so a file with that fingerprint need not be written again.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

from curate.operator import Operator
from schemas.errors import InputError
from schemas.model_layout import conversion_hint

# What decides a model's output: weights, configuration, preprocessing, tokenizer. Optimiser states and notes beside them do not.
_MODEL_FILES = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.*",
    "generation_config.json",
    "tokenizer*.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.spm",
    "spiece.model",
    "sentencepiece*.model",
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model*.bin",
    "pytorch_model.bin.index.json",
)
_WEIGHT_SUFFIXES = (".safetensors", ".bin")
# Modules made of a user's file; the digest of the file follows.
FILE_MODULE_PREFIX = "winnow_operator_"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_CHUNK_BYTES = 1 << 22

# Weights take seconds to hash; (path, bytes, time of change) -> digest, for this process.
_digests: dict[tuple[str, int, int], str] = {}


def fingerprint(operator: Operator, upstream: Mapping[str, str]) -> str:
    """Return the sha256 hex digest of an operator with its parameters and of where its inputs come from.

    `upstream` maps an input column to its origin: `<fingerprint>.<column>` for an annotation, the column's name for a sample column
    that another was bound to. Inputs that carry their own name are left out. Labels and paths are no part of it. An operator that is a
    user's file is identified by that file's content as well.
    """
    content: dict[str, object] = {
        "name": operator.name,
        "version": operator.version,
        "parameters": operator.identity(),
        "upstream": dict(upstream),
    }
    if source_of(operator):
        content["source"] = source_of(operator)
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def source_of(operator: Operator) -> str:
    """Return the digest of the user's file an operator comes from, or nothing where it is one of Winnow's."""
    module = type(operator).__module__
    return module.removeprefix(FILE_MODULE_PREFIX) if module.startswith(FILE_MODULE_PREFIX) else ""


def canonical_json(content: object) -> str:
    """Return JSON with sorted keys and no spaces: equal content gives equal text."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def pool_digest(shard_digests: Mapping[int, str]) -> str:
    """Return the identity of a pool's rows: sha256 over its shards' digests in order. Pool-wide annotations are stale when it changes."""
    text = "\n".join(f"{shard} {shard_digests[shard]}" for shard in sorted(shard_digests))
    return hashlib.sha256(text.encode()).hexdigest()


def model_identity(model: str, revision: str = "") -> dict[str, str]:
    """Return what identifies a model in a fingerprint: the digest of a local folder, or a hub id with its pinned commit."""
    if model and Path(model).is_dir():
        if revision:
            raise InputError(f"model {model!r} is a folder, which has no revision; leave revision={revision!r} out")
        return {"weights": weights_digest(model)}
    if model.startswith((".", "/", "~")) or model.count("/") > 1 or not model:
        raise InputError(
            f"model folder {model!r} does not exist; give a folder that transformers can load, or a hub id{conversion_hint(model)}"
        )
    if not _COMMIT.fullmatch(revision):
        raise InputError(
            f"model {model!r} is not a local folder, and as a hub id it needs revision= with the 40 hex characters of a commit, got "
            f"{revision!r}: a branch may change what it holds; find the commit under 'History' on the model's page"
        )
    return {"model": model, "revision": revision}


def file_identity(path: str) -> dict[str, str]:
    """Return what identifies a file in a fingerprint: the digest of its content, wherever it lies."""
    if not Path(path).is_file():
        raise InputError(f"file {path!r} does not exist")
    return {"sha256": _file_digest(Path(path))}


def weights_digest(folder: str | Path) -> str:
    """Return the sha256 over the names and contents of a model folder's weights, configuration and tokenizer."""
    root = Path(folder)
    paths = sorted({path for pattern in _MODEL_FILES for path in root.glob(pattern)})
    if not any(path.suffix in _WEIGHT_SUFFIXES for path in paths):
        raise InputError(
            f"{root} holds no weights (*.safetensors or pytorch_model*.bin); give the folder that `winnow train` or save_pretrained wrote"
        )
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name} {_file_digest(path)}\n".encode())
    return digest.hexdigest()


def _file_digest(path: Path) -> str:
    status = path.stat()
    key = (str(path.resolve()), status.st_size, status.st_mtime_ns)
    if key not in _digests:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
        _digests[key] = digest.hexdigest()
    return _digests[key]
