"""What changes the identity of an annotation, and what does not."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest

from curate.fingerprint import canonical_json, fingerprint, model_identity, pool_digest, weights_digest
from curate.operator import Annotate, ShardOperator
from schemas.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Example(ShardOperator):
    """An operator with parameters."""

    name = "example"
    version: ClassVar[int] = 1
    reads = ("alt_text",)
    writes = pa.schema([("example_length", pa.int32())])

    threshold: float = 0.5
    words: tuple[str, ...] = ("a", "b")

    def load(self) -> Annotate:
        return lambda batch: {"example_length": [0] * batch.num_rows}


@dataclass(frozen=True, kw_only=True)
class Newer(Example):
    """The same with another version."""

    name = "example"
    version = 2


def test_it_is_pinned() -> None:
    assert fingerprint(Example(), {}) == "3072ef26284e1cbe46c47cfa81c319a38d68544cd5b94dbcb1e7ab816ca98f7f"


def test_parameters_version_and_inputs_change_it() -> None:
    base = fingerprint(Example(), {})
    others = [
        fingerprint(Example(threshold=0.25), {}),
        fingerprint(Example(words=("a",)), {}),
        fingerprint(Newer(), {}),
        fingerprint(Example(), {"alt_text": "url"}),
        fingerprint(Example(), {"alt_text": f"{'0' * 64}.recaption"}),
    ]
    assert len({base, *others}) == 6


def test_labels_do_not_change_it() -> None:
    assert fingerprint(replace(Example(), label="other"), {}) == fingerprint(Example(), {})


def test_json_is_canonical() -> None:
    first: dict[str, Any] = {"b": [1, 2.5], "a": {"y": "é", "x": None}}
    assert canonical_json(first) == '{"a":{"x":null,"y":"\\u00e9"},"b":[1,2.5]}'
    assert canonical_json(dict(reversed(first.items()))) == canonical_json(first)
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))


def test_a_pool_is_its_shards_in_order() -> None:
    assert pool_digest({0: "a", 1: "b"}) == pool_digest({1: "b", 0: "a"})
    assert len({pool_digest({0: "a", 1: "b"}), pool_digest({0: "b", 1: "a"}), pool_digest({0: "a"})}) == 3


def write_model(folder: Path, **files: bytes) -> Path:
    folder.mkdir()
    for name, data in {"config.json": b"{}", "model.safetensors": b"weights", **files}.items():
        (folder / name).write_bytes(data)
    return folder


def test_weights_tokenizer_and_settings_are_the_model_and_notes_are_not(tmp_path: Path) -> None:
    base = weights_digest(write_model(tmp_path / "base"))
    assert weights_digest(write_model(tmp_path / "notes", **{"README.md": b"new", "trainer_state.pt": b"1"})) == base
    changes = {
        "model.safetensors": b"other",
        "tokenizer.json": b"{}",
        "preprocessor_config.json": b"{}",
        "merges.txt": b"a",
    }
    digests = {weights_digest(write_model(tmp_path / name, **{name: data})) for name, data in changes.items()}
    assert len(digests | {base}) == 5


def test_a_file_that_changed_is_hashed_again(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    before = weights_digest(folder)
    (folder / "model.safetensors").write_bytes(b"WEIGHTS, longer")
    assert weights_digest(folder) != before


def test_models_are_folders_or_pinned(tmp_path: Path) -> None:
    folder = str(write_model(tmp_path / "model"))
    assert model_identity(folder) == {"weights": weights_digest(folder)}
    assert model_identity("org/name", "a" * 40) == {"model": "org/name", "revision": "a" * 40}
    for model, revision, message in [
        (folder, "a" * 40, "is a folder, which has no revision"),
        ("org/name", "", "needs revision= with the 40 hex characters"),
        ("org/name", "v1.0", "needs revision="),
        ("./gone", "", "does not exist"),
        ("a/b/c", "a" * 40, "does not exist"),
        ("", "", "does not exist"),
    ]:
        with pytest.raises(InputError, match=message):
            model_identity(model, revision)
