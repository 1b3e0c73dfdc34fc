"""A disk that forgets what was not synced: SQLite's writes and syncs, recorded and played back.

`recorded` puts itself between SQLite and the file system, as its default VFS: the system's own, whose
writes, truncations and syncs are written down on their way (through ctypes, in the library that
Python's sqlite3 uses, so that nothing has to be installed). `Journal.cut` makes the files as they may
be after a power cut at any moment:

* what was written before the last sync of its file is there;
* of what came after it each write is there, not there, or torn at a sector, whichever;
* names of files are durable once they were made (Store syncs the directory).

With `Journal.fails` the disk is one that also refuses writes and syncs.

What SQLite maps into memory (the -shm file) is not on a disk, and nothing is recovered from it.
"""  # noqa: E501

from __future__ import annotations

import ctypes
import random
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import CFUNCTYPE, POINTER, Structure, c_char_p, c_int, c_int64, c_void_p
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Journal", "NoShim", "Step", "recorded"]

SECTOR = 512
# SQLITE_OK, SQLITE_IOERR_WRITE, SQLITE_IOERR_FSYNC
_OK, _NOT_WRITTEN, _NOT_SYNCED = 0, 10 | 3 << 8, 10 | 4 << 8


class NoShim(Exception):
    """The library behind sqlite3 does not give out the functions that this needs."""


@dataclass(frozen=True, slots=True)
class Step:
    """`kind` is write, truncate, sync or delete of a file, or answer."""

    kind: str
    path: str = ""
    at: int = 0
    data: bytes = b""
    what: Any = None


@dataclass
class Journal:
    """What happened, in order."""

    folder: Path
    steps: list[Step] = field(default_factory=list)
    # Whether the disk refuses the next write or sync.
    fails: Callable[[], bool] = lambda: False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, step: Step) -> None:
        """From any thread."""
        if not step.path or Path(step.path).is_relative_to(self.folder):
            with self._lock:
                self.steps.append(step)

    def answer(self, what: Any) -> None:
        """Somebody was told."""
        self.note(Step("answer", what=what))

    def answered(self, moment: int) -> list[Any]:
        """What had been answered by then."""
        return [s.what for s in self.steps[:moment] if s.kind == "answer"]

    def cut(self, moment: int, chance: random.Random, into: Path) -> None:
        """The files after a power cut behind so many steps."""
        files: dict[str, bytearray] = {}
        unsynced: dict[str, list[Step]] = defaultdict(list)
        for step in self.steps[:moment]:
            match step.kind:
                case "write" | "truncate":
                    files.setdefault(step.path, bytearray())
                    unsynced[step.path].append(step)
                case "sync":
                    for done in unsynced.pop(step.path, []):
                        _apply(files[step.path], done)
                case "delete":
                    files.pop(step.path, None)
                    unsynced.pop(step.path, None)
        for path, steps in unsynced.items():
            # A disk may keep everything, nothing, or what it likes.
            share = chance.choice([0.0, 1.0, chance.random()])
            for step in steps:
                if chance.random() < share:
                    _apply(files[path], step)
                elif step.kind == "write" and chance.random() < 0.5:
                    _apply_torn(files[path], step, chance)
        into.mkdir(parents=True, exist_ok=True)
        for path, content in files.items():
            (into / Path(path).name).write_bytes(content)


def _apply(content: bytearray, step: Step) -> None:
    if step.kind == "truncate":
        del content[step.at :]
        content.extend(bytes(step.at - len(content)))
        return
    content.extend(bytes(max(0, step.at + len(step.data) - len(content))))
    content[step.at : step.at + len(step.data)] = step.data


def _apply_torn(content: bytearray, step: Step, chance: random.Random) -> None:
    for start in range(0, len(step.data), SECTOR):
        if chance.random() < 0.5:
            part = step.data[start : start + SECTOR]
            _apply(content, Step("write", step.path, step.at + start, part))


# -- between SQLite and the file system

_CLOSE = CFUNCTYPE(c_int, c_void_p)
_WRITE = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64)
_TRUNCATE = CFUNCTYPE(c_int, c_void_p, c_int64)
_SYNC = CFUNCTYPE(c_int, c_void_p, c_int)
# The name as an address: SQLite keeps it as long as the file is open, and so does its VFS.
_OPEN = CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_int, c_void_p)
_DELETE = CFUNCTYPE(c_int, c_void_p, c_char_p, c_int)


class _Methods(Structure):
    """sqlite3_io_methods, version 3 (sqlite3.h)."""

    _fields_ = [
        ("version", c_int),
        ("close", _CLOSE),
        ("read", c_void_p),
        ("write", _WRITE),
        ("truncate", _TRUNCATE),
        ("sync", _SYNC),
        ("rest", c_void_p * 13),
    ]  # fmt: skip


class _File(Structure):
    """sqlite3_file; what the system's VFS keeps lies behind it."""

    _fields_ = [("methods", POINTER(_Methods))]


class _Vfs(Structure):
    """sqlite3_vfs, version 3."""

    _fields_ = [
        ("version", c_int),
        ("file_size", c_int),
        ("longest_path", c_int),
        ("next", c_void_p),
        ("name", c_char_p),
        ("data", c_void_p),
        ("open", _OPEN),
        ("delete", _DELETE),
        ("rest", c_void_p * 14),
    ]  # fmt: skip


@contextmanager
def recorded(folder: Path) -> Iterator[Journal]:
    """Record what SQLite does to the files of a folder that are opened within. Raises NoShim.

    Connections that were opened within are to be closed within.
    """
    journal = Journal(folder.resolve())
    library, base = _library()
    shim = _Recorder(base, journal)
    if library.sqlite3_vfs_register(ctypes.byref(shim.vfs), 1) != _OK:
        raise NoShim("sqlite3_vfs_register")
    try:
        yield journal
    finally:
        library.sqlite3_vfs_unregister(ctypes.byref(shim.vfs))
        library.sqlite3_vfs_register(ctypes.byref(base), 1)


def _library() -> tuple[Any, _Vfs]:
    import _sqlite3

    try:
        library: Any = ctypes.CDLL(_sqlite3.__file__)
        find = library.sqlite3_vfs_find
        register, unregister = library.sqlite3_vfs_register, library.sqlite3_vfs_unregister
    except (AttributeError, OSError) as error:
        raise NoShim(f"Python's sqlite3 does not give out its library's functions: {error}") from (
            error
        )
    find.argtypes, find.restype = [c_char_p], POINTER(_Vfs)
    register.argtypes, unregister.argtypes = [POINTER(_Vfs), c_int], [POINTER(_Vfs)]
    found = find(None)
    if not found or found.contents.version < 3:
        raise NoShim("SQLite's VFS is another one than this knows")
    return library, found.contents


class _Recorder:
    """A copy of the system's VFS, whose files write down what they do before it is done."""

    def __init__(self, base: _Vfs, journal: Journal) -> None:
        self._base = base
        self._journal = journal
        # By address of a file: its path, and the methods that it would have.
        self._open: dict[int, tuple[str, _Methods]] = {}
        # One for each kind of file (the system has several), kept as long as SQLite may use it.
        self._patched: dict[int, _Methods] = {}
        self.vfs = _Vfs.from_buffer_copy(base)
        self.vfs.name = b"recorded"
        self.vfs.open = _OPEN(self._on_open)
        self.vfs.delete = _DELETE(self._on_delete)

    def _on_open(self, vfs: int, name: int | None, file: int, flags: int, out: int | None) -> int:
        # The system's own looks into its VFS for nothing that differs in ours.
        code: int = self._base.open(ctypes.addressof(self._base), name, file, flags, out)
        if code == _OK and name is not None:
            head = _File.from_address(file)
            kind = ctypes.addressof(head.methods.contents)
            real = head.methods.contents
            self._open[file] = (ctypes.string_at(name).decode(), real)
            if kind not in self._patched:
                ours = _Methods.from_buffer_copy(real)
                ours.close = _CLOSE(self._on_close)
                ours.write = _WRITE(self._on_write)
                ours.truncate = _TRUNCATE(self._on_truncate)
                ours.sync = _SYNC(self._on_sync)
                self._patched[kind] = ours
            head.methods = ctypes.pointer(self._patched[kind])
        return code

    def _on_delete(self, vfs: int, name: bytes, sync: int) -> int:
        code: int = self._base.delete(ctypes.addressof(self._base), name, sync)
        if code == _OK:
            self._journal.note(Step("delete", name.decode()))
        return code

    def _on_close(self, file: int) -> int:
        _, real = self._open.pop(file)
        code: int = real.close(file)
        return code

    def _on_write(self, file: int, data: int, size: int, at: int) -> int:
        path, real = self._open[file]
        if self._journal.fails():
            return _NOT_WRITTEN
        self._journal.note(Step("write", path, at, ctypes.string_at(data, size)))
        code: int = real.write(file, data, size, at)
        return code

    def _on_truncate(self, file: int, size: int) -> int:
        path, real = self._open[file]
        self._journal.note(Step("truncate", path, size))
        code: int = real.truncate(file, size)
        return code

    def _on_sync(self, file: int, flags: int) -> int:
        path, real = self._open[file]
        if self._journal.fails():
            return _NOT_SYNCED
        code: int = real.sync(file, flags)
        if code == _OK:
            self._journal.note(Step("sync", path))
        return code
