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

import ipaddress
import re
from base64 import urlsafe_b64decode
from collections.abc import Callable, Collection, Mapping

from consumers.trace.address import stripped
from consumers.trace.numbers import without_cards, without_ibans
from consumers.trace.plain import plain

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

_MAIL = re.compile(
    r"(?<![\w.+'%!$*^{|}~`-])[\w.+'%!$*^{|}~`-]+?@(?:[\w-]{1,63}\.){1,10}[^\W\d_][\w-]{1,62}"
)

# "{10,}+" gives nothing back: it would take the square of a long run to find no dot behind it.
# So begins an object of JSON in base64; a part by itself says as much.
_JWT = r"(?:eyJ|(?<![A-Za-z0-9])ew(?:og|oJ|0K))[\w-]{10,}+(?:\.[\w-]*){0,4}"
_KEYS = (
    r"(?:sk|pk|rk)_(?:live|test)_\w{8,}|sk-[\w-]{20,}|gh[pousr]_\w{20,}|github_pat_\w{20,}"
    r"|glpat-[\w-]{16,}|xox[abeprs]-[\w-]{10,}|A(?:[KS]I|BI|CC)A[A-Z0-9]{16}|AIza[\w-]{30,}"
    r"|ya29\.[\w-]{12,}|npm_\w{30,}|SG\.[\w-]{16,}+\.[\w-]{16,}|whsec_\w{16,}|shp[a-z]{2}_\w{16,}"
    r"|dop_v1_\w{16,}|hf_[A-Za-z]{20,}|pypi-AgE[\w-]{16,}|GOCSPX-[\w-]{16,}"
    r"|-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----[\s\S]*"
)
_TOKEN = re.compile(f"{_JWT}|{_KEYS}")
# How they begin, in small letters, and what else is in those that begin so: to find that there is
# none takes a tenth of the time.
_BEGINNINGS = {
    "": (
        "eyj", "ewog", "ewoj", "ew0k", "akia", "asia", "abia", "acca", "aiza", "ya29.", "sg.",
        "private key",
    ),
    "_": (
        "_live_", "_test_", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "npm_",
        "whsec_", "shp", "dop_v1_", "hf_",
    ),
    "-": ("sk-", "glpat-", "xox", "pypi-age", "gocspx-"),
}  # fmt: skip
_SCHEME = re.compile(r"\b(?:(?i:bearer)\s{1,3}[\w.~+/=-]{8,}|(?i:basic)\s{1,3}([\w.~+/=-]{4,}))")
_LABELS = (
    "token", "secret", "pass", "pwd", "key", "signature", "authorization", "credential", "session",
    "cookie",
)  # fmt: skip
# With quotes, and those of JSON inside JSON, around the mark; the label itself stays.
_MARK = r"[\\\"']{0,4}\s{0,3}%s\s{0,3}[\\\"']{0,4})(?!\[token\])"
_LABELLED = re.compile(
    r"((?i:token|secret|passwd|passw(?:or)?d|\bpass(?:phrase|code)?|pwd|signature|credentials?"
    r"|(?:api|access|private|account|secret|signing|encryption)[ _-]?key|session[ _-]?id)"
    + _MARK % "[=:]>?"
    + r"[^\s&,;\"']{3,}"
    # A scheme and what belongs to it, to the end of the line where that has several parts.
    + r"|((?i:authorization)"
    + _MARK % "[=:]"
    + r"(?:(?i:digest|oauth|hawk|aws4-hmac-sha256)\s[^\r\n]*"
    + r"|(?:[A-Za-z][\w-]{0,20}\s{1,3})?[^\s&,;\"']{3,})"
    + r"|((?i:cookie)"
    + _MARK % ":"
    + r"[\w.!#$%^`|~*+-]{1,64}=[^\r\n\"']*"
)
_LONG = re.compile(r"[A-Za-z0-9_-]{32,}")
_CLASSES = str.maketrans(
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789",
    "A" * 26 + "a" * 26 + "0" * 10,
    "_-",
)

_OCTET = r"(?:25[0-5]|2[0-4][0-9]|[01]?[0-9]{1,2})"
# Behind a v it is a version.
_IPV4 = re.compile(rf"(?<![0-9.vV])(?!127\.){_OCTET}(?:\.{_OCTET}){{3}}(?![0-9]|\.[0-9])")
_IPV6 = re.compile(r"(?<!\w)[0-9A-Fa-f:][0-9A-Fa-f:.]{3,44}(?![0-9A-Za-z_])")


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
        self._rules = [(kind, rule) for kind, rule in _RULES.items() if kind in self.kinds]
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


# `run` says whether letters, digits, - and _ stand together, twelve at least.


def _token(text: str, run: bool) -> str:
    small = text.lower()
    if run:
        for mark, beginnings in _BEGINNINGS.items():
            if mark in small and any(map(small.__contains__, beginnings)):
                text = _TOKEN.sub("[token]", text)
                break
        if len(text) >= 32:
            text = _LONG.sub(_random, text)
    if "bearer" in small or "basic" in small:
        text = _SCHEME.sub(_scheme, text)
    # A colon of :// labels nothing.
    if ("=" in text or text.count(":") > text.count("://")) and any(
        map(small.__contains__, _LABELS)
    ):
        text = _LABELLED.sub(lambda found: f"{found[1] or found[2] or found[3]}[token]", text)
    return text


def _scheme(found: re.Match[str]) -> str:
    """`Basic` is a plan's name too: what follows must be no word, or name:password in base64."""
    said = found[1]
    if said is None or (len(said) >= 12 and not said.isalpha()):
        return "[token]"
    try:
        decoded = urlsafe_b64decode(said.rstrip("=") + "==").decode()
    except ValueError:
        return found[0]
    return "[token]" if ":" in decoded and decoded.isprintable() else found[0]


def _random(found: re.Match[str]) -> str:
    """Runs of letters of both cases and digits that change from one to the other all the time.

    In random ones 62 of 100 characters differ in class from the one before; in words strung
    together (WinterJacket2024) it is 20. At 32 characters 40 is 2.6 deviations below the former.
    """
    classes = found[0].translate(_CLASSES)
    if not ("A" in classes and "a" in classes and "0" in classes):
        return found[0]
    changes = sum(map(str.__ne__, classes, classes[1:]))
    return "[token]" if changes >= 0.4 * len(classes) else found[0]


def _mail(text: str, run: bool) -> str:
    return _MAIL.sub("[mail]", text) if "@" in text else text


def _ip(text: str, run: bool) -> str:
    if text.count(":") >= 2:
        text = _IPV6.sub(_ipv6_or_not, text)
    return _IPV4.sub("[ip]", text) if text.count(".") >= 3 else text


def _ipv6_or_not(found: re.Match[str]) -> str:
    said = found[0].rstrip(".")
    # A port or a colon behind it.
    said = said[:-1] if said.endswith(":") and not said.endswith("::") else said
    try:
        address = ipaddress.IPv6Address(said)
    except ValueError:
        return found[0]
    if address.is_loopback or address.is_unspecified:
        return found[0]
    return "[ip]" + found[0][len(said) :]


_RULES: Mapping[str, Callable[[str, bool], str]] = {
    "token": _token, "mail": _mail, "iban": lambda text, _: without_ibans(text),
    "card": lambda text, _: without_cards(text), "ip": _ip,
}  # fmt: skip
