"""The documents that `build` puts beside a dataset: its card, the facts the card was made of, its Croissant description."""

import json

from curate.store import Pool, Store
from pipelines.card import CARD_FILE, FACTS_FILE, collect, describe_dataset
from pipelines.export.croissant import CROISSANT_FILE, describe, read_suffix
from pipelines.export.source import DatasetSource, SelectionSource, open_source
from schemas.dataset import DatasetIndex


def make_documents(pool: Pool, folder: str, dataset: Store, index: DatasetIndex) -> dict[str, bytes]:
    """Return the documents of a dataset whose shards were built from the selection in `folder`, by file name."""
    source = open_source(pool.locate(folder))
    assert isinstance(source, SelectionSource)
    facts = collect(source)
    suffix = read_suffix(DatasetSource(store=dataset, index=index))
    return {
        FACTS_FILE: _to_json(facts),
        CARD_FILE: describe_dataset(index, facts).encode(),
        CROISSANT_FILE: _to_json(describe(index, facts, suffix)),
    }


def _to_json(content: object) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=True) + "\n").encode()
