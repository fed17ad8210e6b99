"""robots.txt and X-Robots-Tag."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.fetch.robots import MAX_BYTES, Rules, is_opted_out, parse_robots

DIRECTIVES = frozenset(["noai", "noimageai", "noml", "noindex", "noimageindex"])


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], False),
        (["noai"], True),
        (["NoImageAI"], True),
        (["nofollow, noindex"], True),
        (["nofollow", "noml"], True),
        (["nofollow"], False),
        (["none"], False),
        (["otherbot: noai"], False),
        (["winnow: noai"], True),
        (["Winnow: nofollow, NOAI"], True),
        (["otherbot: noai, winnow: noindex"], True),
        (["otherbot: noai, noindex"], False),
        (["*: noai"], True),
        (["unavailable_after: 25 Jun 2030 15:00:00 PST, noai"], True),
        (["max-image-preview:none, noimageindex"], True),
    ],
)
def test_opt_out_headers(headers: list[str], expected: bool) -> None:
    assert is_opted_out(headers, "winnow", DIRECTIVES) is expected


def test_rules_follow_rfc_9309() -> None:
    body = b"\xef\xbb\xbfUser-agent: *\nDisallow: /\n\nUser-Agent: WINNOW\nDisallow: /private/*.jpg$\nAllow: /private/ok.jpg\nCrawl-delay: 2.5\n"
    rules = parse_robots(body, "winnow")
    assert rules.allows("http://a.org/x.jpg")
    assert not rules.allows("http://a.org/private/x.jpg")
    assert rules.allows("http://a.org/private/x.jpg?y")
    assert rules.allows("http://a.org/private/ok.jpg")
    assert rules.crawl_delay == 2.5
    assert not parse_robots(body, "otherbot").allows("http://a.org/x.jpg")
    assert Rules("winnow", None).allows("http://a.org/x")
    assert Rules("winnow", None).crawl_delay == 0


def test_hostile_files_are_read_quickly() -> None:
    start = time.monotonic()
    wild = parse_robots(b"User-agent: *\nDisallow: /" + b"*a" * 2000 + b"*b$\n", "winnow")
    assert wild.allows("http://a.org/" + "a" * 5000)
    parse_robots(b"Disallow: /x\n" * 100_000, "winnow")
    assert time.monotonic() - start < 10


def test_only_the_first_500_kib_count() -> None:
    body = b"User-agent: *\nDisallow: /a\n" + b"#" * MAX_BYTES + b"\nDisallow: /b\n"
    rules = parse_robots(body, "winnow")
    assert not rules.allows("http://a.org/a")
    assert rules.allows("http://a.org/b")


@given(st.binary(max_size=300))
def test_any_bytes_are_a_robots_txt(body: bytes) -> None:
    rules = parse_robots(b"User-agent: *\n" + body, "winnow")
    assert rules.allows("http://a.org/x") in {True, False}
    assert rules.crawl_delay >= 0
