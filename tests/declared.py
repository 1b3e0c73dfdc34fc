"""Streams for tests, declared as a user would: from .proto text, compiled once for each text."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import Descriptor

from ingest.descriptors import compile_proto, find_message
from ingest.streams import Stream

__all__ = ["EVERYTHING_PROTO", "declare", "everything", "message"]

EVERYTHING_PROTO = Path(__file__).parent / "protos" / "everything.proto"


@cache
def message(text: str, name: str) -> Descriptor:
    """The message of that name in a .proto of that text."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "test.proto"
        path.write_text(text)
        return find_message(compile_proto(path), name)


def declare(text: str, name: str, **settings: Any) -> Stream:
    """A stream of that message, keyed by `id`, its time in `seen_at`; `settings` change that."""
    defaults = {"name": "test", "key": "id", "time": "seen_at", "topic": "test", "table": "test"}
    return Stream(descriptor=message(text, name), **{**defaults, **settings})


@cache
def everything() -> Stream:
    """The stream of test.v1.Everything: one field of every kind."""
    return declare(EVERYTHING_PROTO.read_text(), "test.v1.Everything")
