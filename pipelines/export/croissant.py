"""Croissant 1.0 (mlcommons.org/croissant/1.0): a dataset's files with their digests, and what their columns mean, as JSON-LD.

The records `samples` come from the sidecars; where the dataset has tars of its own, `images` has every picture with its key.
"""

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from curate.fetch.errors import OPTED_OUT, ROBOTS_DISALLOWED
from curate.selection import ELEMENTS
from pipelines.card import read_facts
from pipelines.export.source import DatasetSource
from pipelines.export.target import ExportReport, write_single
from schemas.dataset import DatasetIndex

FORMAT = "croissant"
CROISSANT_FILE = "croissant.json"
# Names that the specification gives short forms; a reader compares the keys with its own list.
_TERMS = (
    "citeAs column conformsTo:dct data:json dataType:vocab examples:json extract field fileProperty fileObject fileSet format includes "
    "isLiveDataset jsonPath key md5 parentField path recordSet references regex repeated replace samplingRate separator source subField "
    "transform equivalentProperty"
)
_CONTEXT_KINDS: Mapping[str, Any] = {"json": "@json", "vocab": "@vocab"}
_FIELDS = (
    ("uid", "sc:Text", "identity of the sample, 32 hex characters"),
    ("key", "sc:Text", "name of the sample's members in the tar"),
    ("url", "sc:URL", "where the picture came from"),
    ("weight", "sc:Float", "relative expected draws per epoch"),
)
_MIME = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp"}


def export(source: DatasetSource, out: str, *, pool: str = "") -> ExportReport:
    """Write the description of a dataset to the file `out`; paths in it are relative to the dataset's folder, where the file belongs."""
    facts = read_facts(source.store, source.index, pool)
    content = describe(source.index, facts, read_suffix(source))
    text = (json.dumps(content, indent=2, ensure_ascii=True) + "\n").encode()
    location, was_current, num_bytes = write_single(out, lambda file: _write(file, text))
    notes = {"command": f"mlcroissant validate --jsonld {shlex.quote(location)}"}
    return ExportReport(
        format=FORMAT,
        location=location,
        num_samples=source.num_samples,
        num_bytes=num_bytes,
        was_current=was_current,
        notes=notes,
    )


def describe(index: DatasetIndex, facts: Mapping[str, Any], suffix: str = "jpg") -> dict[str, object]:
    """Return the JSON-LD of a dataset; `suffix` is that of its pictures."""
    licences = [str(name) for name in facts.get("licences") or {}]
    has_tars = index.kind == "build"
    content: dict[str, object] = {
        "@context": _context(),
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": index.name,
        "description": (
            f"{index.num_samples} image-text pairs selected by Winnow from {index.selection.get('num_rows', 0)} listed ones; selection "
            f"{str(index.selection.get('fingerprint', ''))[:12]}."
        ),
        "version": "1.0.0",
        "identifier": index.fingerprint,
    }
    if licences:
        content["license"] = licences[0] if len(licences) == 1 else licences
    # Whether hosts' wishes were asked for is a setting, and imported pictures were fetched by somebody else: the outcomes tell.
    outcomes: Mapping[str, int] = facts.get("outcomes") or {}
    content["rai:dataCollection"] = (
        "Pictures come from the URLs of lists, or from files that were imported. Left out at the wish of their hosts: "
        f"{outcomes.get(ROBOTS_DISALLOWED, 0)} by robots.txt, {outcomes.get(OPTED_OUT, 0)} by X-Robots-Tag."
    )
    content["rai:dataPreprocessingProtocol"] = _protocol(index)
    content["distribution"] = list(_distribution(index, has_tars, suffix))
    content["recordSet"] = list(_record_sets(index, has_tars, suffix))
    return content


def _protocol(index: DatasetIndex) -> list[str]:
    """Return every step from the list to the dataset, with what it dropped."""
    return [
        f"{row['rule']}: {row['sql']} (dropped {row['num_first_failing']}, left {row['num_remaining']})"
        for row in index.selection.get("funnel", ())  # type: ignore[attr-defined]
    ]


def _distribution(index: DatasetIndex, has_tars: bool, suffix: str) -> Iterator[dict[str, object]]:
    for entry in index.shards:
        if has_tars:
            yield _file(entry.tar, "application/x-tar", entry.tar_sha256) | {"contentSize": f"{entry.tar_bytes} B"}
        yield _file(entry.parquet, "application/x-parquet", entry.parquet_sha256)
    yield {
        "@type": "cr:FileSet",
        "@id": "sidecars",
        "name": "sidecars",
        "description": "One Parquet per shard, a row per sample in the order of the tar.",
        "encodingFormat": "application/x-parquet",
        "includes": "*.parquet",
    }
    if has_tars:
        yield {
            "@type": "cr:FileSet",
            "@id": "pictures",
            "name": "pictures",
            "description": "The pictures in the tars, KEY." + suffix,
            "containedIn": [{"@id": entry.tar} for entry in index.shards],
            "encodingFormat": _MIME.get(suffix, "image/*"),
            "includes": f"*.{suffix}",
        }


def _file(name: str, kind: str, sha256: str) -> dict[str, object]:
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "contentUrl": name,
        "encodingFormat": kind,
        "sha256": sha256,
    }


def _record_sets(index: DatasetIndex, has_tars: bool, suffix: str) -> Iterator[dict[str, object]]:
    fields = [_field(name, kind, text, {"extract": {"column": name}}) for name, kind, text in _FIELDS]
    for name, share in index.captions.items():
        column = name.removesuffix(ELEMENTS)
        field = _field(
            column, "sc:Text", f"a text, drawn with probability {share:.4g}", {"extract": {"column": column}}
        )
        fields.append(field | ({"repeated": True} if name.endswith(ELEMENTS) else {}))
    yield {
        "@type": "cr:RecordSet",
        "@id": "samples",
        "name": "samples",
        "description": "One record per sample.",
        "key": {"@id": "samples/uid"},
        "field": fields,
    }
    if has_tars:
        key = {"extract": {"fileProperty": "filename"}, "transform": {"regex": rf"^([^.]+)\.{suffix}$"}}
        yield {
            "@type": "cr:RecordSet",
            "@id": "images",
            "name": "images",
            "description": "The picture of every sample, by the sample's key.",
            "field": [
                _field("key", "sc:Text", "name of the sample's members", key, "images", "pictures"),
                _field(
                    "image",
                    "sc:ImageObject",
                    "the picture",
                    {"extract": {"fileProperty": "content"}},
                    "images",
                    "pictures",
                ),
            ],
        }


def _field(
    name: str, kind: str, text: str, source: Mapping[str, object], record_set: str = "samples", files: str = "sidecars"
) -> dict[str, object]:
    return {
        "@type": "cr:Field",
        "@id": f"{record_set}/{name}",
        "name": name,
        "description": text,
        "dataType": kind,
        "source": {"fileSet": {"@id": files}, **source},
    }


def _context() -> dict[str, object]:
    context: dict[str, object] = {
        "@language": "en",
        "@vocab": "https://schema.org/",
        "cr": "http://mlcommons.org/croissant/",
        "rai": "http://mlcommons.org/croissant/RAI/",
        "dct": "http://purl.org/dc/terms/",
        "sc": "https://schema.org/",
    }
    for term in _TERMS.split():
        name, _, kind = term.partition(":")
        if kind in _CONTEXT_KINDS:
            context[name] = {"@id": f"cr:{name}", "@type": _CONTEXT_KINDS[kind]}
        else:
            context[name] = f"{kind or 'cr'}:{name}"
    return dict(sorted(context.items()))


def read_suffix(source: DatasetSource) -> str:
    """Return the suffix of a dataset's pictures, which in built ones is the same everywhere."""
    return str(source.read(source.index.shards[0], ["image_suffix"])["image_suffix"][0].as_py())


def _write(file: Any, text: bytes) -> None:
    file.write(text)
