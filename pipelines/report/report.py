"""Makes the report: sums by SQL, a bounded number of pictures, and one HTML file that needs nothing else."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from curate.store import Pool, Store
from pipelines.page import words
from pipelines.page.chart import bar
from pipelines.page.template import inline, make_environment, offline_policy, theme
from pipelines.report.album import Album, Limits, load_album
from pipelines.report.clusters import Clusters, draw_clusters
from pipelines.report.composition import count_hosts, count_languages, measure_health
from pipelines.report.copies import CopyGroups, find_copies
from pipelines.report.cost import measure_cost
from pipelines.report.distribution import draw_distributions
from pipelines.report.facts import NUM_SHARDS, Choice, Facts, load_choice
from pipelines.report.funnel import make_funnel
from pipelines.report.gallery import Gallery, RuleGalleries, draw_overall, draw_rules
from pipelines.report.training import read_training
from pipelines.why import find_selections
from schemas.errors import InputError

_FOLDER = Path(__file__).parent / "templates"


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """What a report shows, and how much of it."""

    selection: str = ""  # name or folder; empty: the pool's only one
    datasets: tuple[str, ...] = ()  # folders
    runs: tuple[str, ...] = ()  # folders
    num_examples: int = 6  # pictures in a row of a gallery; 0: no pictures
    limits: Limits = field(default_factory=Limits)
    memory_limit: str = "2GB"  # of DuckDB, which moves to disk what is beyond
    date: str = ""  # shown at the foot

    def __post_init__(self) -> None:
        if not 0 <= self.num_examples <= 24:
            raise InputError(f"num_examples is {self.num_examples}; give 0 to 24 pictures in a row")


@dataclass(frozen=True, kw_only=True)
class ReportSummary:
    """The page that was written."""

    path: str
    num_bytes: int
    num_pictures: int
    picture_bytes: int
    num_left_out: int  # pictures for which the limit left no room


@dataclass(frozen=True, kw_only=True)
class _Pictures:
    """Everything in the report that has pictures."""

    overall: Sequence[Gallery]
    rules: Sequence[RuleGalleries]
    copies: Sequence[CopyGroups]
    clusters: Clusters | None

    def positions(self) -> list[int]:
        """Return the rows shown; where space runs out, the last ones lose their pictures."""
        found = [position for gallery in self.overall for position in gallery.positions]
        found += [position for rule in self.rules for gallery in rule.galleries for position in gallery.positions]
        found += [position for column in self.copies for group in column.groups for position in group.positions]
        for view in self.clusters.views if self.clusters else ():
            found += [*view.before, *view.after]
        return found


def report(pool: Pool, out: str, config: ReportConfig | None = None) -> ReportSummary:
    """Write the report of a pool to the file `out`. Memory is bounded by `memory_limit` and the page, whatever the pool's size.

    Raises InputError where a selection, dataset or run is not there, or the selection is of another state of the pool.
    """
    config = config or ReportConfig()
    training = read_training(config.datasets, config.runs)
    with Facts(pool, _choose(pool, config.selection), memory_limit=config.memory_limit) as facts:
        pictures = _choose_pictures(facts, config.num_examples)
        album = load_album(facts, pictures.positions(), config.limits)
        content: dict[str, Any] = {
            "pool": pool.root,
            "choice": facts.choice,
            "num_rows": facts.num_rows,
            "num_shards": len(facts.catalog.shards),
            "num_drawn_shards": NUM_SHARDS,
            "num_labels": len(facts.catalog.label_columns),
            "funnel": make_funnel(facts),
            "distributions": draw_distributions(facts),
            "pictures": pictures,
            "languages": count_languages(facts),
            "hosts": count_hosts(facts),
            "health": measure_health(facts),
            "cost": measure_cost(facts),
            "training": training,
            "measures": {each.column: each.title for each in facts.measures},
            "notes": facts.notes,
            "num_undrawn": facts.num_undrawn,
        }
    return _write(out, content, album, config)


def _choose(pool: Pool, selection: str) -> Choice | None:
    pool.require_shards()
    folders = find_selections(pool, selection)
    if len(folders) > 1:
        names = ", ".join(folder.rpartition("/")[2] for folder in folders)
        raise InputError(f"{pool.root} has several selections; choose one with --selection: {names}")
    return load_choice(pool, folders[0]) if folders else None


def _choose_pictures(facts: Facts, num_examples: int) -> _Pictures:
    if not num_examples:
        return _Pictures(overall=(), rules=(), copies=(), clusters=None)
    return _Pictures(
        overall=draw_overall(facts, 2 * num_examples),
        rules=draw_rules(facts, num_examples),
        copies=find_copies(facts, num_examples),
        clusters=draw_clusters(facts, num_examples),
    )


def _write(out: str, content: dict[str, Any], album: Album, config: ReportConfig) -> ReportSummary:
    style = theme() + inline((_FOLDER / "report.css").read_text(encoding="utf-8"))
    script = inline((_FOLDER / "report.js").read_text(encoding="utf-8"))
    environment = make_environment(_FOLDER)
    environment.globals |= {"bar": bar}
    page = environment.get_template("report.html").render(
        **content,
        album=album,
        limits=config.limits,
        date=config.date,
        num_examples=config.num_examples,
        policy=offline_policy(scripts=[script], styles=[style]),
        style=style,
        script=script,
    )
    # Captions come from anywhere; what no UTF-8 can hold becomes a question mark instead of an error.
    data = page.encode("utf-8", "replace")
    path = Path(out)
    Store(path.parent).commit_bytes(path.name, data)
    return ReportSummary(
        path=out,
        num_bytes=len(data),
        num_pictures=album.num_pictures,
        picture_bytes=album.num_bytes,
        num_left_out=album.num_left_out,
    )


def report_command(pool: str, *, selection: str = "", dataset: str = "", run: str = "") -> str:
    """Return the command line that makes the report of what a recipe left; empty where it has no such stage."""
    parts = ["winnow", "report", "--pool", pool]
    for flag, value in (("--selection", selection), ("--dataset", dataset), ("--run", run)):
        parts += [flag, value] if value else []
    return shlex.join(parts)


def describe_report(summary: ReportSummary) -> str:
    """Return what was written, in a line."""
    left_out = f"; {summary.num_left_out:,} more found no room" if summary.num_left_out else ""
    return (
        f"{summary.path}: {words.size(summary.num_bytes)} with {summary.num_pictures:,} pictures "
        f"({words.size(summary.picture_bytes)}){left_out}"
    )
