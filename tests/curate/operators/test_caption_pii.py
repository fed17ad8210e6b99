"""Personal data is found, and numbers that only look like it are not."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.operators.caption_pii import CaptionPii, find_pii
from tests.contract import check_operator, column

FINGERPRINT = "97863ab7722ffb9e2fbd9b7363ecc48f3f10c7c5525a5fa7dfd402df44162964"


def test_contract() -> None:
    output = check_operator(CaptionPii(), fingerprint=FINGERPRINT)
    assert column(output, "caption_has_pii")[0] is False
    assert column(output, "caption_pii_kinds")[5] == []


@pytest.mark.parametrize(
    ("caption", "kinds"),
    [
        ("write to maria.lopez+news@example.co.uk today", {"email": 1}),
        ("a@b.de, c@d.fr", {"email": 2}),
        ("call +1 (415) 555-0132 now", {"phone": 1}),
        ("call (415) 555-0132", {"phone": 1}),
        ("415-555-0132", {"phone": 1}),
        ("+49 30 901820", {"phone": 1}),
        ("card 4111 1111 1111 1111", {"card": 1}),
        ("card 4111-1111-1111-1111", {"card": 1}),
        ("account DE89 3704 0044 0532 0130 00", {"iban": 1}),
        ("GB29NWBK60161331926819", {"iban": 1}),
        ("SSN 219-09-9999", {"ssn": 1}),
        ("server at 203.0.113.7", {"ip": 1}),
        ("server at 2001:db8::7", {"ip": 1}),
        # numbers that are nobody's
        ("4111 1111 1111 1112", {}),
        ("0000 0000 0000 0000", {}),
        ("DE89 3704 0044 0532 0130 01", {}),
        ("666-12-3456", {}),
        ("version 1.2.3.4", {}),
        ("999.1.1.1", {}),
        ("at 10:30:45 on 2015-03-12", {}),
        ("photo 1920x1080, 300 dpi, $1,299.00", {}),
        ("IMG_20150312_103045.jpg", {}),
        ("ISBN 978-3-16-148410-0", {}),
        ("season 1999-2004, score 102-98", {}),
        ("follow @example", {}),
        ("std::vector", {}),
        ("", {}),
        ("\u202e\u05e9\u05dc\u05d5\u05dd 123", {}),
        ("\U0001f600" * 50, {}),
    ],
)
def test_kinds(caption: str, kinds: dict[str, int]) -> None:
    assert find_pii(caption) == kinds


@pytest.mark.parametrize(
    "text", ["1 " * 50_000, "a" * 100_000 + "@", "+1 " * 30_000, ":" * 100_000, "A1 " * 30_000, "1." * 50_000]
)
def test_hostile_captions_take_no_time(text: str) -> None:
    start = time.process_time()
    find_pii(text)
    assert time.process_time() - start < 2


@given(st.text(st.sampled_from("0123456789 .-+()@:ABab"), max_size=60))
def test_any_text(text: str) -> None:
    assert all(count > 0 for count in find_pii(text).values())
