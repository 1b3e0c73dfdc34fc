"""The file of keys: who may send what, and how much. `headrace keys` writes it, collectors read it.

JSON, since a program writes it (and people may: `rate`, `origins` and the like can be edited by
hand). Rules:

* A secret is never in it, only its hash.
* It is replaced, never written into: a new file beside it, fsync, rename. A reader sees the old one
  or the new one. Mode 0600, or what it had without anything for others; its owner stays.
* Who changes it holds a lock on its directory, so that two `headrace keys add` keep both keys.
* A revoked key stays in it, with the time: its id is never used again, and its secret can't come
  back by being imported.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from ingest.collector.key import (
    Key,
    KeyFileError,
    called,
    digest,
    from_entry,
    refuse_weak,
    to_entry,
)

__all__ = ["add", "read", "revoke"]

_VERSION = 1
_LOCK_WAIT_S = 10.0


def read(path: Path) -> tuple[Key, ...]:
    """All keys of the file, revoked ones too. Raises KeyFileError."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise KeyFileError(
            f"{path} does not exist: make a first key with `headrace keys add SOURCE --keys {path}`"
        ) from None
    except OSError as error:
        raise KeyFileError(f"{path} can't be read: {error.strerror}") from error
    try:
        document = json.loads(text.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise KeyFileError(f"{path} is not JSON: {error.msg}, {where}") from None
    except (UnicodeDecodeError, RecursionError):
        raise KeyFileError(f"{path} is not JSON in UTF-8") from None
    if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
        raise KeyFileError(f'{path} must be an object with "version" and "keys", a list')
    if document.get("version") != _VERSION:
        raise KeyFileError(
            f"{path} has version {document.get('version')!r}; this Headrace reads {_VERSION}"
        )
    try:
        keys = tuple(from_entry(e, called(e, n)) for n, e in enumerate(document["keys"]))
    except KeyFileError as error:
        raise KeyFileError(f"{path}: {error}") from None
    ids = Counter(key.id for key in keys)
    hashes = Counter(key.hash for key in keys)
    for key in keys:
        if ids[key.id] > 1 or hashes[key.hash] > 1:
            raise KeyFileError(f"{path}: id or sha256 of key {key.id} is there twice; remove one")
    return keys


def add(path: Path, secret: str, entry: Mapping[str, object]) -> Key:
    """Put a key into the file, which is made where it is missing; `entry` without id and sha256.

    Returns once it is on disk. Raises KeyFileError, and changes nothing then.
    """
    refuse_weak(secret)

    def change(keys: tuple[Key, ...]) -> tuple[tuple[Key, ...], Key]:
        known = {key.id for key in keys}
        while (name := "k_" + secrets.token_hex(4)) in known:
            pass
        hashed = digest(secret)
        if any(key.hash == hashed for key in keys):
            raise KeyFileError(f"this secret is in {path} already, or was revoked; take another")
        made = {"id": name, "sha256": hashed.hex(), **entry, "created_at": _now()}
        key = from_entry(made, "the new key")
        return (*keys, key), key

    return _changed(path, change, may_be_missing=True)


def revoke(path: Path, key_id: str) -> Key:
    """Take a key's rights away; a key that has none is left as it is. Raises KeyFileError."""

    def change(keys: tuple[Key, ...]) -> tuple[tuple[Key, ...], Key]:
        for place, key in enumerate(keys):
            if key.id == key_id:
                gone = key if key.revoked_at else replace(key, revoked_at=_now())
                return (*keys[:place], gone, *keys[place + 1 :]), gone
        raise KeyFileError(
            f"there is no key {key_id!r} in {path}; `headrace keys ls` lists those there are "
            "(an id, not the secret, is asked for)"
            if key_id.startswith("k_")
            # Whatever else was typed may be a secret, and is not said again.
            else f"no such key in {path}: give its id, k_…, as `headrace keys ls` shows it"
        )

    return _changed(path, change, may_be_missing=False)


# -- the file --------------------------------------------------------------------------------------


def _changed(
    path: Path,
    change: Callable[[tuple[Key, ...]], tuple[tuple[Key, ...], Key]],
    *,
    may_be_missing: bool,
) -> Key:
    """Read, change and replace the file, one process at a time."""
    # A link stays a link: what it leads to is replaced.
    file = path.resolve()
    try:
        with _locked(file.parent):
            keys = () if may_be_missing and not file.exists() else read(file)
            after, key = change(keys)
            if after != keys:
                text = json.dumps(
                    {"version": _VERSION, "keys": list(map(to_entry, after))}, indent=2
                )
                _replace(file, text.encode() + b"\n")
            return key
    except OSError as error:
        raise KeyFileError(f"{path} can't be written: {error.strerror}") from error


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The lock on the directory: no file of its own, so none that another user can't open."""
    import fcntl  # there is none on Windows, where the rest of ingest works

    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        until = time.monotonic() + _LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise KeyFileError(
                        f"another process has been changing keys in {folder} for "
                        f"{_LOCK_WAIT_S:.0f} s; see what it waits for, then try again"
                    ) from None
                time.sleep(0.01)
        yield
    finally:
        os.close(handle)


def _replace(file: Path, content: bytes) -> None:
    """The new content on disk under the old name; the old owner, and no more rights than before."""
    old = file.stat() if file.exists() else None
    handle, name = tempfile.mkstemp(prefix=file.name + ".", dir=file.parent)  # mode 0600
    try:
        with os.fdopen(handle, "wb") as out:
            if old is not None:
                if (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()):
                    _keep_owner(out.fileno(), file, old)
                os.fchmod(out.fileno(), 0o600 | (old.st_mode & 0o040))
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _keep_owner(handle: int, file: Path, old: os.stat_result) -> None:
    """Else a key that root adds would be the last that the collector's user can read."""
    try:
        os.fchown(handle, old.st_uid, old.st_gid)
    except PermissionError:
        raise KeyFileError(
            f"{file} belongs to user {old.st_uid}; run this as that user or as root"
        ) from None


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
