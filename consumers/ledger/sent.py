"""What relays say that they sent, added up: the half of edge.py that needs no Kafka."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from confluent_kafka import Message

from consumers.errors import Systemic
from consumers.ledger.accepted import Key
from ingest.spool.entry import EDGE, NOTHING, RelayEntry, RelaySum

__all__ = ["entry_of", "folded", "total"]


def folded(
    entries: Sequence[RelayEntry],
    ids: Mapping[str, str],
    known: Mapping[Key, Sequence[int]],
    sent_before: Mapping[Key, Sequence[int]],
    gaps_before: Mapping[Key, Sequence[int]],
) -> dict[str, dict[Key, Sequence[int]]]:
    """What these notes make of the book: `known` is how far each node is, `ids` the topics'."""
    sent: dict[Key, Sequence[int]] = {}
    nodes: dict[Key, Sequence[int]] = {}
    gaps: dict[Key, Sequence[int]] = {}
    hours: dict[Key, Sequence[int]] = {}
    for entry in entries:
        for (topic, source), one in entry.sums.items():
            key: Key = (topic, ids.get(topic, ""), entry.hour, source)
            before = sent.get(key) or sent_before.get(key, NOTHING)
            sent[key] = one.plus(RelaySum(*before))
        node: Key = (entry.node,)
        # Of a node that was not heard of before nobody knows where it began.
        following = (nodes.get(node) or known.get(node) or (entry.first,))[0]
        records = total(entry.sums.values()).records
        missing = max(0, entry.first - following) + entry.end - entry.first - records
        twice = max(0, min(following, entry.end) - entry.first)
        end = max(following, entry.end)
        nodes[node] = [end, max(end, entry.stored)]
        hours["hour", entry.node] = [entry.hour]
        if missing or twice:
            place: Key = (entry.node, entry.hour)
            gap = gaps.get(place) or gaps_before.get(place, (0, 0))
            gaps[place] = [gap[0] + missing, gap[1] + twice]
    return {"sent": sent, "node": nodes, "gap": gaps, "heard": hours}


def total(sums: Iterable[RelaySum]) -> RelaySum:
    """All of them together."""
    found = NOTHING
    for one in sums:
        found = found.plus(one)
    return found


def entry_of(message: Message) -> RelayEntry:
    """The entry that a message holds. Raises Systemic where it is none."""
    try:
        return RelayEntry.read(message.value() or b"")
    except (ValueError, TypeError) as error:
        raise Systemic(
            f"the topic {EDGE} holds a record at {message.offset()} that is no relay's; was it "
            "written by a newer headrace?"
        ) from error
