"""Addresses inside text: without user:password@; of a query only the listed parameters stay.

In any text: where there are spaces or quotes, each word may be an address. What has no = and stands
behind no page (really?) is no query.
"""

from __future__ import annotations

import re
from collections.abc import Set
from urllib.parse import unquote_plus

__all__ = ["stripped"]

_WORD = re.compile(r"[^\s\"'<>]+")
_USER_INFO = re.compile(r"(?<=//)[^/\s?#]+@")


def stripped(text: str, listed: Set[str]) -> str:
    """Text in which addresses have only the listed parameters, and no user."""
    if "@" in text and "//" in text:
        text = _USER_INFO.sub("", text)
        if "?" not in text and "#" not in text:
            return text
    if " " in text or '"' in text or "\n" in text:
        return _WORD.sub(lambda word: _without_query(word[0], listed), text)
    return _without_query(text, listed)


def _without_query(word: str, listed: Set[str]) -> str:
    """A word with only the listed parameters of its query, and of its fragment's."""
    page, mark, fragment = word, "", ""
    if "#" in word:
        page, mark, fragment = word.partition("#")
    if "=" in fragment:
        # A route with a query of its own: #/reset?token=…
        route, _, inner = fragment.rpartition("?")
        route = "" if "=" in route else route
        kept = _only(inner, listed)
        fragment = f"{route}?{kept}" if route and kept else route + kept
        mark = mark if fragment else ""
    head, asks, query = page.partition("?")
    if query and ("=" in query or "://" in head or head.startswith(("/", "www."))):
        query = _only(query, listed)
        asks = asks if query else ""
    return head + asks + query + mark + fragment


def _only(query: str, listed: Set[str]) -> str:
    kept = []
    if ";" in query or "?" in query:
        query = query.replace(";", "&").replace("?", "&")
    for part in query.split("&"):
        name = part.partition("=")[0]
        if name in listed or (("%" in name or "+" in name) and unquote_plus(name) in listed):
            kept.append(part)
    return "&".join(kept)
