"""The page in a real Chromium: clicks, keys, sliders, errors, decisions, dark mode, and texts that would like to be code."""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from curate.catalog import Catalog
from curate.select import Selection, select
from curate.store import Pool
from pipelines.browse.query import Query
from tests.browser import Watched
from tests.curate.pool_builder import SCORE, annotate_shard, annotated_pool
from tests.pipelines.browse.serving import Served, serve
from tests.pool import Row, make_rows, write_shard

ATTACKS = (
    '<img src=x onerror="window.hacked=1">',
    "<script>window.hacked=1</script>",
    '"><svg onload=window.hacked=1>',
    "javascript:window.hacked=1",
    "</textarea></button><iframe srcdoc='<script>parent.hacked=1</script>'>",
    "{{7*7}} ${7*7}",
    "\u202eabc\u2028\x00",
)
OpenPage = Callable[..., Watched]


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    """Three shards of twelve, then one whose captions and URLs are attacks."""
    made = annotated_pool(tmp_path / "pool")
    image = make_rows(1)[0].image
    rows = [Row(url=f"javascript:window.hacked=1//{n}", caption=text, image=image) for n, text in enumerate(ATTACKS)]
    write_shard(made, 3, rows, shard_size=len(rows))
    annotate_shard(made, 3, "b32", {"clip_score": [None] * len(rows)}, SCORE)
    select(
        made, Selection(name="mine", rules={"score": "b32.clip_score > 0.05", "<b>bold</b>": "b32.clip_score < 2.05"})
    )
    return made


@pytest.fixture
def served(pool: Pool) -> Iterator[Served]:
    with serve(pool) as found:
        yield found


def wait(page: Any) -> None:
    """Wait until the grid shows what was asked for."""
    page.wait_for_selector('#grid[aria-busy="false"]', state="attached")


def until(page: Any, condition: str, seconds: float = 30) -> None:
    """Wait until a condition holds; the page's policy forbids the way in which Playwright does that by itself."""
    deadline = time.monotonic() + seconds
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, f"still not: {condition}"
        page.wait_for_timeout(30)


def open_at(open_page: OpenPage, served: Served, query: str = "", **settings: Any) -> Watched:
    watched = open_page(f"{served.url}{query}", **settings)
    wait(watched.page)
    return watched


def found(page: Any) -> int:
    return int(page.inner_text("#found").replace(",", ""))


def expect_count(page: Any, count: int) -> None:
    until(page, f"document.getElementById('found').textContent === '{count}'")


def current(page: Any) -> str:
    return str(page.get_attribute(".picture.current", "data-uid"))


def test_pictures_are_shown_and_nothing_goes_elsewhere(open_page: OpenPage, served: Served) -> None:
    watched = open_at(open_page, served)
    page = watched.page
    assert found(page) == 43
    assert page.locator("#grid li").count() == 43
    until(page, "[...document.querySelectorAll('#grid img')].filter(i => i.complete && i.naturalWidth).length > 5")
    assert page.locator("#grid .missing").first.inner_text() == "HTTP Error 404: Not Found"
    assert all(url.startswith(served.base) for url in watched.requests)
    # The token is gone from the address, and so from what is copied and from the history.
    assert "token" not in page.url
    assert watched.problems == []


def test_texts_are_texts(open_page: OpenPage, served: Served) -> None:
    watched = open_at(open_page, served, "&selection=mine&filter=shard = 3")
    page = watched.page
    assert page.locator("#grid .caption").all_inner_texts()[:2] == list(ATTACKS[:2])
    for number in range(len(ATTACKS)):
        page.locator("#grid .frame").nth(number).click()
        page.wait_for_selector("#facts table")
    assert page.locator("#outcomes").inner_text().count("<b>bold</b>") == 1
    assert page.evaluate("window.hacked") is None
    assert page.locator("iframe, #grid script, #panel script, #panel a, #outcomes b").count() == 0
    assert watched.problems == []


def test_a_filter_is_applied_and_its_errors_are_told(open_page: OpenPage, served: Served) -> None:
    watched = open_at(open_page, served)
    page = watched.page
    page.keyboard.press("/")
    page.keyboard.type("caption_num_words > 5")
    page.keyboard.press("Enter")
    expect_count(page, 18)
    assert "filter=caption_num_words" in page.url
    assert watched.problems == []
    page.fill("#filter", "clip_scor > 1")
    page.click("text=Apply")
    page.wait_for_selector("#filter-error:not([hidden])")
    assert "did you mean clip_score or b32.clip_score?" in page.inner_text("#filter-error")
    assert page.locator("#grid li").count() == 0
    assert "Traceback" not in page.content()
    page.click("#clear-filter")
    expect_count(page, 43)
    assert page.is_hidden("#filter-error")
    page.go_back()
    page.go_back()
    expect_count(page, 18)
    # Chromium itself notes the two refused requests.
    assert [text for text in watched.problems if "400" not in text] == []


def test_a_slider_counts_while_it_moves(open_page: OpenPage, served: Served) -> None:
    watched = open_at(open_page, served, "&filter=caption_num_words < 6")
    page = watched.page
    page.select_option("#add-slider", "b32.clip_score")
    slider = page.locator('[data-column="b32.clip_score"] input.low')
    page.wait_for_selector('[data-column="b32.clip_score"] rect')
    slider.focus()
    slider.evaluate("node => { node.value = 500; node.dispatchEvent(new Event('input')) }")
    low = page.input_value('[data-column="b32.clip_score"] input.field >> nth=0')
    expected = served.view.count(
        Query.parse({"filter": ["caption_num_words < 6"], "range": [f"b32.clip_score:{low}.."]})
    ).found
    assert 0 < expected < 18
    expect_count(page, expected)
    assert page.locator("#grid li").count() == 18  # pictures wait until it is let go
    slider.dispatch_event("change")
    until(page, f"document.querySelectorAll('#grid li').length === {expected}")
    assert "range=b32.clip_score" in page.url
    page.click("text=As a rule of a selection")
    assert f"b32.clip_score >= {low}" in page.inner_text("#rule")
    page.fill('[data-column="b32.clip_score"] input.field >> nth=1', "1.02")
    page.keyboard.press("Tab")
    until(page, "document.querySelectorAll('#grid li').length < 6")
    page.click('[aria-label="remove the threshold of b32.clip_score"]')
    expect_count(page, 18)
    assert watched.problems == []


def test_keys_move_and_decide(open_page: OpenPage, served: Served, pool: Pool) -> None:
    watched = open_at(open_page, served)
    page = watched.page
    uids = [str(card.get_attribute("data-uid")) for card in page.locator("#grid li").all()]
    assert current(page) == uids[0]
    for key, place in (("j", 1), ("ArrowRight", 2), ("i", 1), ("ArrowLeft", 0), ("ArrowLeft", 0)):
        page.keyboard.press(key)
        assert current(page) == uids[place]
    per_row = page.evaluate(
        "[...document.querySelectorAll('#grid li')].filter((n, _, all) => n.offsetTop === all[0].offsetTop).length"
    )
    page.keyboard.press("ArrowDown")
    assert current(page) == uids[per_row]
    page.keyboard.press("ArrowUp")
    page.keyboard.press("k")
    page.keyboard.press("d")
    page.keyboard.press("f")
    page.keyboard.press("f")
    assert current(page) == uids[4]
    page.keyboard.press("i")
    page.keyboard.press("u")
    until(page, "document.querySelectorAll('#grid .badge').length === 3")
    expected = {uids[0]: "keep", uids[1]: "drop", uids[2]: "flag"}
    until(page, "document.getElementById('decisions').innerText.replace(/\\s+/g, ' ').includes('undecided 40')")
    page.reload()
    wait(page)
    assert page.locator("#grid .badge").all_inner_texts() == ["keep", "drop", "flag"]
    assert watched.problems == []
    served.view.publish()
    with Catalog(pool) as catalog:
        rows = catalog.sql("SELECT uid, manual.decision FROM pool WHERE manual.decision IS NOT NULL").fetchall()
    assert dict(rows) == expected


def test_typing_is_not_deciding(open_page: OpenPage, served: Served) -> None:
    page = open_at(open_page, served).page
    page.click("#filter")
    page.keyboard.type("kdfujnp")
    assert page.input_value("#filter") == "kdfujnp"
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert page.is_visible("#help")
    page.keyboard.press("k")
    page.keyboard.press("Escape")
    assert page.is_hidden("#help")
    assert served.view.count(Query()).decisions["none"] == 43
    assert "keep" in page.inner_text("footer.keys")


def test_one_sample_in_full(open_page: OpenPage, served: Served) -> None:
    watched = open_at(open_page, served, "&selection=mine&outcome=dropped&sort=b32.clip_score")
    page = watched.page
    page.keyboard.press("Enter")
    page.wait_for_selector("#facts table")
    text = page.inner_text("#panel")
    assert "failed first" in text
    assert "b32.clip_score > 0.05" in text
    assert page.locator(".caption-box h4").all_inner_texts() == ["alt_text", "recap.recaption"]
    uid = current(page)
    assert f"sample={uid}" in page.url
    page.click("#panel .decide.flag")
    page.wait_for_selector('#panel .decide.flag[aria-pressed="true"]')
    # The page shows a decision before the server has it.
    until(page, "document.getElementById('decisions').innerText.replace(/\\s+/g, ' ').includes('flag 1')")
    assert served.view.decision(served.view.locate(uid)) == "flag"
    page.keyboard.press("j")
    until(page, f"!location.search.includes('{uid}')")
    until(
        page,
        "document.querySelectorAll('.caption-box').length === 3 && document.querySelector('#facts table') !== null",
    )
    assert page.locator(".caption-box h4").all_inner_texts() == ["alt_text", "recap.recaption", "recap.rewrite"]
    page.keyboard.press("Escape")
    assert page.is_hidden("#panel")
    assert watched.problems == []


def test_an_address_shows_the_same(open_page: OpenPage, served: Served) -> None:
    page = open_at(
        open_page,
        served,
        "&filter=caption_num_words > 2&range=b32.clip_score:1..&sort=-b32.clip_score&selection=mine&outcome=kept",
    ).page
    first, count = current(page), found(page)
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.wait_for_selector("#facts table")
    address = page.url.partition("?")[2]
    other = open_at(open_page, served, f"&{address}").page
    other.wait_for_selector("#facts table")
    assert (found(other), other.locator("#grid li").first.get_attribute("data-uid")) == (count, first)
    assert current(other) == current(page) != first
    assert other.input_value("#filter") == "caption_num_words > 2"
    assert other.input_value("#sort") == "b32.clip_score"
    assert re.match(r"mine-[0-9a-f]{12}", other.input_value("#selection"))


def test_facets_narrow_down(open_page: OpenPage, served: Served) -> None:
    watched = open_at(open_page, served)
    page = watched.page
    page.select_option("#selection", index=1)
    page.wait_for_selector("#outcomes .facet")
    page.click("#outcomes .facet >> text=kept")
    until(page, "location.search.includes('outcome=kept')")
    wait(page)
    until(page, "[...document.querySelectorAll('#grid .badge')].every(n => n.textContent === 'kept')")
    page.click("#decisions .facet >> text=undecided")
    until(page, "location.search.includes('decision=none')")
    wait(page)
    page.click("#decisions .facet >> text=flag")
    expect_count(page, 0)
    assert "loosen a threshold" in page.inner_text("#empty")
    assert watched.problems == []


def test_light_dark_and_narrow(open_page: OpenPage, served: Served) -> None:
    def colours(page: Any) -> tuple[str, str]:
        script = "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        paper, ink = page.evaluate(script)
        return paper, ink

    light = open_at(open_page, served, color_scheme="light").page
    dark = open_at(open_page, served, color_scheme="dark").page
    assert brightness(colours(light)[0]) > 200 > 100 > brightness(colours(dark)[0])
    assert brightness(colours(light)[1]) < 100 < 200 < brightness(colours(dark)[1])
    narrow = open_at(open_page, served, viewport={"width": 390, "height": 800}).page
    assert narrow.evaluate("document.documentElement.scrollWidth") <= 390
    narrow.locator("#grid .frame").first.click()
    narrow.wait_for_selector("#facts table")
    assert narrow.evaluate("document.documentElement.scrollWidth") <= 390


def brightness(colour: str) -> float:
    red, green, blue = map(int, re.findall(r"\d+", colour)[:3])
    return 0.3 * red + 0.6 * green + 0.1 * blue


def test_a_server_that_is_gone_is_told(open_page: OpenPage, pool: Pool) -> None:
    with serve(pool) as served:
        page = open_at(open_page, served).page
    page.keyboard.press("k")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("d")  # the same picture, while the first may still be under way
    page.wait_for_selector("#problem:not([hidden])")
    assert "is `winnow browse` still running?" in page.inner_text("#problem")
    until(
        page, "document.querySelectorAll('#grid .badge').length === 0"
    )  # what was not stored is not shown as if it were
