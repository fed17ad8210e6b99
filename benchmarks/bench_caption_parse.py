"""The caption parsers: precision and recall over the labelled set, and captions per second of one core.

python -m benchmarks caption_parse                             # the rule parser, and spaCy's where en_core_web_sm is installed
python -m benchmarks.bench_caption_parse --pipeline NAME
"""

import argparse
import importlib.util
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from curate.parsing.parse import Parser
from curate.parsing.rules import RuleParser
from tests.curate.parsing.labelled import KINDS, held_back, measure, read_labelled


def main(arguments: Sequence[str] | None = None) -> int:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", default="en_core_web_sm", help="of spaCy")
    parser.add_argument("--out", type=Path, default=None, help="also write the report here")
    options = parser.parse_args(arguments)
    parsers: dict[str, Callable[[], Parser]] = {"rules": RuleParser}
    if importlib.util.find_spec("spacy") and importlib.util.find_spec(options.pipeline):
        from curate.parsing.spacy_parser import SpacyParser

        parsers[f"spacy {options.pipeline}"] = lambda: SpacyParser(options.pipeline)
    labelled = read_labelled()
    lines = [
        f"{len(labelled)} labelled captions, every second one held back.",
        "",
        "| parser | part | " + " | ".join(f"{kind} P / R" for kind in KINDS) + " |",
        "|---|---|" + "---|" * len(KINDS),
    ]
    for name, make in parsers.items():
        parse = make()
        for part, rows in (("all", labelled), ("held back", held_back(labelled))):
            scores = measure(parse, rows)
            cells = [f"{scores[kind].precision:.3f} / {scores[kind].recall:.3f}" for kind in KINDS]
            lines.append(f"| {name} | {part} | {' | '.join(cells)} |")
    captions, source = load_captions()
    lines += [
        "",
        f"{len(captions):,} captions ({source}), one core.",
        "",
        "| parser | first pass | again | load s |",
        "|---|---|---|---|",
    ]
    for name, make in parsers.items():
        start = time.process_time()
        parse = make()
        loaded = time.process_time()
        rates = [_rate(parse, captions) for _ in range(2)]
        lines.append(f"| {name} | {rates[0]:,.0f}/s | {rates[1]:,.0f}/s | {loaded - start:.1f} |")
    if len(parsers) == 1:
        lines += ["", f"spaCy's parser was not measured: no pipeline {options.pipeline} is installed here."]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text)
    return 0


def load_captions() -> tuple[list[str], str]:
    """Return real web alt-texts of the data folder, or the labelled ones many times where it is absent."""
    folder = Path(os.environ.get("WINNOW_DATA", Path(__file__).parents[2] / "shared" / "data"))
    path = folder / "web_alt_texts.jsonl"
    if path.exists():
        return [json.loads(line)["text"] for line in path.read_text().splitlines()], "real web alt-texts"
    return [row.caption for row in read_labelled()] * 50, "the labelled ones, 50 times"


def _rate(parse: Parser, captions: Sequence[str]) -> float:
    start = time.process_time()
    for caption in captions:
        parse(caption)
    return len(captions) / (time.process_time() - start)


if __name__ == "__main__":
    raise SystemExit(main())
