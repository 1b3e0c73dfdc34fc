"""What the end of the program, and a fork, do with the Sparrows that are open."""

from __future__ import annotations

import atexit
import os
import sys
import weakref
from typing import Protocol

__all__ = ["add", "be_told", "leave_to_parent", "remove"]


class Closable(Protocol):
    """What is needed of a Sender."""

    def begin_close(self) -> None: ...
    def await_close(self) -> None: ...
    def close(self) -> None: ...
    def after_fork(self) -> None: ...


_open: weakref.WeakSet[Closable] = weakref.WeakSet()
# Spools of the parent, which nothing here may close.
_inherited: list[object] = []
# The last process that was made to tell of its end.
_told = 0
# Behind what multiprocessing does itself at the end of a child, as waiting for its queues.
_LAST = -100


def add(sender: Closable) -> None:
    """It is closed at exit, and told of a fork."""
    _open.add(sender)


def remove(sender: Closable) -> None:
    """It is closed."""
    _open.discard(sender)


def leave_to_parent(spool: object) -> None:
    """Keep it from being collected, which would close it."""
    _inherited.append(spool)


def be_told() -> None:
    """Make sure that the end of this process closes what is open.

    A child of multiprocessing ends without atexit: it has finalizers of its own, which it forgets
    when it begins. So this is for when there is something to send.
    """
    global _told  # noqa: PLW0603 (once in a process)
    if _told == os.getpid() or "multiprocessing.process" not in sys.modules:
        return
    from multiprocessing import parent_process

    if parent_process() is not None:
        from multiprocessing.util import Finalize

        Finalize(None, _at_exit, exitpriority=_LAST)
        _told = os.getpid()


def _all() -> list[Closable]:
    while True:
        try:
            return list(_open)
        except RuntimeError:
            pass  # a thread has ended one, or made one, in the middle


@atexit.register
def _at_exit() -> None:
    """All at once: the time is one for all.

    Each has a thread that sends, and needs none to be closed: since Python 3.12 none can be started
    here.
    """
    senders = _all()
    for sender in senders:
        sender.begin_close()
    for sender in senders:
        sender.await_close()
    # What hangs has been broken off, and has the same second for it.
    for sender in senders:
        sender.close()


def _in_child() -> None:
    for sender in _all():
        sender.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
