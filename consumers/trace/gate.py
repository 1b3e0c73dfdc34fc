"""The gate of one vendor: a raw event goes in; out comes what may leave, or why nothing does.

One pass. What the allowlist says is looked up once per event and once per property; everything that
is not in it is left out, and counted with its reason. What is in it must have its type, and text
goes through the scrubber.

    reasons for an event                       reasons for a property
    not_listed      no such event              not_listed   no such property of this event
    not_for_vendor  not for this one           not_for_vendor
    no_name         no name that is text       type         another type, or nested
    unreadable      its data is not JSON       value        not one of those that are listed
                                               too_long     text beyond 10,000 characters
                                               card         a number that is a card's
    properties      they are no object

Kinds of personal data (mail, card, token, ip, url and patterns' names) are counted like reasons.
An id in which there are some is left out, or hashed where [trace] says so.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from consumers.metrics import TRACE
from consumers.trace.allowlist import Allowed, TraceError, TraceSettings, names_for
from consumers.trace.event import Event, Value, make
from consumers.trace.read import Unreadable, read
from consumers.trace.scrub import MAX_TEXT, Hit, Scrubber, card_number, is_uuid
from ingest.gen.headrace.v1.raw_event_pb2 import RawEvent

__all__ = ["Dropped", "Gate", "Note"]

# The namespace of keys that are made from an event's id.
_KEYS = uuid.UUID("a4b7c1de-3d2c-5f0e-9a55-6f1b2c9d8e70")
_TOO_LONG: Hit = ("", ("too_long",))


@dataclass(frozen=True, slots=True)
class Dropped:
    """An event that does not go to this vendor. `reason` is one of those above."""

    reason: str
    detail: str = ""


class Note(NamedTuple):
    """Something that was left out or changed; for `headrace trace check`."""

    # "properties.NAME", "user_id", "device_id", "event_id".
    where: str
    reason: str
    before: Any
    # None where nothing is left of it.
    after: Value


# A property, compiled: its name for the vendor, one of TYPES, what it must be one of, its scrubber,
# and what that knows to be clean. A plain tuple, because a named one takes longer to take apart.
_Rule = tuple[str, str, frozenset[tuple[type, Value]] | None, Scrubber, set[str]]


class _Plan(NamedTuple):
    """An event, compiled."""

    name: str
    rules: Mapping[str, _Rule]
    # Listed, but for others.
    others: frozenset[str]
    # What is counted for it, and for a property that is not listed.
    allowed: tuple[str, str, str]
    not_listed: tuple[str, str, str]


class Gate:
    """One vendor's view of raw events. Belongs to one thread."""

    def __init__(self, settings: TraceSettings, vendor: str) -> None:
        """Raises TraceError where ids are to be hashed and there is no key."""
        self.vendor = vendor
        self._scrubbers: dict[frozenset[str], Scrubber] = {}
        self._settings = settings
        self._scrub = self._scrubber(frozenset())
        self._others = {n for n, a in settings.events.items() if not a.goes_to(vendor)}
        self._plans = {
            name: self._plan(name, allowed)
            for name, allowed in settings.events.items()
            if allowed.goes_to(vendor)
        }
        self._rules = {"user_id": settings.user_id, "device_id": settings.device_id}
        if "hash" in self._rules.values() and not settings.hash_key:
            raise TraceError(
                "[trace] hashes ids, and there is no key: set HEADRACE_TRACE_KEY to a long secret, "
                'or write user_id = "keep" or "drop"'
            )
        self._keeps_user = settings.user_id == "keep"
        self._keeps_device = settings.device_id == "keep"
        self._key = (settings.hash_key or "").encode()
        # (event, property, reason) since report(); "" for what is not listed.
        self.counts: dict[tuple[str, str, str], int] = {}

    def judge(
        self,
        raw: RawEvent,
        topic: str = "",
        partition: int = -1,
        offset: int = -1,
        notes: list[Note] | None = None,
    ) -> Event | Dropped:
        """What of this raw event may leave; what was changed in it goes to `notes`."""
        try:
            name, user_id, device_id, time_us, received_us, sent = read(raw)
        except Unreadable as error:
            self._count("", "", "unreadable")
            return Dropped("unreadable", str(error))
        plan = None if name is None else self._plans.get(name)
        if name is None or plan is None:
            return self._dropped(name)
        event_id = key = raw.event_id
        if not (len(key) == 36 and is_uuid(key)):
            hit = self._scrub(key)
            if hit is not None:
                key = str(uuid.uuid5(_KEYS, key))
                self._note(name, "event_id", hit[1], event_id, key, notes)
        if user_id is not None and not (self._keeps_user and user_id in self._scrub.clean):
            user_id = self._id(name, "user_id", user_id, notes)
        if device_id is not None and not (self._keeps_device and device_id in self._scrub.clean):
            device_id = self._id(name, "device_id", device_id, notes)
        if type(sent) is dict:
            properties = self._properties(name, plan, sent, notes)
        else:
            properties = {}
            if sent is not None:
                self._note(name, "properties", ("type",), sent, None, notes)
        self.counts[plan.allowed] = self.counts.get(plan.allowed, 0) + 1
        return make(
            event_id, key, plan.name, time_us, received_us, user_id, device_id, properties,
            topic, partition, offset,
        )  # fmt: skip

    def report(self) -> None:
        """Add what was counted to the metrics, and count from zero again."""
        counts, self.counts = self.counts, {}
        for (event, name, reason), count in counts.items():
            TRACE.labels(self.vendor, event, name, reason).inc(count)

    def _properties(
        self, event: str, plan: _Plan, sent: dict[str, Any], notes: list[Note] | None
    ) -> dict[str, Value]:
        properties: dict[str, Value] = {}
        rules = plan.rules
        unlisted = 0
        for key, value in sent.items():
            rule = rules.get(key)
            if rule is None:
                if key in plan.others:
                    self._note(event, f"properties.{key}", ("not_for_vendor",), value, None, notes)
                    continue
                unlisted += 1
                if notes is not None:
                    notes.append(Note(f"properties.{key}", "not_listed", value, None))
                continue
            name, wanted, one_of, scrub, clean = rule
            left = value
            kind = type(value)
            if kind is str and wanted == "string" and one_of is None:
                if value not in clean:
                    hit = scrub(value) if len(value) <= MAX_TEXT else _TOO_LONG
                    if hit is not None:
                        left, reasons = hit
                        self._note(event, f"properties.{key}", reasons, value, left, notes)
                        if hit is _TOO_LONG:
                            continue
            elif value is not None and (wrong := _wrong(rule, kind, value)):
                self._note(event, f"properties.{key}", (wrong,), value, None, notes)
                continue
            properties[name] = left
        if unlisted:
            at = plan.not_listed
            self.counts[at] = self.counts.get(at, 0) + unlisted
        return properties

    def _id(self, event: str, who: str, value: str, notes: list[Note] | None) -> str | None:
        rule = self._rules[who]
        if rule == "keep":
            hit = self._scrub(value) if len(value) <= MAX_TEXT else _TOO_LONG
            if hit is None:
                return value
            self._note(event, who, hit[1], value, None, notes)
            return None
        after = None
        if rule == "hash":
            after = hmac.new(self._key, value.encode(), hashlib.sha256).hexdigest()
        if notes is not None:
            notes.append(Note(who, rule, value, after))
        return after

    def _dropped(self, name: str | None) -> Dropped:
        if name is None:
            self._count("", "", "no_name")
            return Dropped("no_name", "it has no name that is text")
        if name in self._others:
            self._count(name, "", "not_for_vendor")
            return Dropped("not_for_vendor", f"[trace] does not list {self.vendor} for it")
        self._count("", "", "not_listed")
        return Dropped("not_listed", "[trace] has no such event")

    def _note(
        self,
        event: str,
        where: str,
        reasons: tuple[str, ...],
        before: Any,
        after: Value,
        notes: list[Note] | None,
    ) -> None:
        counts = self.counts
        for reason in reasons:
            at = (event, where, reason)
            counts[at] = counts.get(at, 0) + 1
        if notes is not None:
            notes.append(Note(where, ", ".join(reasons), before, after))

    def _count(self, event: str, name: str, reason: str) -> None:
        at = (event, name, reason)
        self.counts[at] = self.counts.get(at, 0) + 1

    def _plan(self, name: str, allowed: Allowed) -> _Plan:
        names = names_for(allowed, self.vendor)
        rules: dict[str, _Rule] = {}
        for key, renamed in names.items():
            found = allowed.properties[key]
            one_of = None
            if found.one_of is not None:
                one_of = frozenset((type(v), v) for v in found.one_of)
            scrub = self._scrubber(found.keep)
            rules[key] = (renamed, found.type, one_of, scrub, scrub.clean)
        others = frozenset(allowed.properties.keys() - names.keys())
        return _Plan(
            allowed.names.get(self.vendor, name), rules, others,
            (name, "", "allowed"), (name, "properties", "not_listed"),
        )  # fmt: skip

    def _scrubber(self, keep: frozenset[str]) -> Scrubber:
        """One for all properties that keep the same."""
        if keep not in self._scrubbers:
            said = self._settings
            patterns = {n: p for n, p in said.patterns.items() if n not in keep}
            self._scrubbers[keep] = Scrubber(said.scrub - keep, patterns, said.url_parameters)
        return self._scrubbers[keep]


def _wrong(rule: _Rule, kind: type, value: Any) -> str | None:
    """What a value that is not plain text has against it."""
    _, wanted, one_of, scrub, _ = rule
    if kind is str:
        right = wanted == "string"
    elif kind is bool:
        right = wanted == "boolean"
    elif kind is int:
        right = wanted in ("integer", "number")
    elif kind is float:
        right = wanted == "number" and math.isfinite(value)
    else:
        right = False
    if not right:
        return "type"
    if one_of is not None:
        # By type too: 1 is not true.
        return None if (kind, value) in one_of else "value"
    if kind in (int, float) and 1e11 <= abs(value) < 1e19 and "card" in scrub.kinds:
        return "card" if value == int(value) and card_number(str(int(abs(value)))) else None
    return None
