"""Kafka: whether it answers, the streams' topics and how long they keep records, dead letters."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

from confluent_kafka.admin import AdminClient

from consumers.behind import waiting
from consumers.bounds import bounds
from consumers.client import QUIET
from consumers.dlq.letters import Letters, Wanted
from consumers.held import held
from headrace.config import Config
from headrace.doctor.check import Check, fail, ok, warn
from headrace.doctor.retention import as_long, in_danger, kept, left, lengthen, uncompacted
from headrace.words import counted, lasting
from ingest.streams import BUILT_IN, Stream
from ingest.topics import Retention, TopicError, retentions, topic_ids

__all__ = [
    "Topics", "answers", "dead_letters", "judge_letters", "receipts_of", "topics", "transactions",
]  # fmt: skip

_ASK_S = 10.0
# Whose records are kept for less can be lost within one night.
_NIGHT_S = 24 * 3600.0
# More dead letters than this are not read through to see which are settled.
_MOST_LETTERS = 50_000
# A relay's transaction takes less.
_OPEN_S = 15.0

# What each topic that exists keeps.
Topics = Mapping[str, Retention]


def answers(config: Config) -> tuple[Check, Topics | None, Config]:
    """Whether Kafka answers; then its topics of the streams, None if not.

    The configuration is without the built-in streams whose topics Kafka does not let us see: who
    has no ACL on them does not use them, no more than those that nobody has made.
    """
    name, where = "kafka", config.kafka.get("bootstrap.servers")
    try:
        seen, ids = _seen(config)
        found = retentions(config.kafka, ids)
        brokers = len(AdminClient({**QUIET, **config.kafka}).list_topics(timeout=_ASK_S).brokers)
    except TopicError as error:
        safe = "yes, collectors go on and keep on disk what they acknowledge; nothing lands"
        do = "headrace status    # of the local stack; else the brokers' own log"
        return fail(name, str(error), do, safe), None, config
    text = f"{where} answers, {counted(brokers, 'broker')}"
    if unseen := sorted(config.streams.keys() - seen.streams.keys()):
        text += f"; it does not let us see the topics of {', '.join(unseen)}: not looked at"
    if brokers < 3:
        text += ". So few must not be Kafka 4.3 or 4.4, see Which Kafka in docs/operating.md"
    return ok(name, text), found, seen


def _seen(config: Config) -> tuple[Config, dict[str, str]]:
    """Without the built-in streams that Kafka does not let us see; ids of the others' topics."""
    wanted = [topic for stream in config.streams.values() for topic in (stream.topic, stream.dlq)]
    try:
        return config, topic_ids(config.kafka, wanted)
    except TopicError as error:
        seen = {
            name: stream
            for name, stream in config.streams.items()
            if stream is not BUILT_IN.get(name) or stream.topic not in error.topics
        }
        if len(seen) == len(config.streams):
            raise
    return _seen(replace(config, streams=seen))


def topics(config: Config, found: Topics) -> list[Check]:
    """The topics of the streams."""
    streams = list(config.streams.values())
    there = [stream for stream in streams if stream.topic in found]
    if not there:
        return [fail("topics", "no stream has a topic", "headrace migrate",
                     "yes, publishers are refused, and keep what they have")]  # fmt: skip
    asked = (_topic(config, stream, found) for stream in streams)
    checks = [check for check in (*asked, _receipts(config, found)) if check]
    times = sorted({kept(found[stream.topic]) for stream in there})
    have = counted(len(there), "stream has", "streams have")
    return checks or [ok("topics", f"{have} topics, which keep records for {' or '.join(times)}")]


def receipts_of(config: Config, stream: Stream, found: Topics) -> tuple[str, Retention] | None:
    """The topic that is to keep receipts for as long as this stream's keeps events."""
    receipts = config.streams.get("receipts")
    if stream.name != "raw_events" or receipts is None or receipts.topic not in found:
        return None
    return receipts.topic, found[receipts.topic]


def _receipts(config: Config, found: Topics) -> Check | None:
    """Whether they are there for as long as what they are about."""
    stream = config.streams.get("raw_events")
    if not config.vendors or stream is None or stream.topic not in found:
        return None
    receipts = receipts_of(config, stream, found)
    if receipts is None or not (do := as_long(*receipts, found[stream.topic])):
        return None
    text = (
        f"{receipts[0]} keeps receipts for {kept(receipts[1])}, and {stream.topic} events for "
        f"{kept(found[stream.topic])}: of those in between nobody can tell what a vendor has had"
    )
    safe = "yes, but the audit can't judge them, and `headrace replay --only-missing` refuses them"
    return warn("topics", text, do, safe)


def _topic(config: Config, stream: Stream, found: Topics) -> Check | None:
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
    for topic in (stream.topic, stream.dlq):
        if found[topic].compacted:
            text = f"{topic} is compacted: of records with one key only the newest stays"
            safe = "no, the others go, landed or not; headrace audit says what is missing"
            return fail("topics", text, uncompacted(topic), safe)
    limits = found[stream.topic]
    if limits.seconds is not None and limits.seconds < _NIGHT_S:
        text = f"{stream.topic} keeps records for {lasting(limits.seconds)} only, landed or not"
        safe = f"for {kept(limits)} from when it was published"
        do = lengthen(stream.topic, limits, receipts_of(config, stream, found))
        return warn("topics", text, do, safe)
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


def dead_letters(config: Config, found: Topics) -> list[Check]:
    """What could not land, by stream."""
    checks = [
        check
        for stream in config.streams.values()
        if stream.dlq in found and (check := _letters(config, stream, found[stream.dlq]))
    ]
    return checks or [ok("dead letters", "none")]


def _letters(config: Config, stream: Stream, limits: Retention) -> Check | None:
    spans = bounds(config.kafka, stream.dlq).spans.values()
    most = sum(end - start for start, end in spans)
    if most > _MOST_LETTERS:
        there = waiting(config.kafka, stream.dlq, {})
        first_ms = min((one.oldest_ms for one in there if one.oldest_ms), default=None)
        return judge_letters(stream, most, first_ms, limits, time.time(), read=False)
    number, oldest_ms = 0, None
    for letter in Letters(config.kafka, stream).open(Wanted()) if most else ():
        number += 1
        oldest_ms = min(oldest_ms or letter.attempted_ms, letter.attempted_ms)
    return judge_letters(stream, number, oldest_ms, limits, time.time())


def judge_letters(
    stream: Stream,
    number: int,
    oldest_ms: int | None,
    limits: Retention,
    now_s: float,
    *,
    read: bool = True,
) -> Check | None:
    """`oldest_ms` is when the first one was sent; None: there is none.

    Not `read`: they are too many to look through. Then `number` is that of offsets, and the first
    one is the first record there, which may have been redriven since.
    """
    if not number or oldest_ms is None:
        return None
    name, do = f"dead letters {stream.name}", f"headrace dlq ls {stream.name}"
    age_s = max(0.0, now_s - oldest_ms / 1000)
    text = f"{counted(number, 'record')} could not land, the first {lasting(age_s)} ago"
    unless = ""
    if not read:
        text = (
            f"about {counted(number, 'record')} could not land, those since redriven included; "
            f"the oldest record there is {lasting(age_s)} old"
        )
        unless = ", unless it has been redriven"
    if in_danger(limits, age_s):
        time_left = left(limits, age_s)
        text += f": Kafka removes it in {time_left}, and it is the only copy{unless}"
        return fail(name, text, do, f"for {time_left}; then not{unless}")
    safe = f"yes, whole in {stream.dlq}, for {left(limits, age_s, ' more')}; all else lands"
    return warn(name, text, do, safe)
