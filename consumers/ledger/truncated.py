"""A Kafka that has lost what was counted of it: what an audit says then."""

from __future__ import annotations

from consumers.batch import Partition

__all__ = ["Overwritten", "Truncated"]

_READ_ANEW = (
    "What is written there now would be taken for counted. Delete the topic and make it anew with "
    "`headrace migrate`: that is noticed, and read from its start. What it holds goes with it, so "
    "copy first what has not landed everywhere, and publish that again"
)


class Truncated(Exception):
    """A log ends below what was counted of it: see the text, of which Kafka is the subject."""

    def __init__(self, partition: Partition, counted: int, end: int, then: str = "") -> None:
        """`then`: what follows, and what to do, if not what holds of a stream's topic."""
        super().__init__(
            f"has lost records that it had acknowledged: {partition} was counted up to {counted}, "
            f"but its log ends at {end} (an unclean leader election, a restore from a backup?). "
            + (then or _READ_ANEW)
        )


class Overwritten(Truncated):
    """The same, but that others were written in their place since, so that no end tells of it."""

    def __init__(self, partition: Partition, counted: int, at: int) -> None:
        Exception.__init__(
            self,
            "has lost records that it had acknowledged, and has others in their place: "
            f"{partition} was counted up to {counted}, but what is at {at} now was written by a "
            "later leader (an unclean leader election?). It was taken for counted, and for landed "
            "by whoever had landed as much: `headrace audit --deep` names it and says how to put "
            "it back. Then delete the topic and make it anew with `headrace migrate`",
        )
