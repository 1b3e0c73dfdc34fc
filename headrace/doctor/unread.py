"""Streams of a database that nobody reads, as one check: one process lands all of them."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from shlex import quote

from headrace.config import Config
from headrace.doctor.check import Check, Verdict, fail, warn
from headrace.doctor.kafka import Topics
from headrace.readers import Standing
from headrace.words import counted, lasting
from ingest.topics import Retention

__all__ = ["unread_together"]


def unread_together(
    config: Config,
    name: str,
    judged: Sequence[tuple[Standing, Check]],
    found: Topics,
    group: str | None,
) -> list[Check]:
    """A database's streams, those that nobody reads as one: one command starts a process for them.

    A line for each would be as many commands, of which each starts a process for one stream.
    """
    unread = [(one, check) for one, check in judged if check.do == one.reader.start]
    if len(unread) < 2:
        return [check for _, check in judged]

    def left_s(pair: tuple[Standing, Check]) -> float:
        one, _ = pair
        kept_s = found.get(one.reader.stream.topic, Retention()).seconds
        if kept_s is None or one.oldest_ms is None:
            return math.inf
        return kept_s + one.oldest_ms / 1000

    streams = [one.reader.stream.name for one, _ in unread]
    behind = [one for one, _ in unread if one.behind]
    waits = "nothing waits"
    if behind:
        oldest_ms = min(one.oldest_ms for one in behind if one.oldest_ms is not None)
        offsets = sum(one.behind for one in behind)
        waits = (
            f"{counted(offsets, 'offset waits', 'offsets wait')} in {len(behind)} of them, the "
            f"oldest record for {lasting(max(0.0, time.time() - oldest_ms / 1000))}"
        )
    do = f"headrace insert --to {quote(name)}"
    if len(streams) < len(config.streams):
        do += "".join(f" --stream {one}" for one in streams)
    if group:
        do += f" --group {quote(group)}"
    text = f"nobody reads {len(streams)} streams: {', '.join(streams)}; {waits}"
    failed = any(check.verdict is Verdict.FAIL for _, check in unread)
    # Of those that Kafka removes first.
    safe = min(unread, key=left_s)[1].safe
    rest = [check for one, check in judged if check.do != one.reader.start]
    return [(fail if failed else warn)(name, text, do, safe), *rest]
