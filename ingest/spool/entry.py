"""What a relay says of a transaction, in that transaction: one record of the topic `headrace_edge`.

    node, first, end    whose records, and which numbers of its spool it is done with: [first, end).
                        Where fsck has cut some out there are fewer records than numbers
    stored              how many its spool had acknowledged by then; from `end` on they wait in it
    hour                in which they entered Kafka, by their timestamps there: hours since 1970
    sums                for each topic and source how many, and which

Kafka commits records and entry together, so of what is committed each record is in just one entry.
The numbers of a node's entries follow each other: what is missing between them was acknowledged and
never sent. docs/ledger.md has the whole of it.

Which records: the sum of the CRC-32 of their values, which anybody who reads the topic can add up
too, in any order. Of each it was made when the record came and stands in its frame (frames.py), so
it speaks of what was acknowledged, and the relay only adds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import orjson

__all__ = ["EDGE", "NOTHING", "RelayEntry", "RelaySum"]

EDGE = "headrace_edge"


class RelaySum(NamedTuple):
    """How many records, and the sum of the checksums of their values."""

    records: int
    hash: int

    def plus(self, other: RelaySum) -> RelaySum:
        return RelaySum(self.records + other.records, self.hash + other.hash)


NOTHING = RelaySum(0, 0)


@dataclass(frozen=True, slots=True)
class RelayEntry:
    """One transaction of a relay that moved over numbers; `sums` by topic and source."""

    node: str
    first: int
    end: int
    stored: int
    hour: int
    sums: Mapping[tuple[str, str], RelaySum]

    def pack(self) -> bytes:
        """The value of its record."""
        return orjson.dumps(
            {
                "node": self.node,
                "first": self.first,
                "end": self.end,
                "stored": self.stored,
                "hour": self.hour,
                "sums": [[*whose, *one] for whose, one in self.sums.items()],
            }
        )

    @classmethod
    def read(cls, value: bytes) -> RelayEntry:
        """The entry in a record's value. Raises ValueError where there is none."""
        match orjson.loads(value):
            case {
                "node": str(node), "first": int(first), "end": int(end), "stored": int(stored),
                "hour": int(hour), "sums": list(rows),
            }:  # fmt: skip
                sums = {(str(t), str(s)): RelaySum(int(n), int(h)) for t, s, n, h in rows}
                return cls(node, first, end, stored, hour, sums)
        raise ValueError(f"no entry of a relay: {value[:80]!r}")
