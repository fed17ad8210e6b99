"""What a stage leaves behind, as digests: equal digests mean byte-identical files."""

import hashlib
import json
from pathlib import Path

# Clocks, which img2dataset's format and a log of metrics ask for, are the only fields left out.
_STATS_CLOCKS = ("duration", "start_time", "end_time")


def digest_tree(root: Path, *, ignore: tuple[str, ...] = ()) -> dict[str, str]:
    """Return the sha256 of every file below `root` by relative path, folders named in `ignore` left out."""
    digests = {}
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        if path.is_file() and not set(relative.parts) & set(ignore):
            digests[str(relative)] = _digest(path)
    return digests


def _digest(path: Path) -> str:
    if path.name.endswith("_stats.json"):
        stats = json.loads(path.read_text())
        content = json.dumps({k: v for k, v in stats.items() if k not in _STATS_CLOCKS}).encode()
    elif path.name == "metrics.jsonl":
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        content = json.dumps([{k: v for k, v in line.items() if "second" not in k} for line in lines]).encode()
    else:
        content = path.read_bytes()
    return hashlib.sha256(content).hexdigest()
