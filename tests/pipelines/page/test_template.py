"""Templates escape, URLs are checked, and the policy names exactly the inline texts."""

import base64
import hashlib
from pathlib import Path

import pytest
from jinja2 import UndefinedError

from pipelines.page.template import breakable, inline, make_environment, offline_policy, theme, web_url

HOSTILE = "\"><script>alert(1)</script>'"


@pytest.mark.parametrize("name", ["page.html", "page.txt", "page.svg"])
def test_values_are_escaped_in_every_template(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('<a title="{{ text }}">{{ text }}</a>', encoding="utf-8")
    shown = make_environment(tmp_path).get_template(name).render(text=HOSTILE)
    escaped = "&#34;&gt;&lt;script&gt;alert(1)&lt;/script&gt;&#39;"
    assert shown == f'<a title="{escaped}">{escaped}</a>'


def test_a_name_that_is_not_there_raises(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("{{ typo }}", encoding="utf-8")
    with pytest.raises(UndefinedError, match="typo"):
        make_environment(tmp_path).get_template("page.html").render()


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)",
        "JaVaScRiPt:alert(1)",
        " javascript:alert(1)",
        "java\nscript:alert(1)",
        "data:text/html,<script>alert(1)</script>",
        "vbscript:x",
        "file:///etc/passwd",
        "//example.org/a.jpg",
        "https://example.org/a b.jpg",
        "https://example.org/\n.jpg",
        "http:/example.org",
        "",
        None,
    ],
)
def test_only_web_addresses_become_links(url: str | None) -> None:
    assert web_url(url) == ""


@pytest.mark.parametrize("url", ["https://example.org/a.jpg?b=1&c=%22", "HTTP://example.org/", " http://example.org/ "])
def test_web_addresses_stay(url: str) -> None:
    assert web_url(url) == url.strip()


def test_names_break_after_dots_and_underscores() -> None:
    assert breakable("a_b.c") == "a_<wbr>b.<wbr>c"
    assert breakable("<b>_&") == "&lt;b&gt;_<wbr>&amp;"


def test_the_policy_forbids_the_network_and_names_inline_texts() -> None:
    policy = offline_policy(scripts=["let a = 1;"], styles=["a { color: red; }"])
    digest = base64.b64encode(hashlib.sha256(b"let a = 1;").digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "script-src 'none'" in offline_policy()
    assert "unsafe" not in policy


def test_inline_texts_cannot_close_their_element() -> None:
    with pytest.raises(AssertionError, match="must not hold"):
        inline("let a = '</script>';")


def test_the_theme_knows_dark_and_print_and_names_no_address() -> None:
    assert "prefers-color-scheme: dark" in theme()
    assert "@media print" in theme()
    assert "url(" not in theme()
    assert "@import" not in theme()
