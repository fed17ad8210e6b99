"""What operators that ask a model for text have in common: how the model is named, how it is sampled, where answers are kept.

    class Recaption(GenerationOperator):
        reads = ("uid", "image")
        writes = pa.schema([("recaption", pa.string()), *provenance_fields("recaption")])

        def load(self) -> Annotate:
            engine = self.open_engine()

            def annotate(batch):
                requests = [
                    Request(messages=(Message(role="user", text="..."),), image=image, seed=self.request_seed(uid))
                    for uid, image in zip(batch["uid"].to_pylist(), batch["image"].to_pylist())
                ]
                answers = engine.generate(requests, self.sampling)
                return {
                    "recaption": [answer.text for answer in answers],
                    "error": [answer.error or None for answer in answers],
                    **self.provenance("recaption", requests, answers),
                }

Where an operator reads "image", `prepare` has decoded, reduced and encoded it ahead of the engine: the column holds JPEG bytes then.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from curate import images
from curate.fingerprint import canonical_json, model_identity
from curate.models.engine import Answer, Engine, Request, Sampling
from curate.models.engine_factory import NO_CACHE, open_engine
from curate.operator import IMAGE_COLUMN, Prepare, Resources, ShardOperator
from schemas.errors import InputError

ENGINES = ("transformers", "openai", "vllm")
CACHE_FOLDER = "cache/answers"
# How requests travel and what they may cost: none of it changes an answer.
_TRANSPORT = frozenset({
    *("bind", "label", "model", "revision", "engine", "url", "cache", "key_variable", "concurrency"),
    *("request_seconds", "budget_tokens", "budget_money", "price_prompt", "price_new"),
})
_DIGEST_LENGTH = 16
_JPEG_QUALITY = 92
# A batch of the engine in this process is one call of the model; for a server it is only how many rows are waited for together.
_LOCAL_BATCH, _SERVED_BATCH = 32, 256
_LOCAL_BATCHES, _SERVED_BATCHES = 2, 8


@dataclass(frozen=True, kw_only=True)
class GenerationOperator(ShardOperator):
    """Asks a model for text. `model` is a folder or a hub id, the latter with a commit as `revision`; for a server, its name for the model."""

    model: str
    revision: str = ""  # 40 hex characters of a commit; for a server, whatever tells two versions of its model apart
    engine: str = "transformers"  # transformers: in this process; openai: a server that speaks OpenAI's protocol; vllm: on the Ray cluster
    url: str = ""  # of the server, up to and with /v1
    temperature: float = 0.0  # 0: the likeliest token at every step
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    num_beams: int = 1  # the transformers engine only
    max_new_tokens: int = 77
    seed: int = 0
    image_size: int = 448  # long side in pixels of the picture that is sent; larger ones are reduced
    cache: str = ""  # folder of answers got before; empty: cache/answers in the pool; none: no cache
    key_variable: str = "OPENAI_API_KEY"  # environment variable with the server's key, where the work runs
    concurrency: int = 32  # requests at a server at once
    request_seconds: float = 600.0  # for one request with all its repetitions
    budget_tokens: int = 0  # stop after so many tokens, prompts and answers; 0: no limit
    budget_money: float = 0.0  # stop after so much money, in the currency of the prices; 0: no limit
    price_prompt: float = 0.0  # of a million tokens of prompts
    price_new: float = 0.0  # of a million new tokens

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise InputError(f"engine is {self.engine!r}; it is one of {', '.join(ENGINES)}")
        if self.engine == "openai" and not self.url.startswith(("http://", "https://")):
            raise InputError(f"the openai engine needs url=http://HOST:PORT/v1, got {self.url!r}")
        if "@" in self.url:
            raise InputError(
                "url= holds a name or a password, which would end up in recipes; put the key into a variable, key_variable= names it"
            )
        if self.engine != "openai" and self.url:
            raise InputError(f"url={self.url!r} is for engine=openai; the {self.engine} engine loads the model itself")
        smallest = {
            "temperature": 0,
            "top_k": 0,
            "num_beams": 1,
            "max_new_tokens": 0,
            "image_size": 1,
            "concurrency": 1,
        }
        for setting, least in smallest.items():
            if not getattr(self, setting) >= least:
                raise InputError(f"{setting} is {getattr(self, setting):g}; it must be at least {least}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p:g}; it must be above 0, and at most 1, where nothing is cut")
        if self.num_beams > 1 and self.engine != "transformers":
            raise InputError(f"num_beams={self.num_beams} needs engine=transformers")
        if self.num_beams > 1 and self.temperature > 0:
            raise InputError(
                f"num_beams={self.num_beams} looks for the likeliest answer, temperature={self.temperature:g} draws one: choose"
            )
        if self.budget_money > 0 and self.price_prompt <= 0 and self.price_new <= 0:
            raise InputError(
                f"budget_money={self.budget_money:g} needs price_prompt= and price_new=, per million tokens"
            )
        # Workers may run in another folder.
        if self.engine != "openai" and self.model and Path(self.model).is_dir():
            object.__setattr__(self, "model", str(Path(self.model).absolute()))

    @property
    def resources(self) -> Resources:  # type: ignore[override]  # depends on the engine
        """A model in the actor for `transformers`; for a program elsewhere one actor that waits for many batches at once."""
        if self.engine == "transformers":
            return Resources(model=True, batch_size=_LOCAL_BATCH, concurrent_batches=_LOCAL_BATCHES)
        return Resources(model=True, gpus=0, batch_size=_SERVED_BATCH, concurrent_batches=_SERVED_BATCHES)

    @property
    def sampling(self) -> Sampling:
        """How answers are drawn."""
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            num_beams=self.num_beams,
            max_new_tokens=self.max_new_tokens,
            log_probabilities=True,
        )

    def placed(self, pool: str) -> "GenerationOperator":
        """Keep answers in the pool where no other folder was given; a pool in an object store needs a folder that is local."""
        if self.cache:
            return self
        return replace(self, cache=str(Path(pool, CACHE_FOLDER)) if pool else NO_CACHE)

    def engine_identity(self) -> dict[str, str]:
        """Return what decides answers besides requests and sampling: a server's name for its model, or weights by digest or commit."""
        if self.engine == "openai":
            return {"engine": self.engine, "model": self.model, "revision": self.revision}
        return {"engine": self.engine, **model_identity(self.model, self.revision)}

    def identity(self) -> Mapping[str, Any]:
        """Return the engine's identity with every parameter that changes an answer."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _TRANSPORT}
        if IMAGE_COLUMN not in self.reads:
            del own["image_size"]
        return {**own, "model": self.engine_identity()}

    def open_engine(self) -> Engine:
        """Return the engine, with its cache; operators of a process that name the same one share it."""
        return open_engine(self)

    def request_seed(self, uid: str, number: int = 0) -> int:
        """Return the seed (31 bits) of a sample's request; `number` tells several requests of one sample apart."""
        digest = hashlib.sha256(f"{self.seed} {uid} {number}".encode()).digest()
        return int.from_bytes(digest[:4], "big") & 0x7FFFFFFF

    def prepare(self) -> Prepare | None:
        """Return the function that reduces pictures to `image_size` and encodes them, where the operator reads pictures."""
        if IMAGE_COLUMN not in self.reads:
            return None
        size = self.image_size

        def prepare(batch: pa.Table) -> pa.Table:
            encoded = [encode_picture(picture, size) for picture in images.pixels(batch[IMAGE_COLUMN])]
            index = batch.column_names.index(IMAGE_COLUMN)
            return batch.set_column(index, IMAGE_COLUMN, pa.array(encoded, pa.large_binary()))

        return prepare

    def provenance(self, prefix: str, requests: Sequence[Request], answers: Sequence[Answer]) -> dict[str, list[Any]]:
        """Return the columns of `provenance_fields(prefix)` for one request a row; those of a failed one are null."""
        identity = self.engine_identity()
        revision = identity.get("weights") or identity.get("revision", "")
        sampling = sampling_text(self.sampling)
        made = [answer.text is not None for answer in answers]
        return {
            f"{prefix}_model": [self.model_name if is_made else None for is_made in made],
            f"{prefix}_revision": [revision if is_made else None for is_made in made],
            f"{prefix}_prompt_digest": [
                prompt_digest(r) if is_made else None for r, is_made in zip(requests, made, strict=True)
            ],
            f"{prefix}_sampling": [sampling if is_made else None for is_made in made],
            f"{prefix}_finish_reason": [a.finish_reason if a.text is not None else None for a in answers],
            f"{prefix}_log_probability": [a.log_probability for a in answers],
        }

    @property
    def model_name(self) -> str:
        """The model's hub id or a server's name for it; of a folder only its last part, for where it lies does not matter."""
        return Path(self.model).name if Path(self.model).is_absolute() else self.model


def provenance_fields(prefix: str) -> list[pa.Field]:
    """Return the columns that say where a text came from: model, revision, digest of the request, sampling, how it ended, its likelihood."""
    return [
        pa.field(f"{prefix}_model", pa.string()),
        pa.field(f"{prefix}_revision", pa.string()),
        pa.field(f"{prefix}_prompt_digest", pa.string()),
        pa.field(f"{prefix}_sampling", pa.string()),
        pa.field(f"{prefix}_finish_reason", pa.string()),
        pa.field(f"{prefix}_log_probability", pa.float32()),
    ]


def prompt_digest(request: Request) -> str:
    """Return 16 hex characters that identify a request's messages and picture."""
    messages = [[message.role, message.text] for message in request.messages]
    content = canonical_json({"messages": messages, "image": image_digest(request.image)})
    return hashlib.sha256(content.encode()).hexdigest()[:_DIGEST_LENGTH]


def image_digest(image: bytes) -> str:
    """Return the sha256 of a request's encoded picture, or nothing where it has none."""
    return hashlib.sha256(image).hexdigest() if image else ""


def sampling_text(sampling: Sampling) -> str:
    """Return a sampling as JSON with sorted keys, without what has no effect."""
    content: dict[str, Any] = {"max_new_tokens": sampling.max_new_tokens, "temperature": sampling.temperature}
    if sampling.is_drawn:
        content |= {"top_p": sampling.top_p, "top_k": sampling.top_k}
    if sampling.num_beams > 1:
        content["num_beams"] = sampling.num_beams
    if sampling.stop:
        content["stop"] = list(sampling.stop)
    return canonical_json(content)


def encode_picture(picture: np.ndarray | None, size: int) -> bytes:
    """Return a picture as JPEG, its long side at most `size` pixels."""
    if picture is None:
        return b""
    reduced = images.resize(picture, size, "keep_ratio_largest", only_if_bigger=True)
    return images.encode(reduced, "jpg", _JPEG_QUALITY)
