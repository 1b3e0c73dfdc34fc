"""Kafka: whether it answers, the streams' topics and how long they keep records, dead letters."""

from __future__ import annotations

import time
from collections.abc import Mapping

from confluent_kafka.admin import AdminClient

from consumers.bounds import bounds
from consumers.client import QUIET
from consumers.dlq.letters import Letters, Wanted
from consumers.held import held
from headrace.config import Config
from headrace.doctor.check import Check, fail, ok, warn
from headrace.words import counted, lasting
from ingest.streams import BUILT_IN, Stream
from ingest.topics import TopicError, retentions, topic_ids

__all__ = ["Topics", "answers", "dead_letters", "judge_letters", "topics", "transactions"]

_ASK_S = 10.0
# Whose records are kept for less can be lost within one night.
_NIGHT_S = 24 * 3600.0
# More dead letters than this are not read through to see which are settled.
_MOST_LETTERS = 50_000
# A relay's transaction takes less.
_OPEN_S = 15.0
# Of the time that a topic keeps a record: what has waited for longer is in danger.
IN_DANGER = 0.75

# How long each topic that exists keeps its records, in seconds; None: for ever.
Topics = Mapping[str, float | None]


def answers(config: Config) -> tuple[Check, Topics | None]:
    """Whether Kafka answers; then its topics of the streams, None if not."""
    name, where = "kafka", config.kafka.get("bootstrap.servers")
    wanted = [topic for stream in config.streams.values() for topic in (stream.topic, stream.dlq)]
    try:
        found = retentions(config.kafka, topic_ids(config.kafka, wanted))
        brokers = len(AdminClient({**QUIET, **config.kafka}).list_topics(timeout=_ASK_S).brokers)
    except TopicError as error:
        safe = "yes, collectors go on and keep on disk what they acknowledge; nothing lands"
        do = "headrace status    # of the local stack; else the brokers' own log"
        return fail(name, str(error), do, safe), None
    few = ""
    if brokers < 3:
        few = ". So few must not be Kafka 4.3 or 4.4, see Which Kafka in docs/operating.md"
    return ok(name, f"{where} answers, {counted(brokers, 'broker')}{few}"), found


def topics(config: Config, found: Topics) -> list[Check]:
    """The topics of the streams."""
    streams = list(config.streams.values())
    there = [stream for stream in streams if stream.topic in found]
    if not there:
        return [fail("topics", "no stream has a topic", "headrace migrate",
                     "yes, publishers are refused, and keep what they have")]  # fmt: skip
    checks = [check for stream in streams if (check := _topic(stream, found))]
    kept = sorted({_kept(found[stream.topic]) for stream in there})
    have = counted(len(there), "stream has", "streams have")
    return checks or [ok("topics", f"{have} topics, which keep records for {' or '.join(kept)}")]


def _topic(stream: Stream, found: Topics) -> Check | None:
    """What is wrong with those of a stream; built-in ones that nobody has made are not in use."""
    make = f"headrace migrate --stream {stream.name}"
    if stream.topic not in found:
        if stream is BUILT_IN.get(stream.name):
            return None
        text = f"{stream.topic} of the stream {stream.name} does not exist"
        safe = "yes, publishers are refused, and a collector keeps what it took in its spool"
        return warn("topics", text, make, safe)
    if stream.dlq not in found:
        text = f"{stream.dlq} does not exist, without which no inserter of {stream.name} starts"
        return fail("topics", text, make, "yes, records wait in Kafka")
    kept_s = found[stream.topic]
    if kept_s is not None and kept_s < _NIGHT_S:
        text = f"{stream.topic} keeps records for {lasting(kept_s)} only, landed or not"
        safe = f"for {lasting(kept_s)} from when it was published"
        return warn("topics", text, lengthen(stream.topic), safe)
    return None


def transactions(config: Config, found: Topics) -> list[Check]:
    """Whether one is open for longer than ours are; to who reads, nothing waits behind it."""
    stuck = held(config.kafka, found.keys(), _OPEN_S)
    if not stuck:
        return [ok("transactions", "none holds anything back")]
    what = f"{counted(sum(stuck.values()), 'offset')} of {', '.join(map(str, sorted(stuck)))}"
    text = f"{what} can't be read: a transaction has been open for {_OPEN_S:g} s at least"
    do = "kafka-transactions.sh --bootstrap-server HOST:PORT find-hanging --broker-id 1"
    safe = "yes, they are in Kafka; if it does not end: Which Kafka in docs/operating.md"
    return [warn("transactions", text, do, safe)]


def lengthen(topic: str) -> str:
    """The command that keeps a topic's records for longer."""
    return (
        "kafka-configs.sh --bootstrap-server HOST:PORT --alter --entity-type topics "
        f"--entity-name {topic} --add-config retention.ms=1209600000"
    )


def dead_letters(config: Config, found: Topics) -> list[Check]:
    """What could not land, by stream."""
    checks = [
        check
        for stream in config.streams.values()
        if stream.dlq in found and (check := _letters(config, stream, found[stream.dlq]))
    ]
    return checks or [ok("dead letters", "none")]


def _letters(config: Config, stream: Stream, kept_s: float | None) -> Check | None:
    spans = bounds(config.kafka, stream.dlq).spans.values()
    most = sum(end - start for start, end in spans)
    if most > _MOST_LETTERS:
        return judge_letters(stream, most, None, kept_s, time.time())
    number, oldest_ms = 0, None
    for letter in Letters(config.kafka, stream).open(Wanted()) if most else ():
        number += 1
        oldest_ms = min(oldest_ms or letter.attempted_ms, letter.attempted_ms)
    return judge_letters(stream, number, oldest_ms, kept_s, time.time())


def judge_letters(
    stream: Stream, number: int, oldest_ms: int | None, kept_s: float | None, now_s: float
) -> Check | None:
    """`oldest_ms` is when the first one was sent; None: they are too many to look through."""
    if not number:
        return None
    name, do = f"dead letters {stream.name}", f"headrace dlq ls {stream.name}"
    if oldest_ms is None:
        text = f"about {counted(number, 'record')} could not land, those since redriven included"
        return warn(name, text, do, f"yes, whole in {stream.dlq}, for {_kept(kept_s)}")
    age_s = now_s - oldest_ms / 1000
    text = f"{counted(number, 'record')} could not land, the first {lasting(age_s)} ago"
    if kept_s is not None and age_s > kept_s * IN_DANGER:
        text += f": Kafka removes it in {lasting(kept_s - age_s)}, and it is the only copy"
        return fail(name, text, do, f"for {lasting(kept_s - age_s)}; then not")
    return warn(name, text, do, f"yes, whole in {stream.dlq}, for {_kept(kept_s)}; all else lands")


def _kept(seconds: float | None) -> str:
    return "ever" if seconds is None else lasting(seconds)
