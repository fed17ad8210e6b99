"""What a report says is what the files say; text from the web stays text; the page is bounded."""

import base64
import html
import json
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from curate.store import Pool
from pipelines.cli import app
from pipelines.report.album import Limits
from pipelines.report.facts import Facts, load_choice
from pipelines.report.gallery import draw_rules
from pipelines.report.report import ReportConfig, describe_report, report, report_command
from schemas.errors import InputError
from tests.curate.pool_builder import annotated_pool
from tests.pipelines.report.hostile_pool import (
    COLUMN,
    HOST,
    LABEL,
    SCRIPT,
    make_hostile_pool,
    select_from,
)
from tests.pool import make_pool


class Page(HTMLParser):
    """The elements of a page, and the text of its sections."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, str] = {}
        self._section = ""
        self._is_code = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag == "section":
            self._section = dict(attrs).get("id") or ""
        self._is_code = tag in {"script", "style"}
        # Cells and lines that stand apart are words of their own.
        self.texts[self._section] = self.texts.get(self._section, "") + ("" if tag == "wbr" else " ")

    def handle_endtag(self, tag: str) -> None:
        if tag == "section":
            self._section = ""
        self._is_code = False

    def handle_data(self, data: str) -> None:
        if not self._is_code:
            self.texts[self._section] = self.texts.get(self._section, "") + data

    def attributes(self, tag: str) -> list[dict[str, str]]:
        return [own for name, own in self.elements if name == tag]

    def words(self, section: str) -> str:
        return " ".join(self.texts[section].split())


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    pool = make_hostile_pool(tmp_path_factory.mktemp("report") / "pool")
    select_from(pool)
    return pool


@pytest.fixture(scope="module")
def page(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    path = tmp_path_factory.mktemp("page") / "report.html"
    report(pool, str(path))
    yield Page(path.read_text(encoding="utf-8"))


def write(pool: Pool, path: Path, config: ReportConfig | None = None) -> tuple[Page, str]:
    report(pool, str(path), config)
    text = path.read_text(encoding="utf-8")
    return Page(text), text


def test_hostile_texts_stay_texts(page: Page) -> None:
    # One script and one style, both ours; no element, handler or address came out of a caption, host, label, column, rule or message.
    assert len(page.attributes("script")) == len(page.attributes("style")) == 1
    assert not {"b", "i", "u", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in page.elements}
    handlers = {name for _, own in page.elements for name in own if name.startswith("on") or name == "style"}
    assert handlers == set()
    for text in (
        SCRIPT,
        HOST.lower(),
        LABEL,
        COLUMN,
        "HTTP Error <b>404</b>",
        "<u>xx",
        "probable <b>enough</b>",
    ):
        assert text in " ".join(page.texts.values()), text


def test_only_web_addresses_are_links_and_only_data_are_pictures(page: Page) -> None:
    links = [own["href"] for own in page.attributes("a") if not own["href"].startswith("#")]
    assert links
    assert {link.split(":")[0] for link in links} == {"https"}
    assert all(own["rel"] == "noopener noreferrer nofollow" for own in page.attributes("a") if own["href"] in links)
    assert {own["src"][:23] for own in page.attributes("img")} == {"data:image/webp;base64,"}
    assert not [own for tag, own in page.elements if tag == "link" and own["rel"] != "icon"]


def test_the_policy_lets_nothing_out(page: Page) -> None:
    (policy,) = [
        own["content"] for own in page.attributes("meta") if own.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy


def test_every_picture_is_reduced(pool: Pool, tmp_path: Path) -> None:
    page, _ = write(pool, tmp_path / "small.html", ReportConfig(limits=Limits(picture_size=40)))
    sources = {own["src"].partition(",")[2] for own in page.attributes("img")}
    assert sources
    for number, source in enumerate(sorted(sources)):
        path = tmp_path / f"{number}.webp"
        path.write_bytes(base64.b64decode(source))
        with Image.open(path) as picture:
            assert (picture.format, max(picture.size)) == ("WEBP", 40)


def test_the_funnel_is_the_selection_s(page: Page, pool: Pool) -> None:
    (folder,) = pool.list_names("selections")
    content = json.loads(pool.read_bytes(f"selections/{folder}/selection.json"))
    words = page.words("funnel")
    for row in content["funnel"]:
        share = f"{100 * row['num_remaining'] / 24:.1f}%"
        assert f"{row['num_remaining']} {share} {row['num_failing']} {row['num_first_failing']}" in words
    # The copies 4 and 6 of either shard are dropped by their rule alone.
    assert "single NOT is_near_duplicate 4 rows dropped 14 58.3% 4 4 4" in words


def test_a_threshold_is_drawn_for_every_comparison(page: Page) -> None:
    labels = [own for own in page.attributes("text") if own.get("class") == "threshold-label"]
    assert len(labels) == 3
    words = page.words("distributions")
    assert f"{LABEL}.clip_score" in words
    assert "cluster_similarity + row" in words
    assert "high: 0.04" in words


def test_galleries_show_what_their_headings_say(pool: Pool) -> None:
    (folder,) = pool.list_names("selections")
    with Facts(pool, load_choice(pool, f"selections/{folder}")) as facts:
        by_rule = {entry.rule: entry for entry in draw_rules(facts, 6)}
    assert set(by_rule) == {"probable <b>enough</b>", "high", "single", "top"}
    high = {gallery.title: gallery.positions for gallery in by_rule["high"].galleries}
    assert set(high["Dropped"]) == {0, 2}  # rows 1 and 3 have no picture
    assert high["Borderline, just dropped"] == (2, 0)  # 0.02 is nearer to 0.04 than 0.0
    assert high["Borderline, just kept by it"] == (4, 5, 6)
    assert not {0, 2} & set(high["Kept"])
    single = {gallery.title: gallery.positions for gallery in by_rule["single"].galleries}
    assert set(single["Dropped"]) == {4, 6, 16, 18}
    assert not by_rule["single"].has_threshold
    assert not {1, 3, 13, 15} & {place for entry in by_rule.values() for g in entry.galleries for place in g.positions}


def test_copies_clusters_languages_hosts_and_errors(page: Page) -> None:
    assert "2 groups of 8 rows" in page.words("copies")
    assert "3 clusters by cluster.cluster_id" in page.words("clusters")
    origin = page.words("origin")
    assert "en 12" in origin
    assert "<u>xx 8" in origin
    assert "example.org 18" in origin  # with and without www.
    health = page.words("health")
    assert "4 of 24 rows have no picture" in health
    assert "Image decoding error 50.0% 2" in health


def test_the_last_pictures_find_no_room(pool: Pool, tmp_path: Path) -> None:
    limits = Limits(num_bytes=20_000)
    summary = report(pool, str(tmp_path / "page.html"), ReportConfig(limits=limits))
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    embedded = [len(base64.b64decode(own["src"].partition(",")[2])) for own in page.attributes("img")]
    assert sum(embedded) == summary.picture_bytes <= limits.num_bytes
    assert len(embedded) == summary.num_pictures > 0
    assert summary.num_left_out > 0
    assert "the page is as large as it may be" in page.words("rules")
    assert f"{summary.num_left_out:,} more found no room" in describe_report(summary)


def test_a_bare_pool_says_what_fills_each_section(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "bare")
    page, _ = write(pool, tmp_path / "page.html")
    for section, command in {
        "funnel": "winnow select --pool",
        "rules": "winnow select --pool",
        "copies": "winnow annotate perceptual_hash exact_dedup near_dedup",
        "clusters": "winnow annotate clip_embedding:model=MODEL cluster",
        "origin": "winnow annotate language",
        "cost": "winnow annotate image_stats",
        "training": "winnow train",
        "evaluation": "winnow run RECIPE",
    }.items():
        assert command in page.words(section), section
    assert page.attributes("img")


def test_without_examples_there_are_no_pictures(pool: Pool, tmp_path: Path) -> None:
    page, text = write(pool, tmp_path / "page.html", ReportConfig(num_examples=0))
    assert not page.attributes("img")
    assert "--examples 6" in page.words("samples")
    assert len(text) < 200_000


def test_the_same_pool_gives_the_same_page(pool: Pool, tmp_path: Path) -> None:
    _, first = write(pool, tmp_path / "first.html")
    _, second = write(pool, tmp_path / "second.html")
    assert first == second


def test_an_incomplete_label_is_told(tmp_path: Path) -> None:
    pool = annotated_pool(tmp_path / "pool")
    pool.remove(pool.annotation_path("clip_score", pool.labels()["b32"].fingerprint, 1))
    page, _ = write(pool, tmp_path / "page.html")
    assert "b32 lacks 1 of 3 shards" in page.words("glance")


def test_a_pool_that_grew_is_refused(tmp_path: Path) -> None:
    pool = make_hostile_pool(tmp_path / "pool", num_shards=1)
    select_from(pool)
    make_hostile_pool(tmp_path / "pool", num_shards=2)
    with pytest.raises(InputError, match=r"made over 12 rows and .* has 24: the pool grew; run `winnow select` again"):
        report(pool, str(tmp_path / "page.html"))
    assert not (tmp_path / "page.html").exists()


def test_wrong_names_say_which_there_are(pool: Pool, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no selection 'other'; it has: mine-"):
        report(pool, str(tmp_path / "page.html"), ReportConfig(selection="other"))
    with pytest.raises(InputError, match="give a folder that `winnow build` made"):
        report(pool, str(tmp_path / "page.html"), ReportConfig(datasets=(str(tmp_path),)))
    with pytest.raises(InputError, match="give a folder that `winnow train` made"):
        report(pool, str(tmp_path / "page.html"), ReportConfig(runs=(str(tmp_path),)))
    with pytest.raises(InputError, match="num_examples is 25"):
        ReportConfig(num_examples=25)


def test_a_moved_tar_leaves_numbers(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool")
    (tmp_path / "pool" / "shards" / "00000.tar").unlink()
    page, _ = write(pool, tmp_path / "page.html")
    assert "no picture" in page.words("samples")
    assert page.attributes("img")


def test_captions_are_whole_in_the_page(page: Page) -> None:
    assert html.escape(SCRIPT) not in page.words("samples")  # escaped once, not twice
    assert SCRIPT in page.words("rules")


def test_the_command_that_a_run_names_is_quoted() -> None:
    assert report_command("pool", selection="selections/a b", run="out/runs/x") == (
        "winnow report --pool pool --selection 'selections/a b' --run out/runs/x"
    )


def test_the_command_line_writes_the_page(pool: Pool, tmp_path: Path) -> None:
    path = tmp_path / "mine.html"
    result = CliRunner().invoke(app, ["report", "--pool", pool.root, "--out", str(path), "--examples", "2", "--json"])
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary["path"] == str(path)
    assert summary["num_bytes"] == path.stat().st_size
    wrong = CliRunner().invoke(app, ["report", "--pool", str(tmp_path / "nowhere")])
    assert wrong.exit_code == 2
    assert "no shards in" in wrong.output


def test_sql_of_a_foreign_pool_reads_no_other_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("x" * 77)
    pool = make_hostile_pool(tmp_path / "pool", num_shards=1)
    path = f"{select_from(pool)}/selection.json"
    content = json.loads(pool.read_bytes(path))
    content["rules"][0][1] = f"language_probability > (SELECT length(content) FROM read_text('{secret}'))"
    content["top"]["by"] = f"(SELECT length(content) FROM read_text('{secret}')) + row"
    pool.commit_json(path, content)
    page, text = write(pool, tmp_path / "page.html")
    thresholds = [own for own in page.attributes("line") if own.get("class") == "threshold"]
    assert len(thresholds) == 1  # of the one rule that reads the pool alone
    assert "x" * 77 not in text
