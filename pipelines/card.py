"""A dataset's card: what it is and how it came to be, from the files that the stages left; nothing in it is typed by hand.

`winnow build` puts two files beside a dataset: `card.json`, what was counted in the pool while it was at hand, and `README.md`, which says
it in words. Text that came from the web is shown as code and cannot become markup.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from curate.build import read_index
from curate.fetch.errors import OPTED_OUT, ROBOTS_DISALLOWED
from curate.fetch.ingest import SETTINGS_FILE
from curate.store import Pool, Store
from pipelines.export.annotation import read_header, read_schemas
from pipelines.export.source import DatasetSource, SelectionSource, require_selection
from schemas.dataset import DatasetIndex
from schemas.sample import STATUS_SUCCESS

CARD_FILE = "README.md"
FACTS_FILE = "card.json"
_TOP = 10
_ROWS = 50_000
_LICENCE_COLUMNS = ("license", "licence", "License", "LICENSE")
# What operators would have looked for, where none of them had a part in the selection.
_CHECKS = (
    (("safety_score",), "no model looked for unsafe pictures"),
    (("caption_safety",), "captions were not searched for unsafe content"),
    (("caption_pii",), "captions were not searched for personal data"),
    (("face_boxes",), "faces were neither found nor blurred"),
    (("near_dedup", "semantic_dedup", "exact_dedup"), "copies of pictures were not looked for"),
    (("decontaminate",), "overlap with evaluation sets was not looked for"),
)

Facts = Mapping[str, Any]


def collect(source: SelectionSource) -> dict[str, Any]:
    """Return what a card needs to know of a selection's pool: outcomes of the download, models, languages, licences, hosts."""
    pool, columns = source.pool, {"url": "url"}
    schemas = read_schemas(source)
    language = next((label for label, schema in schemas.items() if "language_code" in schema.names), "")
    if language:
        columns["language"] = f"{language}.language_code"
    names = set(pool.read_footer(pool.shard_parquet(pool.shards()[0])).schema.to_arrow_schema().names)
    licence = next((name for name in _LICENCE_COLUMNS if name in names), "")
    if licence:
        columns["licence"] = licence
    counts: dict[str, Counter[str]] = {"host": Counter(), "language": Counter(), "licence": Counter()}
    for start in range(0, source.num_samples, _ROWS):
        table = source.read(start, min(start + _ROWS, source.num_samples), columns)
        counts["host"].update(_host(url) for url in table["url"].to_pylist())
        for name in ("language", "licence"):
            if name in columns:
                counts[name].update(str(value) for value in table[name].to_pylist() if value is not None)
    return {
        "outcomes": _count_outcomes(pool),
        "operators": list(_operators(source)),
        "num_hosts": len(counts["host"]),
        "hosts": dict(counts["host"].most_common(_TOP)),
        "languages": dict(counts["language"].most_common(_TOP)),
        "licences": dict(counts["licence"].most_common(_TOP)),
        "licence_column": licence,
        "stored": json.loads(pool.read_bytes(SETTINGS_FILE)) if pool.exists(SETTINGS_FILE) else {},
    }


def card(dataset: str, pool: str = "") -> str:
    """Return the card of a dataset; with `pool` its facts are counted anew, without they are those that were counted at the build.

    Raises InputError where the folder is no dataset.
    """
    store = Store(dataset)
    index = read_index(store)
    return describe_dataset(index, read_facts(store, index, pool))


def read_facts(store: Store, index: DatasetIndex, pool: str = "") -> Facts:
    """Return the facts beside a dataset, or those of `pool`; nothing where neither is there."""
    if pool:
        return collect(require_selection(DatasetSource(store=store, index=index), "a card", pool))
    if store.exists(FACTS_FILE):
        found: Facts = json.loads(store.read_bytes(FACTS_FILE))
        return found
    return {}


def describe_dataset(index: DatasetIndex, facts: Facts) -> str:
    """Return the card as Markdown; parts of which nothing is known say so."""
    selection = index.selection
    parts = [
        f"# {_plain(index.name)}",
        f"{index.num_samples:,} image-text pairs in {len(index.shards):,} shards, made by Winnow. Fingerprint `{index.fingerprint[:12]}`, "
        f"selection `{str(selection.get('fingerprint', ''))[:12]}`.",
        "## From the list to this set",
        _table(("step", "condition", "dropped here", "left"), list(_funnel(selection))),
        _describe_download(facts),
        "## Texts and weights",
        _table(("text", "share of draws"), [(_code(name), f"{share:.1%}") for name, share in index.captions.items()]),
        f"Weight of a sample: {_code(selection.get('weight', '1.0'))}; draws are worth {float(str(selection.get('effective_samples', 0))):,.0f} "
        "samples of equal weight.",
        "## Models and measurements",
        _table(("label", "operator", "version", "parameters", "read by the selection"), list(_operator_rows(facts)))
        if facts.get("operators")
        else "The selection reads no measurement.",
        "## Languages",
        _shares(facts.get("languages"), "language", "Languages were not measured."),
        "## Hosts",
        _shares(facts.get("hosts"), "host", "Hosts were not counted."),
        "## Licences and opt-outs",
        _describe_rights(facts),
        "## Known limits",
        "\n".join(f"- {limit}" for limit in _limits(index, facts)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _funnel(selection: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    yield "listed", "", "", f"{selection.get('num_rows', 0):,}"
    for row in selection.get("funnel", ()):
        yield _plain(row["rule"]), _code(row["sql"]), f"{row['num_first_failing']:,}", f"{row['num_remaining']:,}"


def _describe_download(facts: Facts) -> str:
    outcomes: Mapping[str, int] = facts.get("outcomes") or {}
    failed = {message: count for message, count in outcomes.items() if message != STATUS_SUCCESS}
    if not failed:
        return ""
    rows = [(_code(message), f"{count:,}") for message, count in failed.items()]
    return "Why pictures could not be had, most frequent first:\n\n" + _table(("error", "URLs"), rows)


def _operator_rows(facts: Facts) -> Iterator[tuple[str, ...]]:
    for entry in facts["operators"]:
        is_read = "yes" if entry["is_read"] else "no, others may stand on it"
        values = (entry["label"], entry["operator"], entry["version"], json.dumps(entry["parameters"]))
        yield (*map(_code, values), is_read)


def _describe_rights(facts: Facts) -> str:
    outcomes: Mapping[str, int] = facts.get("outcomes") or {}
    lines = [
        f"- {outcomes.get(OPTED_OUT, 0):,} pictures were left out because their host's X-Robots-Tag forbids such use, and "
        f"{outcomes.get(ROBOTS_DISALLOWED, 0):,} because of robots.txt."
    ]
    if not facts.get("licences"):
        return "\n".join([
            *lines,
            "- The lists state no licences: every picture belongs to whoever published it, at its URL.",
        ])
    column = facts.get("licence_column", "")
    return (
        "\n".join([*lines, f"- Licences as the lists state them, in {_code(column)}:"])
        + "\n\n"
        + _shares(facts["licences"], "licence", "")
    )


def _limits(index: DatasetIndex, facts: Facts) -> Iterator[str]:
    used = {entry["operator"] for entry in facts.get("operators", ()) if entry["is_read"]}
    for operators, sentence in _CHECKS:
        if not used.intersection(operators):
            yield f"For this selection {sentence}."
    stored = facts.get("stored") or {}
    if stored and not stored.get("keep_original"):
        yield (
            f"Pictures were re-encoded as {_plain(stored.get('encode_format'))}, resize mode {_plain(stored.get('resize_mode'))}, "
            f"{stored.get('image_size')} pixels."
        )
    if index.captions.get("alt_text", 0) > 0:
        yield "Web texts were written by strangers and may not describe the picture."
    if set(index.captions) - {"alt_text"}:
        yield "Some texts were written by models, and may state what is not in the picture."
    if not facts:
        yield "The pool was not at hand when this card was written; `winnow card DATASET --pool DIR` fills the gaps."
    yield "URLs die and pictures change: the set can be fetched again only in part."


def _count_outcomes(pool: Pool) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for shard in pool.shards():
        table = pool.read_table(pool.shard_parquet(shard), ["status", "error_message"])
        for status, message in zip(table["status"].to_pylist(), table["error_message"].to_pylist(), strict=True):
            counts[STATUS_SUCCESS if status == STATUS_SUCCESS else message or status] += 1
    # Opt-outs are told whatever their number.
    kept = dict(counts.most_common(_TOP))
    return kept | {message: counts[message] for message in (OPTED_OUT, ROBOTS_DISALLOWED) if counts[message]}


def _operators(source: SelectionSource) -> Iterator[dict[str, object]]:
    """Yield what the selection read, and every model whose measurements are in the pool: a score may stand on a model's embeddings."""
    for label, target in sorted(source.labels.items()):
        header = read_header(source.pool, target)
        if header is None:
            continue
        parameters = json.loads(header.parameters or "{}")
        is_read = label in source.content["labels"]
        if is_read or any(isinstance(value, dict) for value in parameters.values()):
            yield {
                "label": label,
                "operator": header.operator,
                "version": header.version,
                "fingerprint": header.fingerprint,
                "parameters": parameters,
                "is_read": is_read,
            }


def _host(url: str | None) -> str:
    try:
        return urlsplit(url or "").hostname or "none"
    except ValueError:
        return "none"


def _shares(counts: Mapping[str, int] | None, name: str, otherwise: str) -> str:
    if not counts:
        return otherwise
    return _table((name, "samples"), [(_code(key), f"{count:,}") for key, count in counts.items()])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _code(text: object) -> str:
    """Return text of unknown origin as a code span of one line: nothing in one is markup, and without backticks nothing ends it."""
    line = " ".join(str(text).split()).replace("`", "'").replace("|", "\\|")
    return f"`{line}`" if line else ""


def _plain(text: object) -> str:
    """Return text of unknown origin with every character that could start markup made harmless."""
    line = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{character}" if character in "\\`*_[]|#" else character for character in line)
