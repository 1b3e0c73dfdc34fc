"""The rules of the scrubber, each of which leaves plain text without what it looks for.

They are called with whether letters, digits, - and _ stand together in it, twelve at least. Where
they find nothing they give back the text itself.
"""

from __future__ import annotations

import ipaddress
import re
from base64 import urlsafe_b64decode
from collections.abc import Callable, Mapping

from consumers.trace.numbers import without_cards, without_ibans

__all__ = ["RULES"]

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


RULES: Mapping[str, Callable[[str, bool], str]] = {
    "token": _token, "mail": _mail, "iban": lambda text, _: without_ibans(text),
    "card": lambda text, _: without_cards(text), "ip": _ip,
}  # fmt: skip
