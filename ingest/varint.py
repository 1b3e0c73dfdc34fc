"""How protobuf writes a whole number, a length above all."""

from __future__ import annotations

__all__ = ["varint"]


def varint(value: int) -> bytes:
    """Base 128, the lowest seven bits first; of a number that isn't negative."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
