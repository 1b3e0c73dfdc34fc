"""What the allowlist might hold: event names and properties that were found, with types and counts.

    found = Suggestion(settings)
    for raw in …: found.add(raw)
    found.toml()

Memory is bounded: of names beyond MOST_EVENTS, and of an event's properties beyond MOST_PROPERTIES,
only how many there were is known.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from typing import Any

from consumers.trace.allowlist import TraceSettings
from consumers.trace.read import Unreadable, read
from consumers.trace.scrub import MAX_TEXT, Scrubber
from ingest.gen.headrace.v1.raw_event_pb2 import RawEvent

__all__ = ["MOST_EVENTS", "MOST_PROPERTIES", "Suggestion"]

MOST_EVENTS = 1_000
MOST_PROPERTIES = 200

_BARE = re.compile(r"[A-Za-z0-9_-]+")


class _Property:
    """Counts by type, and of what the scrubber found."""

    def __init__(self) -> None:
        self.types: Counter[str] = Counter()
        self.found: Counter[str] = Counter()

    @property
    def type(self) -> str | None:
        """One of TYPES, or None where there is no one type for all of it."""
        types = set(self.types) - {"null"}
        if types == {"integer", "number"}:
            return "number"
        only = types.pop() if len(types) == 1 else None
        return None if only == "nested" else only


class _Event:
    def __init__(self) -> None:
        self.count = 0
        self.properties: dict[str, _Property] = {}
        # Values under names beyond MOST_PROPERTIES.
        self.beyond = 0


class Suggestion:
    """A proposal that grows with each event."""

    def __init__(self, settings: TraceSettings) -> None:
        self._settings = settings
        self._scrub = Scrubber(settings.scrub, settings.patterns, settings.url_parameters)
        self._events: dict[str, _Event] = {}
        self._count = self._unread = self._beyond = 0

    def add(self, raw: RawEvent) -> None:
        """One more event."""
        self._count += 1
        try:
            name, *_, sent = read(raw)
        except Unreadable:
            name, sent = None, None
        if name is None:
            self._unread += 1
            return
        event = self._events.get(name)
        if event is None:
            if len(self._events) >= MOST_EVENTS:
                self._beyond += 1
                return
            event = self._events[name] = _Event()
        event.count += 1
        for key, value in sent.items() if isinstance(sent, dict) else ():
            self._add(event, key, value)

    def _add(self, event: _Event, key: str, value: Any) -> None:
        found = event.properties.get(key)
        if found is None:
            if len(event.properties) >= MOST_PROPERTIES:
                event.beyond += 1
                return
            found = event.properties[key] = _Property()
        found.types[_type(value)] += 1
        if isinstance(value, str):
            hit = self._scrub(value[:MAX_TEXT])
            found.found.update(hit[1] if hit is not None else ())

    def toml(self, least: int = 1) -> str:
        """[trace.events…] of events that were found so often, the most frequent first."""
        lines = [
            f"# {self._count:,} events, {len(self._events):,} names. "
            "Take out what should not leave."
        ]
        if self._unread:
            lines.append(f"# {self._unread:,} without a name, or that can't be read")
        if self._beyond:
            lines.append(f"# {self._beyond:,} of names beyond the first {MOST_EVENTS:,}")
        for name, event in sorted(self._events.items(), key=lambda e: (-e[1].count, e[0])):
            if event.count >= least:
                lines += ["", *self._lines(name, event)]
        return "\n".join(lines) + "\n"

    def _lines(self, name: str, event: _Event) -> list[str]:
        listed = self._settings.events.get(name)
        lines = [
            f"[trace.events.{_key(name)}.properties]"
            f"  # {event.count:,} events{'' if listed is None else ', listed already'}"
        ]
        for key, found in sorted(event.properties.items()):
            kind = found.type
            said = f"{sum(found.types.values()):,}"
            if kind is None:
                said = ", ".join(f"{n:,} {t}" for t, n in sorted(found.types.items()))
            if found.found:
                hits = ", ".join(f"{n:,} {k}" for k, n in sorted(found.found.items()))
                said += f"; personal data: {hits}"
            if listed is not None and key in listed.properties:
                said += "; listed already"
            hidden = kind is None or self._scrub(key) is not None
            lines.append(f'{"# " if hidden else ""}{_key(key)} = "{kind or "?"}"  # {said}')
        if event.beyond:
            lines.append(f"# {event.beyond:,} values of further properties")
        return lines if self._scrub(name) is None else [_commented(line) for line in lines]


def _commented(line: str) -> str:
    return line if line.startswith("#") else f"# {line}"


def _type(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "number" if math.isfinite(value) else "nested"
    return "string" if isinstance(value, str) else "nested"


def _key(name: str) -> str:
    """A key of TOML: what JSON must escape, TOML must, and DEL. It has no surrogate pairs."""
    if _BARE.fullmatch(name):
        return name
    return json.dumps(name, ensure_ascii=False).replace("\x7f", "\\u007f")
