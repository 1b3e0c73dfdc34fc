"""Numbers inside text that are a card's or a bank account's, known by their check digits.

A card's digits stand together or in groups of four and more, the last one of any length; those of
an account (IBAN) together or in groups of four. Text is as plain.py makes it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["card_number", "without_cards", "without_ibans"]

# Between two groups.
_GAP = r"[\s._+/-]{1,3}"
_gap = re.compile(_GAP).fullmatch
_maybe_card = re.compile(rf"[0-9]{{4}}(?:[0-9]{{9}}|{_GAP}[0-9]{{4}})").search
_digits = re.compile(r"[0-9]+").finditer
_LEAST, _MOST = 13, 19
# Ranges of issuers with the lengths that they use: one number of ten passes Luhn by chance, and ids
# and times of day are numbers of that length too.
_issued = re.compile(
    r"4(?:[0-9]{12}|[0-9]{15}|[0-9]{18})|5[1-5][0-9]{14}"  # Visa, Mastercard
    r"|2(?:22[1-9]|2[3-9][0-9]|[3-6][0-9]{2}|7[01][0-9]|720)[0-9]{12}"  # Mastercard
    r"|3[47][0-9]{13}|3(?:0[0-59]|[689][0-9])[0-9]{11,16}|35[0-9]{14,17}"  # Amex, Diners, JCB
    r"|6[0-9]{15,18}|(?:5[06-9]|6[0-9])[0-9]{10,17}"  # Discover, UnionPay, Maestro
).fullmatch
_DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)

_IBAN = re.compile(
    r"(?<![A-Za-z0-9])[A-Za-z]{2}[0-9]{2}(?:[ -]?[A-Za-z0-9]{4}){2,7}(?:[ -]?[A-Za-z0-9]{1,3})?"
)
# Digits first: most text has few.
_maybe_iban = re.compile(r"[0-9]{2}(?<=[A-Za-z]{2}..)").search
# How long an account's number is, by its country: the registry of ISO 13616.
_LENGTHS = {
    country: int(length)
    for country, length in re.findall(
        "([A-Z]{2})([0-9]{2})",
        "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 "
        "DK18 DO28 EE20 EG29 ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 "
        "IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 "
        "MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24 RS22 RU33 SA24 "
        "SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30",
    )
}


def without_cards(text: str) -> str:
    """The text with [card] in place of each card's number."""
    if not _maybe_card(text):
        return text
    groups = [found.span() for found in _digits(text)]
    parts: list[str] = []
    at = first = 0
    while first < len(groups):
        behind = _card(text, groups, first)
        if behind > first:
            parts += text[at : groups[first][0]], "[card]"
            at = groups[behind - 1][1]
        first = max(behind, first + 1)
    return "".join((*parts, text[at:])) if parts else text


def _card(text: str, groups: Sequence[tuple[int, int]], first: int) -> int:
    """The group behind the longest card that begins with this one; `first` where none does."""
    behind, digits = first, ""
    for n in range(first, len(groups)):
        begin, end = groups[n]
        if n > first and not _gap(text, groups[n - 1][1], begin):
            break
        digits += text[begin:end]
        if len(digits) > _MOST:
            break
        if len(digits) >= _LEAST and card_number(digits):
            behind = n + 1
        if end - begin < 4:
            break
    return behind


def card_number(digits: str) -> bool:
    """Whether digits are a card's: of an issuer's range and length, and the check digit fits."""
    if not _issued(digits):
        return False
    numbers = [ord(c) - 48 for c in reversed(digits)]
    return (sum(numbers[::2]) + sum(_DOUBLED[n] for n in numbers[1::2])) % 10 == 0


def without_ibans(text: str) -> str:
    """The text with [iban] in place of each account's number."""
    return _IBAN.sub(_iban_or_not, text) if _maybe_iban(text) else text


def _iban_or_not(found: re.Match[str]) -> str:
    said = found[0]
    length = _LENGTHS.get(said[:2].upper(), 0)
    places = [n for n, c in enumerate(said) if c.isalnum()]
    if not 0 < length <= len(places):
        return said
    end = places[length - 1] + 1
    number = "".join(said[n] for n in places[:length])
    # Letters count from 10, as in base 36; the first four stand at the end.
    if said[end : end + 1].isalnum() or int(_as_digits(number[4:] + number[:4])) % 97 != 1:
        return said
    return "[iban]" + said[end:]


def _as_digits(number: str) -> str:
    return "".join(str(int(c, 36)) for c in number)
