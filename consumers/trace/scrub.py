"""Personal data inside text: found, and a word in brackets put in its place.

    mail     jo@example.com, jo%40example.com                      [mail]
    card     13 to 19 digits of a card's range that pass Luhn      [card]
    token    JWTs, keys known by how they begin, `password=…`,     [token]
             and long runs that look random
    ip       IPv4 and IPv6 but 127.0.0.1 and ::1                   [ip]
    url      of a query only listed parameters stay; user:password@ goes

and patterns of the operator's own, by their names. Each rule is linear in the text, so that no text
holds up a forwarder; text beyond MAX_TEXT is for the gate to refuse.

A guard behind the allowlist, not in its place: a name or a street is not recognised, nor is a key
of hexadecimal digits, which ids are made of.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Collection, Mapping

from consumers.trace.address import stripped

__all__ = ["MAX_TEXT", "Hit", "Scrubber", "card_number", "is_uuid"]

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

# Text below this length and without one of these holds nothing that a rule looks for.
_SHORT = 13
_suspect = re.compile(r"[@?#%=:.]").search
_run_of_12 = re.compile(r"[A-Za-z0-9_-]{12}").search
# Nor does this: words of up to eleven letters and digits, with a page's scheme before them, and
# between them what begins no query, address, number of a card or IPv4 address. The rules are asked
# only about other text: for 15 to 35 characters they take 2 µs to find nothing, this 0.3 to 0.5.
_innocent = re.compile(
    r"(?:https?://)?(?:[A-Za-z0-9_-]{0,11}+"
    r"(?:[^A-Za-z0-9_\-@%?#=:. \u00a0\u202f]|\.(?![0-9])|(?<![0-9]{4}) | (?![0-9]{4})))*+"
    r"[A-Za-z0-9_-]{0,11}+"
).fullmatch

_MAIL = re.compile(
    r"(?<![\w.+'%-])[\w.+'%-]+?(?:@|%(?:25)*40)(?:[\w-]{1,63}\.){1,10}[^\W\d_][\w-]{1,62}"
)

_SEP = r"[ \u00a0\u202f._-]"
_CARD = re.compile(
    rf"(?<![0-9])(?:[0-9]{{13,19}}|[0-9]{{4}}({_SEP})[0-9]{{4}}\1[0-9]{{4}}\1[0-9]{{1,7}}"
    rf"|[0-9]{{4}}({_SEP})[0-9]{{6}}\2[0-9]{{4,5}})(?![0-9])"
)
_maybe_card = re.compile(
    rf"[0-9]{{4}}(?:[0-9]{{9}}|{_SEP}[0-9]{{4}}{_SEP}[0-9]{{4}}|{_SEP}[0-9]{{6}}{_SEP})"
).search
# Ranges of issuers with the lengths that they use: one number of ten passes Luhn by chance, and ids
# and times of day are numbers of that length too.
_issued = re.compile(
    r"4(?:[0-9]{12}|[0-9]{15}|[0-9]{18})|5[1-5][0-9]{14}"  # Visa, Mastercard
    r"|2(?:22[1-9]|2[3-9][0-9]|[3-6][0-9]{2}|7[01][0-9]|720)[0-9]{12}"  # Mastercard
    r"|3[47][0-9]{13}|3(?:0[0-59]|[689][0-9])[0-9]{11,16}|35[0-9]{14,17}"  # Amex, Diners, JCB
    r"|6[0-9]{15,18}|(?:5[06-9]|6[0-9])[0-9]{10,17}"  # Discover, UnionPay, Maestro
).fullmatch
_DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)

# "{6,}+" gives nothing back: it would take the square of a long run to find no dot behind it.
_JWT = r"eyJ[\w-]{6,}+(?:\.[\w-]*){1,4}"
_KEYS = (
    r"(?:sk|pk|rk)_(?:live|test)_\w{8,}|sk-[\w-]{20,}|gh[pousr]_\w{20,}|github_pat_\w{20,}"
    r"|glpat-[\w-]{16,}|xox[abeprs]-[\w-]{10,}|A[KS]IA[A-Z0-9]{16}|AIza[\w-]{30,}"
    r"|ya29\.[\w-]{12,}|npm_\w{30,}|SG\.[\w-]{16,}+\.[\w-]{16,}"
    r"|-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----[\s\S]*"
    r"|\b(?i:bearer|basic)\s{1,3}[\w.~+/=-]{12,}"
)
_TOKEN = re.compile(f"{_JWT}|{_KEYS}")
# How they begin, in small letters: to find that there is none takes a tenth of the time.
_BEGINNINGS = (
    "eyj", "_live_", "_test_", "sk-", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_",
    "glpat-", "xox", "akia", "asia", "aiza", "ya29.", "npm_", "sg.", "private key", "bearer",
    "basic",
)  # fmt: skip
_LABELS = ("token", "secret", "pass", "pwd", "key", "signature", "authorization")
# The word before it stays: `password=[token]`.
_LABELLED = re.compile(
    r"((?i:token|secret|passw(?:or)?d|pwd|passphrase|api[_-]?key|access[_-]?key|signature"
    r"|authorization)[\"']?\s{0,3}[=:]\s{0,3}[\"']?)(?!\[token\])[^\s&,;\"']{3,}"
)
_LONG = re.compile(r"[A-Za-z0-9_-]{32,}")
_CLASSES = str.maketrans(
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789",
    "A" * 26 + "a" * 26 + "0" * 10,
    "_-",
)

_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
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
            if not _suspect(text):
                return None
        elif size == 36 and is_uuid(text):
            # Not remembered: to look at it takes as long as to look it up among many.
            return None
        if "?" not in text:
            if _innocent(text):
                self._remember(text)
                return None
        elif self._strips:
            # What is left of a page's address is often known.
            left = stripped(text, self._parameters)
            if left in self.clean:
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
        # A UUID's digits are nobody's card.
        if len(left) != 36 or not is_uuid(left):
            run = len(left) >= 12 and _run_of_12(left) is not None
            for kind, rule in self._rules:
                changed = rule(left, run)
                if changed is not left and changed != left:
                    found.append(kind)
                    left = changed
        for name, pattern in self._patterns:
            changed = pattern.sub(f"[{name}]", left)
            if changed != left:
                found.append(name)
                left = changed
        if found in ([], ["url"]):
            self._remember(left)
        return (left, tuple(found)) if found else None

    def _remember(self, text: str) -> None:
        if len(text) <= 64:
            if len(self.clean) >= _REMEMBERED:
                self.clean.clear()
            self.clean.add(text)


# `run` says whether letters, digits, - and _ stand together, twelve at least.


def _token(text: str, run: bool) -> str:
    if run:
        if any(map(text.lower().__contains__, _BEGINNINGS)):
            text = _TOKEN.sub("[token]", text)
        if len(text) >= 32:
            text = _LONG.sub(_random, text)
    if "=" in text or text.count(":") > text.count("://"):
        small = text.lower()
        if any(map(small.__contains__, _LABELS)):
            text = _LABELLED.sub(r"\1[token]", text)
    return text


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
    return _MAIL.sub("[mail]", text) if "@" in text or "%" in text else text


def _card(text: str, run: bool) -> str:
    # Without a run its digits are in groups.
    if not run and " " not in text and text.count(".") < 3 and text.isascii():
        return text
    return _CARD.sub(_card_or_not, text) if _maybe_card(text) else text


def _card_or_not(found: re.Match[str]) -> str:
    digits = "".join(filter(str.isdigit, found[0]))
    return "[card]" if card_number(digits) else found[0]


def card_number(digits: str) -> bool:
    """Whether digits are a card's: of an issuer's range and length, and the check digit fits."""
    if not _issued(digits):
        return False
    numbers = [ord(c) - 48 for c in reversed(digits)]
    return (sum(numbers[::2]) + sum(_DOUBLED[n] for n in numbers[1::2])) % 10 == 0


def _ip(text: str, run: bool) -> str:
    if text.count(".") >= 3:
        text = _IPV4.sub("[ip]", text)
    return _IPV6.sub(_ipv6_or_not, text) if text.count(":") >= 2 else text


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
    "token": _token, "mail": _mail, "card": _card, "ip": _ip,
}  # fmt: skip
