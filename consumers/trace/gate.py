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

Where properties are no object they are left out together, as `properties`, with the reason `type`.

Kinds of personal data (mail, card, iban, token, ip, url, patterns' names) are counted like reasons.
An id in which there are some is left out, or hashed where [trace] says so.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import uuid
from dataclasses import dataclass
from typing import Any, NamedTuple

from consumers.metrics import TRACE
from consumers.trace.allowlist import TraceError, TraceSettings
from consumers.trace.event import Event, Value, make
from consumers.trace.numbers import card_number
from consumers.trace.plan import CARDS, Listed, Plan, compiled
from consumers.trace.read import Unreadable, read_row, taken_us
from consumers.trace.scrub import MAX_TEXT, Scrubber, is_uuid
from ingest.gen.headrace.v1.raw_event_pb2 import RawEvent

__all__ = ["Dropped", "Gate", "Note", "hidden_key"]

# The namespace of keys that are made from an event's id.
_KEYS = uuid.UUID("a4b7c1de-3d2c-5f0e-9a55-6f1b2c9d8e70")
_TOO_LONG = ("too_long",)


def hidden_key(event_id: str, secret: bytes = b"") -> str:
    """What a vendor is given as identity where the event's id is personal data: always the same.

    Without a secret it can be guessed by whoever has a list of ids that it may be.
    """
    if not secret:
        return str(uuid.uuid5(_KEYS, event_id))
    # With the namespace before it, it is nobody's hashed id.
    digest = hmac.new(secret, _KEYS.bytes + event_id.encode(), hashlib.sha256).digest()
    return str(uuid.UUID(bytes=digest[:16], version=5))


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


class Gate:
    """One vendor's view of raw events. Belongs to one thread."""

    def __init__(self, settings: TraceSettings, vendor: str) -> None:
        """Raises TraceError where ids are to be hashed and there is no key."""
        self.vendor = vendor
        self._scrubbers: dict[frozenset[str], Scrubber] = {}
        self._settings = settings
        self._scrub = self._scrubber(frozenset())
        self._clean = self._scrub.clean
        self._others = {n for n, a in settings.events.items() if not a.goes_to(vendor)}
        self._plans = {
            name: compiled(name, allowed, vendor, self._scrubber)
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
        # An operator's pattern is looked for in a UUID too.
        self._uuid = (lambda _: None) if settings.patterns else is_uuid
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
        return self.judge_row(
            raw.event_id, raw.content_type, raw.data, taken_us(raw), topic, partition, offset, notes
        )

    def judge_row(
        self,
        event_id: str,
        content_type: str,
        data: str,
        received_us: int,
        topic: str = "",
        partition: int = -1,
        offset: int = -1,
        notes: list[Note] | None = None,
    ) -> Event | Dropped:
        """The same for who has a raw event's fields: to take it apart costs 2 µs of 12."""
        try:
            name, user_id, device_id, time_us, sent = read_row(content_type, data, received_us)
        except Unreadable as error:
            self._count("", "", "unreadable")
            return Dropped("unreadable", str(error))
        plan = None if name is None else self._plans.get(name)
        if name is None or plan is None:
            return self._dropped(name)
        key = event_id
        if not (len(key) == 36 and is_uuid(key)):
            hit = self._scrub(key)
            if hit is not None:
                key = hidden_key(key, self._key)
                self._note(name, "event_id", hit[1], event_id, key, notes)
        # Devices are many and mostly UUIDs: to look at one (0.27 µs) takes as long as to look it up
        # among 50,000, and leaves the memory to what repeats.
        clean, is_clean_uuid = self._clean, self._uuid
        if user_id is not None and not (
            self._keeps_user
            and (user_id in clean or (len(user_id) == 36 and is_clean_uuid(user_id)))
        ):
            user_id = self._id(name, "user_id", user_id, notes)
        if device_id is not None and not (
            self._keeps_device
            and ((len(device_id) == 36 and is_clean_uuid(device_id)) or device_id in clean)
        ):
            device_id = self._id(name, "device_id", device_id, notes)
        properties: dict[str, Value] = {}
        scrubbed: tuple[str, ...] = ()
        if type(sent) is dict:
            scrubbed = self._fill(properties, name, plan, sent, notes)
        elif sent is not None:
            self._note(name, "properties", ("type",), sent, None, notes)
        self.counts[plan.allowed] = self.counts.get(plan.allowed, 0) + 1
        return make(
            event_id, key, plan.name, time_us, received_us, user_id, device_id, properties,
            topic, partition, offset, scrubbed,
        )  # fmt: skip

    def report(self) -> None:
        """Add what was counted to the metrics, and count from zero again."""
        counts, self.counts = self.counts, {}
        for (event, name, reason), count in counts.items():
            TRACE.labels(self.vendor, event, name, reason).inc(count)

    def _fill(  # noqa: PLR0912 # the loop over properties is a third of all time: no calls in it
        self,
        properties: dict[str, Value],
        event: str,
        plan: Plan,
        sent: dict[str, Any],
        notes: list[Note] | None,
    ) -> tuple[str, ...]:
        """Put into `properties` what may leave of those that were sent; which of it is scrubbed."""
        rules, counts = plan.rules, self.counts
        scrubbed: tuple[str, ...] = ()
        unlisted = 0
        for key, value in sent.items():
            if key in rules:
                name, known, types, listed = rules[key]
                kind = type(value)
                # What most values are takes two look-ups here, and no call.
                if kind is str:
                    if value in known:
                        properties[name] = value
                        continue
                elif kind in types and -CARDS < value < CARDS:
                    properties[name] = value
                    continue
                left, reasons = self._closely(listed, kind, value)
                if reasons:
                    # Counted here: most addresses have a query, and a call takes 0.1 µs.
                    for reason in reasons:
                        at = (event, listed.where, reason)
                        counts[at] = counts.get(at, 0) + 1
                    if notes is not None:
                        notes.append(Note(listed.where, ", ".join(reasons), value, left))
                    if left is None:
                        continue
                    scrubbed += (name,)
                properties[name] = left
            elif key in plan.others:
                self._note(event, f"properties.{key}", ("not_for_vendor",), value, None, notes)
            else:
                unlisted += 1
                if notes is not None:
                    notes.append(Note(f"properties.{key}", "not_listed", value, None))
        if unlisted:
            at = plan.not_listed
            counts[at] = counts.get(at, 0) + unlisted
        return scrubbed

    def _closely(self, listed: Listed, kind: type, value: Any) -> tuple[Value, tuple[str, ...]]:
        """What is left of a value that is not plainly right, None for nothing, and the reasons."""
        _, types, one_of, scrub = listed
        hit: tuple[Value, tuple[str, ...]] | None = None
        if value is None:
            pass
        elif kind not in types or (kind is float and not math.isfinite(value)):
            hit = None, ("type",)
        elif one_of is not None:
            hit = None if (kind, value) in one_of else (None, ("value",))
        elif kind is str:
            hit = scrub.look(value) if len(value) <= MAX_TEXT else (None, _TOO_LONG)
        elif kind is not bool and CARDS <= abs(value) < 1e19 and "card" in scrub.kinds:
            card = value == int(value) and card_number(str(int(abs(value))))
            hit = (None, ("card",)) if card else None
        return (value, ()) if hit is None else hit

    def _id(self, event: str, who: str, value: str, notes: list[Note] | None) -> str | None:
        rule = self._rules[who]
        if rule == "keep":
            if len(value) > MAX_TEXT:
                reasons: tuple[str, ...] = _TOO_LONG
            else:
                hit = self._scrub.look(value)
                if hit is None:
                    return value
                reasons = hit[1]
            self._note(event, who, reasons, value, None, notes)
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

    def _scrubber(self, keep: frozenset[str]) -> Scrubber:
        """One for all properties that keep the same."""
        if keep not in self._scrubbers:
            said = self._settings
            patterns = {n: p for n, p in said.patterns.items() if n not in keep}
            self._scrubbers[keep] = Scrubber(said.scrub - keep, patterns, said.url_parameters)
        return self._scrubbers[keep]
