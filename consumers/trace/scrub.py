"""Personal data inside text: found, and a word in brackets put in its place.

    mail     jo@example.com                                        [mail]
    card     13 to 19 digits of a card's range that pass Luhn      [card]
    iban     a bank account's number whose check digits fit        [iban]
    token    JWTs, keys known by how they begin, `password=…`,     [token]
             and long runs that look random
    ip       IPv4 and IPv6 but 127.0.0.1 and ::1                   [ip]
    url      of a query only listed parameters stay; user:password@ goes

and patterns of the operator's own, by their names. Rules and patterns look at the text as plain.py
makes it, and where one finds something, that is what leaves; else the text stays as it is. Each
rule is linear in the text, so that no text holds up a forwarder; text beyond MAX_TEXT is for the
gate to refuse.

A guard behind the allowlist, not in its place: a name or a street is not recognised, nor a national
telephone number, nor a key of hexadecimal digits, which ids are made of.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from consumers.trace.address import stripped
from consumers.trace.plain import plain
from consumers.trace.rules import RULES

__all__ = ["MAX_TEXT", "Hit", "Scrubber", "is_uuid"]

# Characters. No vendor but the webhook keeps more than a tenth of it.
MAX_TEXT = 10_000

_URL = ("url",)
# Texts of up to 64 characters that a scrubber remembers, some 5 MB.
_REMEMBERED = 50_000

# The text as it may leave, and what was found in it.
Hit = tuple[str, tuple[str, ...]]

# Possessive and without a group: 0.27 µs instead of 0.36.
is_uuid = re.compile(
    r"[0-9a-fA-F]{8}+-[0-9a-fA-F]{4}+-[0-9a-fA-F]{4}+-[0-9a-fA-F]{4}+-[0-9a-fA-F]{12}+"
).fullmatch

# ASCII below this length and without one of these, or a space as behind `Basic`, holds nothing that
# a rule looks for.
_SHORT = 13
_suspect = re.compile(r"[@?#%=:.cC](?:(?<![cC])|(?=\s))").search
_run_of_12 = re.compile(r"[A-Za-z0-9_-]{12}").search
# Nor does this: words of up to eleven letters and digits, with a page's scheme before them, and
# between them what begins no query, address or IPv4 address, is no gap in a card's number or behind
# the beginning of an account's, and stands behind no `Bearer`; behind a page what is left of most
# queries. The rules are asked only about other text: for 15 to 35 characters they take 3 µs to find
# nothing, this 0.3 to 0.7. Only plain text may be asked about: all but ASCII is harmless to it.
_innocent = re.compile(
    r"(?:https?://)?(?:[A-Za-z0-9_-]{0,11}+"
    r"(?:(?:[+/]"
    r"|\s(?:(?<![cCrR0-9]\s)|(?<![A-Za-z][A-Za-z][0-9][0-9]\s)(?<!(?i:earer|basic)\s)))"
    r"(?:(?![\s._+/-]{0,2}[0-9]{4})|(?<![0-9]{4}.))"
    r"|[^A-Za-z0-9_\-@%?#=:.\s+/]|\.(?![0-9])))*+"
    r"[A-Za-z0-9_-]{0,11}+"
    r"(?:\?(?:utm_(?:source|medium|campaign|term|content)=[A-Za-z0-9_-]{0,11}+&?)++)?",
    re.DOTALL,
).fullmatch


class Scrubber:
    """Takes personal data out of text: a pure function, with a memory of text that was clean.

    Analytics' values repeat: categories, plans, paths. What was clean once is clean again.
    """

    def __init__(
        self,
        kinds: Collection[str],
        patterns: Mapping[str, re.Pattern[str]] | None = None,
        url_parameters: Collection[str] = (),
    ) -> None:
        self.kinds = frozenset(kinds)
        self._rules = [(kind, rule) for kind, rule in RULES.items() if kind in self.kinds]
        self._strips = "url" in self.kinds
        self._patterns = list((patterns or {}).items())
        self._parameters = frozenset(url_parameters)
        # Text known to be clean, for whoever does not want to pay for a call to hear it.
        self.clean: set[str] = set()

    def __call__(self, text: str) -> Hit | None:
        """None where the text is clean."""
        return None if text in self.clean else self.look(text)

    def look(self, text: str) -> Hit | None:
        """The same for text that is not in `clean`."""
        if self._patterns:
            return self._search(text)
        size = len(text)
        if size < _SHORT:
            if not _suspect(text) and text.isascii():
                return None
        elif size == 36 and is_uuid(text):
            # Not remembered: to look at it takes as long as to look it up among many.
            return None
        if "?" not in text:
            if _innocent(text) if text.isascii() else _innocent_as_seen(text):
                self._remember(text)
                return None
        elif self._strips:
            # What is left of a page's address is often known.
            left = stripped(text, self._parameters)
            if left in self.clean or (
                _innocent(left) if left.isascii() else _innocent_as_seen(left)
            ):
                self._remember(left)
                return None if left == text else (left, _URL)
        return self._search(text)

    def _search(self, text: str) -> Hit | None:
        """Ask every rule."""
        left = text
        found: list[str] = []
        # A query goes whole before a token in it is looked for.
        if self._strips and ("?" in text or "#" in text or "@" in text):
            left = stripped(text, self._parameters)
            if left != text:
                found.append("url")
        seen = left
        if "%" in seen or not seen.isascii():
            seen = plain(left)
        after, kinds = self._ask(seen, again=seen != left)
        if kinds:
            left = after
            found += (kind for kind in kinds if kind not in found)
        if self._patterns:
            left = self._without_patterns(left, found)
        if found in ([], ["url"]):
            self._remember(left)
        return (left, tuple(found)) if found else None

    def _ask(self, text: str, *, again: bool) -> Hit:
        """What the rules leave of plain text; `again`: an address may have come to light in it."""
        left = text
        found: list[str] = []
        if again and self._strips:
            left = stripped(text, self._parameters)
            if left != text:
                found.append("url")
        # A UUID's digits are nobody's card.
        if len(left) != 36 or not is_uuid(left):
            run = len(left) >= 12 and _run_of_12(left) is not None
            for kind, rule in self._rules:
                changed = rule(left, run)
                if changed is not left and changed != left:
                    found.append(kind)
                    left = changed
        return left, tuple(found)

    def _without_patterns(self, text: str, found: list[str]) -> str:
        """What the operator's patterns leave; their names go to `found`."""
        seen = plain(text) if "%" in text or not text.isascii() else text
        if seen != text:
            # One that asks for what plain text never has (İ, %2D) is looked for as it is written.
            for name, pattern in self._patterns:
                if not pattern.search(seen) and pattern.search(text):
                    found.append(name)
                    text = pattern.sub(f"[{name}]", text)
            seen = plain(text)
        after = seen
        for name, pattern in self._patterns:
            changed = pattern.sub(f"[{name}]", after)
            if changed != after:
                if name not in found:
                    found.append(name)
                after = changed
        return text if after == seen else after

    def _remember(self, text: str) -> None:
        if len(text) <= 64:
            if len(self.clean) >= _REMEMBERED:
                self.clean.clear()
            self.clean.add(text)


def _innocent_as_seen(text: str) -> bool:
    """Of text that is not ASCII: as its reader sees it, and with no query that came to light."""
    seen = plain(text)
    return "?" not in seen and _innocent(seen) is not None
