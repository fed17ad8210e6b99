"""A headless Chromium for tests of pages: `chromium` starts it once a module, `open_page` opens a page that records what goes wrong.

`tests/conftest.py` brings them to every test.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@dataclass
class Watched:
    """A page and what it did: messages of its console, errors, and the address of every request that was not a `data:` URL."""

    page: "Page"
    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def chromium() -> Iterator["Browser"]:
    """Debian's or any other Chromium on the path; the test is skipped where there is none.

    Ends with its module: while it is up its thread has a running event loop, beside which nobody else's `asyncio.run` works.
    """
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no chromium on the path (Debian: apt-get install chromium)")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (it is in winnow[dev])")
    with sync_api.sync_playwright() as playwright:
        # Its sandbox needs what containers and root do not give; the pages are the tests' own.
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: "Browser") -> Iterator[Callable[..., Watched]]:
    """Return `open_page(url, **settings)`: settings are those of a browser context, like `color_scheme="dark"`."""
    contexts = []

    def open_at(url: str, **settings: Any) -> Watched:
        context = chromium.new_context(**settings)
        contexts.append(context)
        page = context.new_page()
        watched = Watched(page)
        page.on(
            "console",
            lambda message: watched.problems.append(message.text) if message.type in ("error", "warning") else None,
        )
        page.on("pageerror", lambda error: watched.problems.append(str(error)))
        page.on(
            "request",
            lambda request: watched.requests.append(request.url) if not request.url.startswith("data:") else None,
        )
        page.goto(url)
        return watched

    yield open_at
    for context in contexts:
        context.close()
