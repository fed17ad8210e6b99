"""What shipped recipes keep of the demo's pool: rows, and how many of them have no planted fault.

python -m benchmarks.bench_recipes [DEMO]      # the folder of a finished `winnow demo`; without one, a demo of scale 0.3 is made
"""

import sys
import tempfile
from pathlib import Path

from curate.annotate import annotate
from curate.executor import Executor
from curate.select import select
from curate.store import Pool, Store
from pipelines.demo.compare import compare, read_truth
from pipelines.demo.demo import demo
from pipelines.recipe import Recipe, load_recipe, shipped_recipes
from schemas.sample import STATUS_SUCCESS

SCALE = 0.3
NAMES = ("circle", "square", "triangle", "star", "heart", "moon", "car", "fish", "tree", "house", "cup", "flower")
COLOURS = ("red", "blue", "green", "yellow", "purple", "orange", "pink", "brown", "black", "white")
# What belongs to another web than a miniature one.
CHANGES = {"metaclip": ["parameters.t=100"], "datacomp-basic": ["select.rules.size=1 = 1"]}


def main(folder: str) -> None:
    """Print a line for every recipe that selects and asks for nothing but a CLIP, names or entries."""
    with Executor(num_workers=2) as executor, tempfile.TemporaryDirectory() as scratch:
        if not folder:
            folder = f"{scratch}/demo"
            demo(folder, executor=executor, scale=SCALE)
        given = make_parameters(Path(folder), Path(scratch))
        pool, truth = Pool(f"{folder}/pool"), read_truth(Store(folder))
        print("| recipe | changed | kept | without a planted fault |\n| --- | --- | ---: | ---: |")
        for name in shipped_recipes():
            recipe = choose(name, given)
            if recipe is None or recipe.select is None:
                continue
            if recipe.annotate:
                annotate(pool, [call.build() for call in recipe.annotate], executor=executor)
            report = select(pool, recipe.select)
            if not report.num_kept:
                continue
            ledger = pool.read_table(f"{report.folder}/ledger.parquet")
            found = compare(truth, ledger)
            sound = report.num_kept - (found.num_faulty - found.num_dropped_faulty)
            pictures = sum(status == STATUS_SUCCESS for status in ledger["status"].to_pylist())
            changed = ", ".join(CHANGES.get(name, []))
            print(
                f"| {name} | {changed} | {report.num_kept:,} of {pictures:,} | {sound / report.num_kept:.1%} |",
                flush=True,
            )


def make_parameters(demo_folder: Path, scratch: Path) -> dict[str, str]:
    """Return what recipes may ask for: the demo's filtering network, the names of its things, and entries of its captions."""
    (network,) = (demo_folder / "trusted" / "runs").iterdir()
    checkpoint = max((network / "checkpoints").glob("step_*"))
    (scratch / "names.txt").write_text("\n".join(NAMES), encoding="utf-8")
    entries = [*NAMES, *(f"{name}s" for name in NAMES), *COLOURS]
    (scratch / "entries.txt").write_text("\n".join(entries), encoding="utf-8")
    return {
        **dict.fromkeys(("model", "network"), str(checkpoint)),
        "labels": str(scratch / "names.txt"),
        "metadata": str(scratch / "entries.txt"),
    }


def choose(name: str, given: dict[str, str]) -> Recipe | None:
    """Return a recipe with its parameters, or None for the demo's own, for those that only train, and where something cannot be given."""
    recipe = load_recipe(name)
    lacking = [parameter for parameter, value in recipe.parameters.items() if value is None]
    if name.startswith("demo") or recipe.train is not None or not set(lacking) <= set(given):
        return None
    return load_recipe(name, [f"parameters.{key}={given[key]}" for key in lacking] + CHANGES.get(name, []))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
