"""The report in a real browser: nothing goes out, nothing complains, everything can be reached by keyboard, dark is dark."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from curate.store import Pool
from pipelines.report.report import ReportConfig, report
from tests.browser import Watched
from tests.pipelines.report.hostile_pool import make_hostile_pool, select_from

if TYPE_CHECKING:
    from playwright.sync_api import Page

Open = Callable[..., Watched]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("page")
    pool = make_hostile_pool(root / "pool")
    select_from(pool)
    runs = []
    for name in ("raw", "curated"):
        run = root / "runs" / name
        run.mkdir(parents=True)
        points = [{"step": n, "samples_seen": 32 * n, "loss": 3.0 / n} for n in range(1, 9)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points), encoding="utf-8")
        (run / "evaluation.json").write_text(json.dumps({"results": {"scenes": {"acc1": 0.5}}}), encoding="utf-8")
        runs.append(str(run))
    report(Pool(pool.root), str(root / "report.html"), ReportConfig(runs=tuple(runs)))
    return Path(root / "report.html").as_uri()


def dialog_is_open(page: "Page") -> bool:
    return bool(page.evaluate("document.getElementById('viewer').open"))


def background(page: "Page") -> tuple[int, ...]:
    text = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return tuple(int(part) for part in text.removeprefix("rgb(").removesuffix(")").split(","))


def test_nothing_goes_out_and_nothing_complains(open_page: Open, address: str) -> None:
    seen = open_page(address)
    seen.page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    seen.page.evaluate("document.querySelectorAll('img').forEach((each) => { each.loading = 'eager'; })")
    seen.page.wait_for_function(
        "[...document.images].length > 0 && [...document.images].every((each) => each.naturalWidth > 0)"
    )
    assert seen.problems == []
    assert seen.requests == [address]


def test_the_policy_stops_what_would_go_out(open_page: Open, address: str) -> None:
    seen = open_page(address)
    outcome = seen.page.evaluate(
        "() => new Promise((tell) => { const image = new Image(); image.onerror = () => tell('refused'); "
        "image.onload = () => tell('loaded'); image.src = 'http://127.0.0.1:9/x.png'; })"
    )
    assert outcome == "refused"
    assert any("Content Security Policy" in problem for problem in seen.problems)
    assert (
        seen.page.evaluate(
            "() => { document.body.setAttribute('onclick', 'window.broken = 1'); document.body.click(); return window.broken; }"
        )
        is None
    )


def test_a_click_opens_a_picture_with_its_row(open_page: Open, address: str) -> None:
    page = open_page(address).page
    frames = page.locator("#samples button.frame")
    frames.nth(1).click()
    assert dialog_is_open(page)
    viewer = page.locator("#viewer")
    assert viewer.locator("img").get_attribute("src") == frames.nth(1).locator("img").get_attribute("src")
    names = viewer.locator("dt").all_text_contents()
    assert {"uid", "URL", "original size"} <= set(names)
    assert "cluster_similarity + row" in names
    assert len(names) == len(set(names))
    assert viewer.locator("[data-place]").inner_text().startswith("2 of ")
    viewer.locator('[data-do="after"]').click()
    assert viewer.locator("[data-place]").inner_text().startswith("3 of ")
    viewer.locator('[data-do="close"]').click()
    assert not dialog_is_open(page)


def test_everything_by_keyboard(open_page: Open, address: str) -> None:
    page = open_page(address).page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    box = page.locator(".skip").bounding_box()
    assert box is not None
    assert box["y"] >= 0  # it shows itself where it has the focus
    page.keyboard.press("Enter")
    assert page.url.endswith("#main")
    frame = page.locator("#samples button.frame").first
    frame.focus()
    assert frame.evaluate("(each) => getComputedStyle(each).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    assert dialog_is_open(page)
    page.keyboard.press("ArrowRight")
    assert page.locator("#viewer [data-place]").inner_text().startswith("2 of ")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    place, _, total = page.locator("#viewer [data-place]").inner_text().partition(" of ")
    assert place == total
    page.keyboard.press("Escape")
    assert not dialog_is_open(page)
    # The focus is where the reader was.
    assert page.evaluate("document.activeElement.className") == "frame"
    rule = page.locator("details.rule").nth(1)
    rule.locator("summary").focus()
    page.keyboard.press("Enter")
    assert rule.evaluate("(each) => each.open")


def test_filters_show_one_kind(open_page: Open, address: str) -> None:
    page = open_page(address).page
    rule = page.locator("details.rule").first
    rule.locator('[data-filter="near"]').click()
    assert rule.locator("[data-kind]:visible").count() == 2
    assert set(rule.locator("[data-kind]:visible").evaluate_all("(all) => all.map((each) => each.dataset.kind)")) == {
        "near"
    }
    assert rule.locator('[data-filter="near"]').get_attribute("aria-pressed") == "true"
    rule.locator('[data-filter=""]').click()
    assert rule.locator("[data-kind]:visible").count() == 5
    page.locator("[data-open]").click()
    assert page.locator("#rules details:not([open])").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible(open_page: Open, address: str, scheme: str) -> None:
    page = open_page(address, color_scheme=scheme).page
    assert (sum(background(page)) < 120) == (scheme == "dark")
    # The contrast of every kind of text that there is, by WCAG's formula.
    lowest = page.evaluate(
        """() => {
          const parse = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
          const channel = (value) => { const c = value / 255; return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
          const light = (rgb) => { const [r, g, b] = rgb.map(channel); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
          const ground = (node) => {
            for (let each = node; each; each = each.parentElement) {
              const colour = getComputedStyle(each).backgroundColor;
              if (!colour.startsWith("rgba(0, 0, 0, 0")) return parse(colour);
            }
            return [255, 255, 255];
          };
          const found = [...document.querySelectorAll("main *, nav a, footer p")]
            .filter((node) => [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim()))
            .filter((node) => node.tagName !== "title" && (node.offsetParent || node.ownerSVGElement))
            .map((node) => {
              const style = getComputedStyle(node);
              const [a, b] = [light(parse(node.ownerSVGElement ? style.fill : style.color)), light(ground(node))];
              return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), `${node.tagName}.${node.getAttribute("class")}`];
            });
          return found.sort((a, b) => a[0] - b[0])[0];
        }"""
    )
    assert lowest[0] >= 4.5, lowest


@pytest.mark.parametrize("width", [320, 390, 768, 1440])
def test_the_page_never_scrolls_sideways(open_page: Open, address: str, width: int) -> None:
    page = open_page(address, viewport={"width": width, "height": 800}).page
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_it_prints(open_page: Open, address: str, tmp_path: Path) -> None:
    page = open_page(address).page
    page.emulate_media(media="print")
    assert not page.locator("nav.contents").is_visible()
    assert background(page) == (255, 255, 255)
    page.pdf(path=tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
