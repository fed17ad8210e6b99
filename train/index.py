"""Opens a dataset for training: its index, its samples' places and weights, its captions."""

import hashlib
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from schemas.dataset import INDEX_FILE, SIDECAR_COLUMNS, DatasetIndex
from schemas.errors import InputError, StaleDatasetError
from schemas.progress import Progress, SilentProgress
from train.cache import SampleTable, open_table
from train.captions import Mixture
from train.column_files import column_names, open_weights
from train.reader import TarFile
from train.sampler import Weights, check_weights

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A built dataset or a view, opened; workers share its columns through mapped files."""

    index: DatasetIndex
    root: str  # the folder of index.json: a local path or an fsspec URL
    tars: tuple[TarFile, ...]
    table: SampleTable
    mixture: Mixture
    weights: Weights  # relative expected draws per epoch
    # Changes with everything that decides what training sees: the rows, the mixture, the weights.
    fingerprint: str

    @classmethod
    def open(
        cls,
        path: str,
        *,
        cache: str = "",
        captions: Mapping[str, float] | None = None,
        further: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> "Dataset":
        """Open the dataset in the folder `path`, or of the `index.json` at `path`; local, or any fsspec URL.

        `cache` is a local folder for the mapped columns, about 50 bytes a sample and the captions' text, kept between runs and shared by
        all processes that name it; without one, they go to the system's temporary folder. `captions` replaces the mixture the dataset was
        built with. `further` names caption columns to read besides; one of them is drawn only where the mixture gives it a probability.
        """
        root, index = read_index(path)
        sidecars = [_resolve(root, entry.parquet) for entry in index.shards]
        available = caption_columns(sidecars[0])
        # A negative caption must not become what a sample without a caption falls back to.
        shares = {name: share for name, share in (captions or index.captions).items() if share or name not in further}
        mixture = Mixture.resolve(shares, available)
        for name in further:
            if name not in available:
                raise InputError(
                    f"a loss reads the caption column {name!r}, the dataset has {', '.join(available)}; "
                    f"build it with `{name}: 0` in captions, or name another column in the loss's options"
                )
        columns = dict.fromkeys([*mixture.columns, *further])
        table = open_table(index, sidecars, tuple(columns), cache or own_temporary_folder(), progress)
        check_weights(table.weight)
        identity = f"{hashlib.sha256(index.to_json().encode()).hexdigest()} {mixture}"
        return cls(
            index=index,
            root=root,
            tars=tuple(TarFile(_resolve(root, entry.tar), entry.tar_bytes) for entry in index.shards),
            table=table,
            mixture=mixture,
            weights=table.weight,
            fingerprint=hashlib.sha256(identity.encode()).hexdigest(),
        )

    @property
    def num_samples(self) -> int:
        """The number of samples, those of weight 0 included."""
        return self.index.num_samples

    @property
    def uids(self) -> npt.NDArray[np.uint8]:
        """The uids as 16 bytes each, shape (num_samples, 16); `table.uids(indices)` spells them."""
        return self.table.uid

    def locate(self, path: str) -> str:
        """Return where a file that the index names lies."""
        return _resolve(self.root, path)

    def with_weights(self, path: str) -> "Dataset":
        """Return the dataset with the weights of a Parquet file (`uid`, `weight`): sampling anew needs no new tars.

        The file must hold every uid of the dataset, and may hold more (a whole pool's). Weight 0 leaves a sample out.
        """
        names = column_names(path)
        if not {"uid", "weight"} <= set(names):
            raise InputError(f"{path} needs the columns uid and weight, it has {', '.join(names)}")
        weights = open_weights(self.table, path)
        check_weights(weights)
        digest = hashlib.sha256(self.fingerprint.encode())
        digest.update(weights.data)
        return replace(self, weights=weights, fingerprint=digest.hexdigest())

    def with_identity(self, digest: str) -> "Dataset":
        """Return the dataset with what else training reads in its fingerprint; `digest` is that of these values, or empty."""
        if not digest:
            return self
        return replace(self, fingerprint=hashlib.sha256(f"{self.fingerprint} {digest}".encode()).hexdigest())

    def verify(self, progress: Progress | None = None) -> None:
        """Compare the sha256 of every tar and sidecar with the index; raises `StaleDatasetError` at the first that differs."""
        bar = progress or SilentProgress()
        bar.start("verify", sum(entry.tar_bytes for entry in self.index.shards), "bytes")
        try:
            for entry in self.index.shards:
                for name, expected in ((entry.parquet, entry.parquet_sha256), (entry.tar, entry.tar_sha256)):
                    location = _resolve(self.root, name)
                    found = _sha256(location)
                    if found != expected:
                        raise StaleDatasetError(
                            f"{location} has sha256 {found}, the index says {expected}; build the dataset again"
                        )
                bar.advance(entry.tar_bytes)
        finally:
            bar.close()


def read_index(path: str) -> tuple[str, DatasetIndex]:
    """Return the folder of a dataset, given by its folder or its `index.json`, and its index."""
    root, location = _locate(path)
    index = DatasetIndex.from_json(_read_index(location), path=location)
    _check_counts(index, location)
    return root, index


def caption_columns(sidecar: str) -> list[str]:
    """Return the names of a sidecar's caption columns: those of text, or of lists of text, that no sidecar has by itself."""
    fixed = {name for name, _ in SIDECAR_COLUMNS}
    try:
        with fsspec.open(sidecar, "rb") as file:
            schema = pq.ParquetFile(file).schema_arrow
    except FileNotFoundError as error:
        raise StaleDatasetError(f"{sidecar} is missing; build the dataset again") from error
    return [field.name for field in schema if field.name not in fixed and _is_text(field.type)]


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _locate(path: str) -> tuple[str, str]:
    """Return a dataset's folder and the location of its index."""
    filesystem, bare = fsspec.core.url_to_fs(path)
    if isinstance(filesystem, LocalFileSystem):
        full = str(Path(bare).absolute())
    else:
        full = str(filesystem.unstrip_protocol(bare)).rstrip("/")
    root = full.removesuffix(f"/{INDEX_FILE}") if full.endswith(f"/{INDEX_FILE}") else full
    return root, f"{root}/{INDEX_FILE}"


def own_temporary_folder() -> str:
    """Return this user's cache in the temporary folder; one that somebody else put there is not trusted."""
    folder = Path(tempfile.gettempdir()) / f"winnow-cache-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise InputError(f"{folder} belongs to another user; remove it, or name a cache folder")
    return str(folder)


def _resolve(root: str, path: str) -> str:
    return path if path.startswith("/") or "://" in path else f"{root}/{path}"


def _read_index(location: str) -> str:
    try:
        with fsspec.open(location, "rb") as file:
            content: bytes = file.read()
    except FileNotFoundError as error:
        raise InputError(
            f"{location} does not exist; give the folder that `winnow build` printed, or its index.json"
        ) from error
    return content.decode()


def _check_counts(index: DatasetIndex, location: str) -> None:
    counted = sum(entry.num_samples for entry in index.shards)
    if counted != index.num_samples:
        raise StaleDatasetError(
            f"{location} says {index.num_samples} samples, its shards add up to {counted}; build the dataset again"
        )
    if not index.num_samples:
        raise InputError(f"{location} holds no samples; loosen the selection it was built from")


def _sha256(location: str) -> str:
    digest = hashlib.sha256()
    with fsspec.open(location, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
