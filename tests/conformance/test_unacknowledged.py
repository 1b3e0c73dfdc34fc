"""What goes to Kafka before a batch may move on, while there is no Kafka: never taken for sent."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from confluent_kafka import Message

from consumers import deadletters
from consumers.deadletters import DeadLetter, DeadLetters
from consumers.errors import Unavailable
from consumers.forward import receipts
from consumers.forward.receipts import Receipts
from ingest.gen.headrace.v1.receipt_pb2 import Receipt
from ingest.streams import BUILT_IN

# Nobody listens there.
NOWHERE = {"bootstrap.servers": "127.0.0.1:1"}


def dead_letters() -> None:
    stream = BUILT_IN["device_state"]
    record = Message(topic=stream.topic, partition=0, offset=1, value=b"\xff", timestamp=(1, 1))
    letter = DeadLetter(record, "undecodable", "not protobuf")
    DeadLetters(NOWHERE, "postgres").send(stream, [letter] * 3)


def of_events() -> None:
    Receipts(NOWHERE, BUILT_IN["receipts"]).send([Receipt(vendor="heap", event_id="e")] * 3)


@pytest.mark.parametrize("send", [dead_letters, of_events])
def test_what_kafka_has_not_acknowledged_is_not_taken_for_sent(
    send: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (deadletters, receipts):
        monkeypatch.setattr(module, "_SEND_TIMEOUT_S", 0.5)
    with pytest.raises(Unavailable):
        send()
