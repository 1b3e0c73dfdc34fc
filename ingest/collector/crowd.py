"""How many values a protobuf message holds: two bytes of a body may be a message inside of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

__all__ = ["Count", "counter"]

Count = Callable[[Any], int]

_SIZED = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)


def counter(descriptor: Descriptor) -> Count | None:
    """A function: how many texts and messages lists and maps of a message hold, at all levels.

    It is for these that admission walks it in Python; numbers in a list cost little. A message that
    stands alone counts where it may hold such, or itself. None where there is nothing to count.
    """
    return _counter(descriptor, {})


def _counter(descriptor: Descriptor, made: dict[str, Count | None]) -> Count | None:
    """The same; `made` are those of the messages around it."""
    if descriptor.full_name in made:
        return made[descriptor.full_name]
    many: list[str] = []
    ones: list[tuple[str, Count]] = []
    lists: list[tuple[str, Count]] = []
    maps: list[tuple[str, Count]] = []

    def count(message: Any) -> int:
        found = sum(len(getattr(message, name)) for name in many)
        for name, below in ones:
            if message.HasField(name):
                found += 1 + below(getattr(message, name))
        for name, below in lists:
            found += sum(map(below, getattr(message, name)))
        for name, below in maps:
            found += sum(map(below, getattr(message, name).values()))
        return found

    # Known before its fields are, so that a message may hold itself.
    made[descriptor.full_name] = count
    for field in descriptor.fields:
        name, child, into = field.name, field.message_type, lists if field.is_repeated else ones
        if field.is_repeated and (child is not None or field.type in _SIZED):
            many.append(name)
        if child is not None and child.GetOptions().map_entry:
            child, into = child.fields_by_name["value"].message_type, maps
        if child is not None and (below := _counter(child, made)) is not None:
            into.append((name, below))
    if not (many or ones or lists or maps):
        made[descriptor.full_name] = None
    return made[descriptor.full_name]
