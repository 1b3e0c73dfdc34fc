"""What is checked before an inserter joins its group, so that the message names the cause."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence

from consumers.errors import Systemic
from ingest.streams import Stream
from ingest.topics import TopicError, topic_ids

__all__ = ["check_topics"]

log = logging.getLogger(__name__)


def check_topics(kafka: Mapping[str, str | int | float | bool], streams: Sequence[Stream]) -> None:
    """Every stream's topic and dead-letter topic must exist; waits while Kafka is away.

    Raises Systemic, naming those that don't.
    """
    names = [name for stream in streams for name in (stream.topic, stream.dlq)]
    while True:
        try:
            missing = sorted(set(names) - topic_ids(kafka, names).keys())
            break
        except TopicError as away:
            if away.denied:
                raise Systemic(str(away)) from away
            log.warning("waiting for Kafka: %s", away)
            time.sleep(1)
    if missing:
        raise Systemic(
            f"{'the topic' if len(missing) == 1 else 'the topics'} {', '.join(missing)} "
            f"{'does' if len(missing) == 1 else 'do'} not exist; create what is missing with "
            "`headrace migrate`, or name the streams you mean with --stream"
        )
