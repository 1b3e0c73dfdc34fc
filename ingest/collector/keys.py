"""Who sends: from what a request presents to a Key, as the file of keys says at this moment.

* A secret is looked up by its SHA-256. A table's timing tells nothing of use: Python's hash of
  bytes has a random seed in each process, and who does not know a secret can't choose its SHA-256.
  What is found is compared in constant time nevertheless.
* The file is looked at once a second at most, by whoever asks then, and read again when it changed:
  about 1 ms for 100 keys. So a revoked key stops a second after `headrace keys revoke` at the
  latest.
* A file that can't be read leaves the keys as they were: a typo must not lock everyone out. It is
  said once in the log, and in `broken` for as long as it lasts.
* Of a key only its id is ever said.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from ingest.collector.events import without_halves
from ingest.collector.key import Key, KeyFileError, digest
from ingest.collector.keyfile import read

__all__ = ["Key", "KeyFileError", "Keys", "presented_key", "write_key"]

_LOG = logging.getLogger(__name__)
_LOOK_EVERY_S = 1.0
# Longer is no key of ours: not hashed.
_MOST = 256


class Keys:
    """The keys of a file. For one thread; every method is cheap enough for an event loop."""

    def __init__(self, path: Path, *, now: Callable[[], float] = time.monotonic) -> None:
        """Read the file. Raises KeyFileError where that fails: at the start, that ends it."""
        self.path = path
        # What is wrong with the file as it is now; None while it is good.
        self.broken: str | None = None
        self._now = now
        self._seen = _signature(path)
        self._look_at = now() + _LOOK_EVERY_S
        self._take(read(path))

    def find(self, presented: str) -> Key | None:
        """The key with this secret; None where there is none or it was revoked."""
        if self._now() >= self._look_at:
            self._look()
        if len(presented) > _MOST:
            return None
        hashed = digest(presented)
        key = self._by_hash.get(hashed)
        return key if key is not None and hmac.compare_digest(key.hash, hashed) else None

    def origins(self) -> frozenset[str]:
        """The origins of all keys: a preflight comes without a key."""
        if self._now() >= self._look_at:
            self._look()
        return self._origins

    def problem(self) -> str | None:
        """What is wrong with the file, for /readyz; None while it is as it is read here."""
        if self._now() >= self._look_at:
            self._look()
        return self.broken

    def __len__(self) -> int:
        return len(self._by_hash)

    def _look(self) -> None:
        self._look_at = self._now() + _LOOK_EVERY_S
        seen = _signature(self.path)
        if seen == self._seen:
            return
        # Before reading: what is written meanwhile is a change that the next look finds.
        self._seen = seen
        try:
            self._take(read(self.path))
        except KeyFileError as error:
            if isinstance(error.__cause__, OSError):
                # Not the file's fault, perhaps (EMFILE): it may be readable as it is.
                self._seen = ()
            if str(error) != self.broken:
                _LOG.error("%s; the keys of before stay, also those revoked since", error)
            self.broken = str(error)
            return
        self.broken = None
        _LOG.info("%s was read anew: %d keys", self.path, len(self))

    def _take(self, keys: Iterable[Key]) -> None:
        good = [key for key in keys if not key.revoked_at]
        self._by_hash = {key.hash: key for key in good}
        self._origins = frozenset(origin for key in good for origin in key.origins)


def _signature(path: Path) -> tuple[int, ...] | None:
    """What changes when the file does: a new file has another inode, one that was edited a time."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


# -- what a request presents -----------------------------------------------------------------------


def presented_key(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The key of `Authorization`: Bearer, or Basic's user name (Segment's write key; its password
    is empty and not looked at). None where there is none, or two, or it can't be read.

    `headers` as ASGI has them, names in lower case. A key in the address is not taken: addresses
    end in the logs of proxies and in the history of browsers.
    """
    found = [value for name, value in headers if name == b"authorization"]
    if len(found) != 1:
        return None
    scheme, _, rest = found[0].partition(b" ")
    rest = rest.strip()
    if not rest or len(rest) > 2 * _MOST:
        return None
    match scheme.lower():
        case b"bearer":
            return rest.decode("latin-1")
        case b"basic":
            try:
                pair = base64.b64decode(rest, validate=True)
            except binascii.Error:
                return None
            return pair.partition(b":")[0].decode("latin-1") or None
    return None


class _Body(msgspec.Struct):
    writeKey: str | None = None  # as Segment writes it


_BODY = msgspec.json.Decoder(_Body)


def write_key(body: bytes) -> str | None:
    """The body's `writeKey`, where it is a JSON object that has one; never raises."""
    # A name may be escaped, too.
    if b'"writeKey"' not in body and b"\\u" not in body:
        return None
    try:
        try:
            return _BODY.decode(body).writeKey
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            # What a door takes nevertheless, see Body in events.py.
            shown = without_halves(body)
            return None if shown is body else _BODY.decode(shown).writeKey
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None  # the door says what is wrong with the body
