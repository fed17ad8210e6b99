"""The demo's report as tables for people."""

from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from pipelines.demo.demo import DemoReport
from pipelines.render import tabulate_funnel

if TYPE_CHECKING:
    from pipelines.demo.text_report import TextModelReport

_MODELS = ("raw", "curated", "trusted")
_CHANCE = "chance_"
# What each evaluation set is shown by; report.json has the rest.
_SHOWN = (
    ("scenes", "text_to_image_recall@1"),
    ("scenes", "text_to_image_recall@5"),
    ("scenes", "text_to_image_recall@10"),
    ("scenes", "image_to_text_recall@1"),
    ("scenes", "image_to_text_recall@5"),
    ("scenes", "image_to_text_recall@10"),
    ("colours_objects", "acc1"),
    ("colours_objects", "acc5"),
)


def tabulate_demo(report: DemoReport) -> RenderableType:
    """Return the funnel, precision and recall per fault and per rule, and the evaluations side by side."""
    found = report.comparison
    total = sum(report.seconds.values())
    return Group(
        "\nThe funnel: what each rule left of the miniature web",
        tabulate_funnel(report.selection),
        "\nThe planted faults: what was found of each, and by which rules",
        _tabulate_faults(report),
        "\nThe rules: how many of the rows that each was the first to drop are faulty",
        _tabulate_rules(report),
        f"of all {found.num_dropped:,} dropped rows {found.precision:.1%} are faulty (precision); of all {found.num_faulty:,} faulty rows "
        f"{found.recall:.1%} are dropped (recall); of the kept rows {found.kept_purity:.1%} are sound, "
        f"of the whole list {1 - found.num_faulty / found.num_rows:.1%} were",
        "\nMismatched captions: what dropping the pairs of the lowest score does to them",
        _tabulate_mismatches(report),
        "\nThe models on held-back scenes, trained on as many samples each",
        _tabulate_evaluation(report),
        f"\n{total:,.0f} s: " + ", ".join(f"{part} {seconds:,.0f} s" for part, seconds in report.seconds.items()),
        f"all of it as a page: {report.page_file}",
        f"examples: {report.sheet_file}",
        f"mismatched captions by score: {report.curve_file}",
        report.report_file,
    )


def tabulate_text_models(report: "TextModelReport") -> RenderableType:
    """Return what the captioner and the rewriter get right, and some of what they say."""
    found = report.captions
    accuracy = _table("of captions of unseen scenes", right=("right",))
    for kind in ("objects", "colours", "pairs", "counts", "relations"):
        accuracy.add_row(kind, f"{getattr(found, kind):.1%}")
    accuracy.add_section()
    accuracy.add_row(f"of {report.num_rewrites:,} rewrites: taken", f"{report.taken_rewrites:.1%}")
    accuracy.add_row("the same in other words", f"{report.faithful_rewrites:.1%}")
    captions = _table("a true caption", "the captioner's")
    rewrites = _table("a caption", "its rewrite")
    for table, examples in ((captions, report.caption_examples), (rewrites, report.rewrite_examples)):
        for given, made in examples:
            table.add_row(given, made or "(none was taken)")
    return Group(accuracy, captions, rewrites)


def _tabulate_faults(report: DemoReport) -> Table:
    table = _table("planted", right=("rows", "dropped", "recall"))
    table.add_column("lost by mistake", justify="right")
    table.add_column("first dropped by")
    for row in report.comparison.faults:
        share = f"{row.dropped_share:.1%}"
        rules = ", ".join(f"{rule} {count:,}" for rule, count in row.dropped_by.items())
        shares = (share, "") if row.is_fault else ("", share)
        if not row.is_fault and report.comparison.faults[report.comparison.faults.index(row) - 1].is_fault:
            table.add_section()
        table.add_row(row.kind, f"{row.num_rows:,}", f"{row.num_dropped:,}", *shares, rules)
    return table


def _tabulate_rules(report: DemoReport) -> Table:
    table = _table("rule", right=("dropped", "faulty", "precision"))
    for row in report.comparison.rules:
        table.add_row(row.rule, f"{row.num_dropped:,}", f"{row.num_faulty:,}", f"{row.precision:.1%}")
    return table


def _tabulate_mismatches(report: DemoReport) -> Table:
    table = _table(right=("dropped", "precision", "recall"))
    for point in report.mismatches[1:13:2]:
        table.add_row(f"{point.dropped_share:.0%}", f"{point.precision:.1%}", f"{point.recall:.1%}")
    return table


def _tabulate_evaluation(report: DemoReport) -> Table:
    table = _table("evaluation set", "metric", right=(*_MODELS, "chance"))
    for data, metric in _SHOWN:
        scores = [report.evaluation[model][data][metric] for model in _MODELS]
        chance = report.evaluation["raw"][data][f"{_CHANCE}{metric}"]
        table.add_row(data, metric, *(f"{score:.1%}" for score in (*scores, chance)))
    table.add_section()
    table.add_row("", "pairs to train on", *(f"{report.num_samples[model]:,}" for model in _MODELS), "")
    table.add_row("", "samples seen", *(f"{report.samples_seen[model]:,}" for model in _MODELS), "")
    return table


def _table(*left: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in left:
        table.add_column(name)
    for name in right:
        table.add_column(name, justify="right")
    return table
