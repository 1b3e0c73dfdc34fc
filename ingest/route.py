"""What the records of one stream share on their way: how they are checked, topic and lane."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from google.protobuf.message import Message

from ingest.admission import Admission, Refused
from ingest.mapping import mapper
from ingest.streams import Stream

if TYPE_CHECKING:
    from ingest.lanes import Lanes

__all__ = ["Route"]


class Route:
    """How messages of one stream get to its topic."""

    def __init__(self, stream: Stream, lanes: Lanes) -> None:
        self.lane = lanes.first
        self.delivery = lanes.plain.of(self)
        self.calling = lanes.calling.of(self)
        self.stream = stream
        self.topic = stream.topic
        self.cls = stream.message
        self._admission = Admission(stream)
        self.admit = self._admission.admit
        self._map: Callable[[Mapping[str, Any]], Message] = mapper(stream.descriptor)

    def convert(self, message: Any) -> Message:
        """Anything that publish() takes, as a message of the stream's class."""
        if isinstance(message, bytes):
            return self._admission.parse(message)
        if isinstance(message, Mapping):
            return self._map(message)
        wanted = self.cls.DESCRIPTOR.full_name
        if isinstance(message, Message):
            # The caller's own generated code for the same .proto is another class.
            if message.DESCRIPTOR.full_name == wanted:
                return self._admission.parse(message.SerializeToString())
            raise Refused("", f"is a {message.DESCRIPTOR.full_name}; stream {self.stream.name} "
                          f"takes {wanted}")  # fmt: skip
        raise Refused("", f"is a {type(message).__name__}; stream {self.stream.name} takes a "
                      f"{wanted}, a mapping of its JSON names, or its bytes")  # fmt: skip
