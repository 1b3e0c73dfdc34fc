"""What is checked before an inserter joins its group, so that the message names the cause.

And what else is asked of Kafka at a start: a process that is started while Kafka is away waits for it.
"""  # noqa: E501

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from consumers.errors import Systemic, Unavailable
from ingest.streams import Stream
from ingest.topics import TopicError, topic_ids

__all__ = ["check_topics", "waited_for"]

log = logging.getLogger(__name__)

T = TypeVar("T")


def waited_for(ask: Callable[[], T]) -> T:
    """What Kafka answers; asked again while it is away. Raises Systemic where it refuses."""
    while True:
        try:
            return ask()
        except TopicError as error:
            if error.denied:
                raise Systemic(str(error)) from error
            away: Exception = error
        except Unavailable as error:
            away = error
        log.warning("waiting for Kafka: %s", away)
        time.sleep(1)


def check_topics(kafka: Mapping[str, str | int | float | bool], streams: Sequence[Stream]) -> None:
    """Every stream's topic and dead-letter topic must exist; waits while Kafka is away.

    Raises Systemic, naming those that don't.
    """
    names = [name for stream in streams for name in (stream.topic, stream.dlq)]
    missing = sorted(set(names) - waited_for(lambda: topic_ids(kafka, names)).keys())
    if missing:
        raise Systemic(
            f"{'the topic' if len(missing) == 1 else 'the topics'} {', '.join(missing)} "
            f"{'does' if len(missing) == 1 else 'do'} not exist; create what is missing with "
            "`headrace migrate`, or name the streams you mean with --stream"
        )
