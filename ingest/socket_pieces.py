"""What one end of the unix socket has received and what makes no whole event yet."""

from __future__ import annotations

__all__ = ["Pieces", "ProtocolError"]


class ProtocolError(Exception):
    """The other side does not keep to the protocol; the connection is of no more use."""


class Pieces:
    """Bytes that wait for more. It knows nothing of what they mean.

    `needed` is how many there must be before anything can be read: so pieces are put together once,
    however small they are.
    """

    def __init__(self) -> None:
        self.needed = 1
        self._kept = bytearray()
        self._error: ProtocolError | None = None

    def __len__(self) -> int:
        """Bytes that are kept."""
        return len(self._kept)

    def open(self, data: bytes) -> bytes:
        """All that is there and not read; b"" while that is no use. Raises what broken() made."""
        if self._error is not None:
            raise self._error
        if not self._kept:
            if len(data) >= self.needed:
                return data
            self._kept += data
            return b""
        self._kept += data
        if len(self._kept) < self.needed:
            return b""
        data = bytes(self._kept)
        self._kept.clear()
        return data

    def keep(self, rest: bytes) -> None:
        """What of the opened could not be read."""
        self._kept += rest

    def broken(self, why: str) -> ProtocolError:
        """An error to raise, from now on always."""
        self._error = ProtocolError(why)
        self._kept.clear()
        return self._error

    def end(self) -> None:
        """The other side sends nothing more. Raises ProtocolError where it broke off."""
        if self._error is not None:
            raise self._error
        if self._kept:
            raise self.broken("the connection ended in the middle of something")
