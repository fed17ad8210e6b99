"""URLs as they are sent, and addresses that may not be fetched."""

import asyncio
import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.fetch.addresses import DnsCache, Resolver, check_addresses, check_literal, is_public, parse_url
from curate.fetch.errors import PermanentError, TemporaryError


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("http://a.org", "http://a.org/"),
        (" http://A.org:80/x#part ", "http://a.org/x"),
        ("https://a.org:8443/x?q=1&r=a+b", "https://a.org:8443/x?q=1&r=a+b"),
        ("http://a.org/ä ö.jpg", "http://a.org/%C3%A4%20%C3%B6.jpg"),
        ("http://a.org/100%.jpg", "http://a.org/100%25.jpg"),
        ("http://a.org/%C3%A4%2F.jpg", "http://a.org/%C3%A4%2F.jpg"),
        ("http://a.org/a|b\\c.jpg", "http://a.org/a%7Cb%5Cc.jpg"),
        ("http://bücher.example/x", "http://xn--bcher-kva.example/x"),
        ("http://my_host.example/x", "http://my_host.example/x"),
        ("http://user:pass@a.org/x", "http://a.org/x"),
        ("http://[2001:db8::1]:8080/x", "http://[2001:db8::1]:8080/x"),
        ("http://a.org/a\n b.jpg", "http://a.org/a%20b.jpg"),
    ],
)
def test_urls_are_encoded(text: str, sent: str) -> None:
    assert parse_url(text).url == sent


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a.jpg",
        "http://",
        "http:///x",
        "http://a b/",
        "http://a.org:99999/",
        "http://[::1",
        "http://" + "a" * 300,
        "http://ex%61mple/",
    ],
)
def test_what_is_no_url_is_invalid(text: str) -> None:
    with pytest.raises(PermanentError, match="Invalid URL"):
        parse_url(text)


@pytest.mark.parametrize(
    "text", ["file:///etc/passwd", "ftp://a/b", "data:image/png;base64,AA", "javascript:1", "gopher://a/"]
)
def test_other_schemes_are_refused(text: str) -> None:
    with pytest.raises(PermanentError, match="only http and https"):
        parse_url(text)
    with pytest.raises(PermanentError):
        parse_url(text, base="http://a.org/")


@given(st.text(max_size=60))
def test_any_text_parses_or_fails_in_words(text: str) -> None:
    for candidate in (text, f"http://{text}", f"http://a.org/{text}"):
        try:
            target = parse_url(candidate)
        except PermanentError:
            continue
        assert target.url.isascii()
        assert parse_url(target.url) == target


def test_relative_redirects() -> None:
    assert parse_url("../c.jpg?x", base="https://a.org/d/e/f").url == "https://a.org/d/c.jpg?x"
    assert parse_url("//b.org/c", base="https://a.org/d").origin == "https://b.org:443"


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.9.9.9", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "224.0.0.1", "240.0.0.1",
        "255.255.255.255", "100.64.0.1", "192.0.2.1", "::1", "::", "fe80::1", "fc00::1", "fec0::1", "ff02::1", "::ffff:127.0.0.1",
        "::ffff:10.0.0.1", "::127.0.0.1", "2002:7f00:1::", "2002:a00:1::", "64:ff9b::7f00:1", "64:ff9b::a00:1", "2001:db8::1",
    ],
)  # fmt: skip
def test_private_addresses(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))
    with pytest.raises(PermanentError, match="Refused: private address"):
        check_addresses(["93.184.216.34", address], allow_private=False)
    check_addresses([address], allow_private=True)


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "8.8.8.8", "2606:2800:220:1::1", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_public_addresses(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("host", ["127.1", "2130706433", "0177.0.0.1", "1.2.3.4.5", "::1%lo0x"])
def test_shorthand_addresses_are_invalid_even_where_private_ones_are_allowed(host: str) -> None:
    with pytest.raises(PermanentError):
        check_literal(host, allow_private=host.startswith(":") is False)


def test_names_are_resolved_once_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def getaddrinfo(host: str, *arguments: object, **options: object) -> list[object]:
        asked.append(host)
        if host == "busy.example":
            raise socket.gaierror(socket.EAI_AGAIN, "try again")
        if host == "none.example":
            raise socket.gaierror(socket.EAI_NONAME, "none")
        address = {"good.example": "93.184.216.34", "bad.example": "10.0.0.1"}[host]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    async def ask() -> None:
        resolver = Resolver(DnsCache(), allow_private=False)
        answers = await asyncio.gather(*(resolver.addresses("good.example") for _ in range(20)))
        assert answers == [("93.184.216.34",)] * 20
        assert await resolver.addresses("good.example") == ("93.184.216.34",)
        for _ in range(2):
            with pytest.raises(PermanentError, match="private"):
                await resolver.addresses("bad.example")
            with pytest.raises(TemporaryError, match="Temporary failure in name resolution"):
                await resolver.addresses("busy.example")
            with pytest.raises(PermanentError, match="Name or service not known"):
                await resolver.addresses("none.example")

    asyncio.run(ask())
    assert sorted(asked) == ["bad.example", "busy.example", "good.example", "none.example"]
