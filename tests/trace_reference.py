"""The gate once more, slow and plain: what `consumers.trace.gate` must say of every event.

Nothing is compiled, remembered or asked beforehand: each setting is looked up where it matters,
each rule is asked about each text, JSON is read by `json`. The expressions of the rules are
scrub.py's own; when they are asked, and what is done with an address, is spelled out here again.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import re
import uuid
from collections import Counter
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote_plus

from consumers.trace import scrub
from consumers.trace.allowlist import TraceSettings
from consumers.trace.event import Event, Value

__all__ = ["judge"]

_KEYS = uuid.UUID("a4b7c1de-3d2c-5f0e-9a55-6f1b2c9d8e70")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_TYPES = {"string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,)}

Counts = Counter[tuple[str, str, str]]


def judge(
    settings: TraceSettings, vendor: str, event_id: str, content_type: str, data: str, taken_us: int
) -> tuple[Event | str, Counts]:
    """The event as it may leave, or why it does not; and what is counted."""
    counts: Counts = Counter()
    said = json.loads(data)
    name = said.get("event")
    properties = said.get("properties")
    if not isinstance(name, str) or not name:
        name, properties = _of_segment(said, content_type)
    if name is None or name not in settings.events:
        reason = "no_name" if name is None else "not_listed"
        counts["", "", reason] += 1
        return reason, counts
    allowed = settings.events[name]
    if not allowed.goes_to(vendor):
        counts[name, "", "not_for_vendor"] += 1
        return "not_for_vendor", counts
    key = event_id
    if not _UUID.fullmatch(key):
        _, found = scrubbed(settings, key, frozenset())
        if found:
            key = str(uuid.uuid5(_KEYS, key))
        counts.update((name, "event_id", kind) for kind in found)
    context = said.get("context")
    device = context.get("device") if isinstance(context, dict) else None
    on_phone = device.get("id") if isinstance(device, dict) else None
    device_id = _text(said.get("deviceId")) or _text(said.get("anonymousId")) or _text(on_phone)
    ids = {"user_id": _text(said.get("userId")), "device_id": device_id}
    for who, value in ids.items():
        rule = getattr(settings, who)
        if value is None:
            continue
        if rule == "hash":
            assert settings.hash_key is not None
            ids[who] = hmac.new(
                settings.hash_key.encode(), value.encode(), hashlib.sha256
            ).hexdigest()
        elif rule == "drop":
            ids[who] = None
        else:
            _, found = _shortened(settings, value, frozenset())
            counts.update((name, who, kind) for kind in found)
            ids[who] = None if found else value
    left: dict[str, Value] = {}
    if not isinstance(properties, dict):
        if properties is not None:
            counts[name, "properties", "type"] += 1
        properties = {}
    for own, value in properties.items():
        listed = allowed.properties.get(own)
        if listed is None:
            counts[name, "properties", "not_listed"] += 1
        elif listed.vendors is not None and vendor not in listed.vendors:
            counts[name, f"properties.{own}", "not_for_vendor"] += 1
        else:
            after, found = value, ()
            if value is None:
                pass
            elif type(value) not in _TYPES[listed.type] or (
                type(value) is float and not math.isfinite(value)
            ):
                found = ("type",)
            elif listed.one_of is not None:
                same = any(type(v) is type(value) and v == value for v in listed.one_of)
                found = () if same else ("value",)
            elif isinstance(value, str):
                after, found = _shortened(settings, value, listed.keep)
            elif "card" in settings.scrub - listed.keep and _is_card(value):
                found = ("card",)
            counts.update((name, f"properties.{own}", reason) for reason in found)
            if not {"type", "value", "too_long"}.intersection(found) and (
                isinstance(value, str) or "card" not in found
            ):
                left[listed.rename.get(vendor, own)] = after
    counts[name, "", "allowed"] += 1
    return Event(
        event_id, key, allowed.names.get(vendor, name), _time(said.get("timestamp"), taken_us),
        taken_us, ids["user_id"], ids["device_id"], left,
    ), counts  # fmt: skip


def _of_segment(said: dict[str, Any], content_type: str) -> tuple[str | None, Any]:
    properties = said.get("properties")
    name = _text(said.get("type"))
    if name is None and "segment=" in content_type:
        name = content_type.rpartition("segment=")[2] or None
    if name in ("identify", "group") and properties is None:
        properties = said.get("traits")
    if name in ("page", "screen") and (properties is None or isinstance(properties, dict)):
        top = {k: said[k] for k in ("name", "category") if said.get(k) is not None}
        properties = top | (properties or {})
    return name, properties


def _is_card(value: float) -> bool:
    whole = type(value) is not bool and value == int(value) and 1e11 <= abs(value) < 1e19
    return whole and scrub.card_number(str(int(abs(value))))


def _text(value: Any) -> str | None:
    return (str(value) or None) if type(value) in (str, int) else None


def _time(said: Any, taken_us: int) -> int:
    if type(said) is str:
        try:
            moment = datetime.fromisoformat(said)
        except ValueError:
            return taken_us
        since = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - datetime(
            1970, 1, 1, tzinfo=UTC
        )
        return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    if type(said) in (int, float) and abs(said) < 2**62:
        return int(said * (1_000_000 if abs(said) < 1e11 else 1_000 if abs(said) < 1e14 else 1))
    return taken_us


def _shortened(
    settings: TraceSettings, text: str, keep: frozenset[str]
) -> tuple[str | None, tuple[str, ...]]:
    if len(text) > scrub.MAX_TEXT:
        return None, ("too_long",)
    return scrubbed(settings, text, keep)


def scrubbed(
    settings: TraceSettings, text: str, keep: frozenset[str]
) -> tuple[str, tuple[str, ...]]:
    """What is left of the text, and the kinds of what was found in it."""
    found = []
    rules = {
        "url": lambda text: _url(text, settings.url_parameters),
        "token": _token,
        "mail": lambda text: scrub._MAIL.sub("[mail]", text),
        "card": lambda text: scrub._CARD.sub(scrub._card_or_not, text),
        "ip": lambda text: scrub._IPV6.sub(scrub._ipv6_or_not, scrub._IPV4.sub("[ip]", text)),
    }
    for kind, rule in rules.items():
        # A UUID's digits are nobody's card.
        if kind in settings.scrub - keep and not _UUID.fullmatch(text):
            changed = rule(text)
            found += [kind] if changed != text else []
            text = changed
    for name, pattern in settings.patterns.items():
        if name not in keep:
            changed = pattern.sub(f"[{name}]", text)
            found += [name] if changed != text else []
            text = changed
    return text, tuple(found)


def _token(text: str) -> str:
    # Only where letters, digits, - and _ stand together, twelve at least.
    if re.search(r"[A-Za-z0-9_-]{12}", text):
        text = scrub._LONG.sub(scrub._random, scrub._TOKEN.sub("[token]", text))
    # A colon of :// labels nothing.
    if "=" in text or text.count(":") > text.count("://"):
        text = scrub._LABELLED.sub(r"\1[token]", text)
    return text


def _url(text: str, listed: frozenset[str]) -> str:
    text = re.sub(r"(?<=://)[^/\s?#]+@", "", text)
    if re.search(r'[ "\n]', text):
        return re.sub(r"[^\s\"'<>]+", lambda word: _word(word[0], listed), text)
    return _word(text, listed)


def _word(word: str, listed: frozenset[str]) -> str:
    page, mark, fragment = word.partition("#")
    if "=" in fragment:
        route, _, inner = fragment.rpartition("?")
        parts = [
            part for part in (route if "=" not in route else "", _query(inner, listed)) if part
        ]
        fragment = "?".join(parts)
        mark = "#" if fragment else ""
    head, asks, query = page.partition("?")
    if query and ("=" in query or "://" in head or head.startswith(("/", "www."))):
        query = _query(query, listed)
        asks = "?" if query else ""
    return head + asks + query + mark + fragment


def _query(query: str, listed: frozenset[str]) -> str:
    parts = re.split("[&;?]", query)
    return "&".join(part for part in parts if unquote_plus(part.partition("=")[0]) in listed)
