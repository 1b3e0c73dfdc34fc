"""What a spool says when it can't keep its promise; each text tells an operator what to do.

They are PublishErrors: whoever embeds a spool in a Publisher catches what it catches without one.
"""

from __future__ import annotations

from ingest.delivery import PublishError

__all__ = [
    "Malformed", "SpoolClosed", "SpoolDamaged", "SpoolError", "SpoolFull", "SpoolInUse",
    "SpoolTaken",
]  # fmt: skip


class Malformed(Exception):
    """A row holds what nobody wrote; translated() in reader.py says in which file."""


class SpoolError(PublishError):
    """The spool can't do what was asked; nothing that it acknowledged is touched."""


class SpoolFull(SpoolError):
    """The records were not stored: the spool is at its limit, or its disk is full.

    Nothing of them was acknowledged. It passes by itself: once Kafka has taken what is there, or
    the disk has room, the same call succeeds.
    """


class SpoolClosed(SpoolError):
    """This user may not look into it, so nobody knows what waits there: not that nothing does."""


class SpoolInUse(SpoolError):
    """Another process has the spool open; one at a time may."""


class SpoolDamaged(SpoolError):
    """What is on disk is not what was written; `headrace spool fsck --repair` sets it aside."""


class SpoolTaken(SpoolError):
    """Another process sends this node's spool to Kafka; this one has stopped sending."""
