"""Text as its reader sees it: what has many spellings in one, and percent-encoding undone.

    ｓｅｃｒｅｔ, ſecret                secret      Unicode's compatible forms (NFKC)
    ４１１１, ٤١١١                     4111        digits of any script
    4111‑1111, 4111 1111               -, space    dashes and spaces of any kind
    pass\\u200bword                      password    what is not seen: soft hyphens, joiners, …
    jo%2540example.com                 jo@…        however often it was encoded
    SİGNATURE, basıc                   SIGNATURE   what Turkish makes of I and i

Rules look at this. Look-alikes of another script (Cyrillic а) stay what they are.
"""

from __future__ import annotations

import re
from unicodedata import category, decimal, normalize
from urllib.parse import unquote

__all__ = ["plain"]

_ROUNDS = 5
_percents = re.compile(r"%(?:25)+")
_UNSEEN = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e0fff"
)
_DASHES = "\u058a\u2010-\u2015\u2212\u2e3a\u2e3b\u301c\u3030"
# Names of hosts may have these for dots.
_DOTS = "\u3002\uff61"
# Programs that run in Turkish write I and i so, whatever the word is.
_TURKISH = "\u0130\u0131"
_special = re.compile(rf"[{_UNSEEN}{_DASHES}{_DOTS}{_TURKISH}]|(?![0-9])\d")


def plain(text: str) -> str:
    """The text in one spelling."""
    text = _respelled(text)
    for _ in range(_ROUNDS):
        if "%" not in text:
            break
        before = text
        text = _respelled(unquote(_percents.sub("%", text)))
        if text == before:
            break
    return text


def _respelled(text: str) -> str:
    return text if text.isascii() else _special.sub(_instead, normalize("NFKC", text))


def _instead(found: re.Match[str]) -> str:
    character = found[0]
    match category(character):
        case "Nd":
            return str(decimal(character))
        case "Pd" | "Sm":
            return "-"
        case "Po":
            return "."
        case "Lu":
            return "I"
        case "Ll":
            return "i"
    return ""
