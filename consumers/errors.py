"""The kinds of failure, shared by all sinks. An error tells the runner what to do next.

undecodable   a message that is not what its stream says      dead letter (no class: decoding
                                                              returns them, it does not raise)
Rejected      the destination refuses some rows               bisect, dead-letter just those
Unavailable   the destination is away                         the same batch again, backing off
Systemic      misconfigured, schema missing, no permission    stop; dead-letter nothing
Fenced        another writer has moved this position          forget the batch, ask again where
                                                              to resume
Moved         the sink itself has                             the same, and no cause for a word
"""

from __future__ import annotations

__all__ = ["Fenced", "Lost", "Moved", "Rejected", "SinkError", "Systemic", "Unavailable"]


class SinkError(Exception):
    """What a sink may raise; anything else is a bug and crashes the process uncommitted."""


class Rejected(SinkError):
    """The destination refuses the batch because of its rows; nothing of it was written.

    `rows` maps the index of each row known to be at fault to the reason; empty when the destination
    does not say which, and the runner has to find them by halving.
    """

    def __init__(self, reason: str, rows: dict[int, str] | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.rows = rows or {}


class Unavailable(SinkError):
    """The destination is away or overloaded; the same batch may succeed later.

    Whether this batch was written is unknown: the sink finds out before it writes it again.
    """


class Systemic(SinkError):
    """No retry will help: a person has to change something, and the text says what."""


class Lost(Systemic):
    """Retention removed records before they landed."""


class Fenced(SinkError):
    """The position that this batch starts at has been moved by another writer; nothing was written."""  # noqa: E501


class Moved(Fenced):
    """The sink has gone on elsewhere with this partition; nothing was written."""
