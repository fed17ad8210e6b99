"""Personal data in captions: addresses, numbers of phones, cards and accounts."""

import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curate.operator import Annotate, ShardOperator

_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w-])")
# An international number, or one with the signs that people put into phone numbers; years, sizes and prices have neither.
_PHONE = re.compile(
    r"(?<![\w.,/+-])(?:\+\d{1,3}[\s.-]?(?:\(?\d{1,4}\)?[\s.-]?){2,5}\d{2,4}|\(\d{3}\)\s?\d{3}[\s.-]\d{4}|\d{3}[.-]\d{3}[.-]\d{4})(?![\w-])"
)
_CARD = re.compile(r"(?<![\w.-])(?<!\d )(?:(?:\d{4}[ -]?){3}\d{1,4}|\d{4}[ -]?\d{6}[ -]?\d{5})(?![ -]?\d)(?!\w)")
_IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)")
_SSN = re.compile(r"(?<![\w-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])")
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.])")
_IPV6 = re.compile(r"(?<![\w:])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])")
_MIN_PHONE_DIGITS, _MAX_PHONE_DIGITS = 8, 15
# Whatever is personal here has an @, a colon or at least three digits: one look by RE2 spares most captions the rest.
_WORTH_A_LOOK = r"@|::?[0-9A-Fa-f]|\d\D{0,2}\d\D{0,2}\d"
# More of a caption than this is not read.
_MAX_CHARACTERS = 20_000


def _is_phone(text: str) -> bool:
    digits = sum(map(str.isdigit, text))
    return _MIN_PHONE_DIGITS <= digits <= _MAX_PHONE_DIGITS


def _is_card(text: str) -> bool:
    """Tell whether the digits add up as Luhn's rule wants; a run of one digit may too, and is no card."""
    digits = [int(character) for character in text if character.isdigit()]
    if len(set(digits)) < 2 or digits[0] not in {2, 3, 4, 5, 6}:
        return False
    doubled = [digit if place % 2 == 0 else 2 * digit - 9 * (digit > 4) for place, digit in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


def _is_iban(text: str) -> bool:
    """Tell whether the number is 1 modulo 97 (ISO 13616)."""
    compact = text.replace(" ", "")
    turned = compact[4:] + compact[:4]
    return len(compact) >= 15 and int("".join(str(int(character, 36)) for character in turned)) % 97 == 1


def _is_ip(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    # Versions ("3.7.5.8") are written like addresses.
    is_version = address.version == 4 and all(len(part) == 1 for part in text.split("."))
    return not (address.is_unspecified or is_version)


def _always(_: str) -> bool:
    return True


# In this order, each removing what it found: an account number holds what looks like a card's.
_KINDS: dict[str, tuple[tuple[re.Pattern[str], ...], Callable[[str], bool]]] = {
    "email": ((_EMAIL,), _always),
    "iban": ((_IBAN,), _is_iban),
    "card": ((_CARD,), _is_card),
    "ssn": ((_SSN,), _always),
    "ip": ((_IPV4, _IPV6), _is_ip),
    "phone": ((_PHONE,), _is_phone),
}


@dataclass(frozen=True, kw_only=True)
class CaptionPii(ShardOperator):
    """Personal data in the caption, by patterns that are checked: nothing of it is copied; about 20 us per caption.

    caption_has_pii       any of the kinds below
    caption_pii_kinds     those that were found: email, iban (modulo 97), card (Luhn), ssn (of the USA), ip (4 and 6), phone (international,
                          or written with the signs of phone numbers), in this order
    caption_num_pii       how many in all, 0 and up

    Names of persons are not looked for.
    """

    name = "caption_pii"
    version = 1
    reads = ("alt_text",)
    nullable = ("alt_text",)
    writes = pa.schema([
        ("caption_has_pii", pa.bool_()),
        ("caption_pii_kinds", pa.list_(pa.string())),
        ("caption_num_pii", pa.int32()),
    ])

    def load(self) -> Annotate:
        return _annotate


def _annotate(batch: pa.Table) -> Mapping[str, Sequence[Any]]:
    captions = batch.column("alt_text").combine_chunks().fill_null("")
    worth = pc.match_substring_regex(captions, _WORTH_A_LOOK).to_pylist()
    found = [find_pii(text) if look else {} for text, look in zip(captions.to_pylist(), worth, strict=True)]
    return {
        "caption_has_pii": [bool(kinds) for kinds in found],
        "caption_pii_kinds": [list(kinds) for kinds in found],
        "caption_num_pii": [sum(kinds.values()) for kinds in found],
    }


def find_pii(text: str) -> dict[str, int]:
    """Return how many of each kind a text holds, those only that it has."""
    text = text[:_MAX_CHARACTERS]
    counts: dict[str, int] = {}
    for kind, (patterns, is_real) in _KINDS.items():
        for pattern in patterns:
            hits = [match for match in pattern.finditer(text) if is_real(match[0])]
            if hits:
                counts[kind] = counts.get(kind, 0) + len(hits)
            for match in reversed(hits):
                text = f"{text[: match.start()]} {text[match.end() :]}"
    return counts
