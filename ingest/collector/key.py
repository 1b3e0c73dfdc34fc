"""One key: whose it is, what it may do, and what of its secret is kept.

Of a secret only its SHA-256 is kept. Secrets are random, with 72 bits at the least; a slow hash
such as bcrypt makes guessing short passwords costly, which nobody has to do here, and would cost
each request as much: one client could keep a core busy with wrong keys.
"""

from __future__ import annotations

import hashlib
import math
import re
import secrets
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "Key",
    "KeyFileError",
    "called",
    "digest",
    "from_entry",
    "new_secret",
    "plain_origin",
    "refuse_weak",
    "to_entry",
]

_SOURCE = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_STREAM = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,199}")
# What a browser sends as Origin, but for the case of letters and a default port.
_ORIGIN = re.compile(r"https?://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
# Ids in a spool begin with a source; these are a collector's without keys, and its unix socket's.
_TAKEN = {"local", "unix"}
# Visible ASCII. Basic ends a user name at the first colon.
_SECRET = re.compile(r"[!-9;-~]{20,200}")
_LEAST_BITS = 72


class KeyFileError(Exception):
    """The file of keys can't be used or changed; the text names it and says what to do."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key: whose it is and what it may do. Its secret is known to its holder alone."""

    id: str
    source: str
    # SHA-256 of the secret; not shown, so that it gets into no log.
    hash: bytes = field(repr=False)
    account: str = ""
    # Streams that it may write to; empty: all of them.
    streams: frozenset[str] = frozenset()
    # Web pages that may use it; empty: none, it is for servers and devices.
    origins: frozenset[str] = frozenset()
    # Records a second and at once (burst), and records a UTC day; 0: no limit.
    rate: float = 0
    burst: int = 0
    daily: int = 0
    created_at: str = ""
    revoked_at: str = ""

    def allows_stream(self, stream: str) -> bool:
        """Whether it may write to the stream."""
        return not self.streams or stream in self.streams


def digest(secret: str) -> bytes:
    """What is kept of a secret."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def new_secret() -> str:
    """160 random bits, 32 letters and digits behind a prefix that scanners for leaked keys know."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
    return "hr_" + "".join(secrets.choice(alphabet) for _ in range(32))


def from_entry(entry: object, who: str) -> Key:
    """An entry of the file as a Key, every field checked; `who` is what an error calls it."""
    if not isinstance(entry, dict):
        raise KeyFileError(f"{who}: must be an object")
    unknown = sorted(entry.keys() - _CHECKS.keys())
    if unknown:
        raise KeyFileError(f"{who}: unknown field {unknown[0]!r}; known: {', '.join(_CHECKS)}")
    for name, (check, must) in _CHECKS.items():
        needed = name in ("id", "source", "sha256")
        if (needed or name in entry) and not check(entry.get(name)):
            raise KeyFileError(f"{who}: {name} must be {must}")
    if entry.get("burst") and not entry.get("rate"):
        raise KeyFileError(f"{who}: burst is how much of rate may come at once; give rate too")
    given = {name: entry[name] for name in _CHECKS if name in entry}
    given["hash"] = bytes.fromhex(given.pop("sha256"))
    given["streams"] = frozenset(given.get("streams", ()))
    given["origins"] = frozenset(map(plain_origin, given.get("origins", ())))
    return Key(**given)


def to_entry(key: Key) -> dict[str, object]:
    """The entry of a key; what is not set is left out."""
    entry: dict[str, object] = {"id": key.id, "source": key.source, "sha256": key.hash.hex()}
    for name in list(_CHECKS)[3:]:
        value = getattr(key, name)
        if value:
            entry[name] = sorted(value) if isinstance(value, frozenset) else value
    return entry


def plain_origin(origin: str) -> str:
    """As browsers send it: lower case, without the port that the scheme implies."""
    small = origin.lower().removesuffix("/")
    return small.removesuffix(":443" if small.startswith("https:") else ":80")


def called(entry: object, place: int) -> str:
    """What to call an entry in an error: by its id, if it is one and not perhaps the secret."""
    if isinstance(entry, dict) and _is_id(entry.get("id")):
        return f"key {entry['id']}"
    return f"entry {place} of keys"


def _is_id(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"k_[0-9a-z]{1,40}", value) is not None


def _list(value: object, each: Callable[[str], object]) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) and each(v) for v in value)


def _line(value: object) -> bool:
    return isinstance(value, str) and value.isprintable()


def _whole(value: object) -> bool:
    return type(value) is int and 0 <= value <= 10**15


# Each field of an entry in the order of the file: whether a value is one, and what it must be.
_CHECKS: Mapping[str, tuple[Callable[[Any], object], str]] = {
    "id": (
        _is_id,
        "k_ and up to 40 lower-case letters or digits",
    ),
    "source": (
        lambda v: isinstance(v, str) and _SOURCE.fullmatch(v) and v not in _TAKEN,
        "up to 63 of a-z, 0-9, dot, hyphen and underscore, beginning with a letter or digit, and "
        f"none of {', '.join(sorted(_TAKEN))}",
    ),
    "sha256": (
        lambda v: isinstance(v, str) and re.fullmatch(r"[0-9a-f]{64}", v),
        "64 hexadecimal digits, the SHA-256 of the secret",
    ),
    "account": (_line, "text on one line"),
    "streams": (lambda v: _list(v, _STREAM.fullmatch), "a list of names of streams"),
    "origins": (
        lambda v: _list(v, lambda o: _ORIGIN.fullmatch(plain_origin(o))),
        'a list of "https://host" or "https://host:port", without a path',
    ),
    "rate": (
        lambda v: type(v) in (int, float) and 0 <= v <= 1e9,  # NaN is not
        "records a second, from 0 (no limit) to 1e9",
    ),
    "burst": (_whole, "a whole number of records, 0 or more"),
    "daily": (_whole, "a whole number of records, 0 or more"),
    "created_at": (_line, "text on one line"),
    "revoked_at": (_line, "text on one line"),
}


def refuse_weak(secret: str) -> None:
    """What an attacker might guess is no key; what a header can't hold neither."""
    if not _SECRET.fullmatch(secret):
        raise KeyFileError(
            "the secret must be 20 to 200 visible ASCII characters without a colon (or spaces); "
            "leave --key-from-stdin away and one is made"
        )
    # Bits by the frequency of its characters, those of repeats not counted: finds what a hand typed
    # or repeated, not what is listed somewhere.
    share = [n / len(secret) for n in Counter(secret).values()]
    fresh = len({secret[i : i + 3] for i in range(len(secret) - 2)}) + 2
    if -sum(p * math.log2(p) for p in share) * fresh < _LEAST_BITS:
        raise KeyFileError(
            "the secret could be guessed: it has too few different characters, or repeats itself; "
            "leave --key-from-stdin away and one is made"
        )
