"""The gate once more, slow and plain: what `consumers.trace.gate` must say of every event.

Nothing is compiled, remembered or asked beforehand: each setting is looked up where it matters,
each rule is asked about each text, JSON is read by `json`. The expressions of the rules are
rules.py's own; when they are asked, and what is done with an address, is spelled out here again.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import re
import uuid
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote_plus

from consumers.trace import numbers, rules, scrub
from consumers.trace.allowlist import TraceSettings
from consumers.trace.event import Event, Value
from consumers.trace.plain import plain

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
            key = _hidden(settings, key)
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
    changed: list[str] = []
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
                changed += [listed.rename.get(vendor, own)] if found else []
    counts[name, "", "allowed"] += 1
    return Event(
        event_id, key, allowed.names.get(vendor, name), _time(said.get("timestamp"), taken_us),
        taken_us, ids["user_id"], ids["device_id"], left, scrubbed=tuple(changed),
    ), counts  # fmt: skip


def _hidden(settings: TraceSettings, event_id: str) -> str:
    if not settings.hash_key:
        return str(uuid.uuid5(_KEYS, event_id))
    named = _KEYS.bytes + event_id.encode()
    digest = hmac.new(settings.hash_key.encode(), named, hashlib.sha256).digest()
    return str(uuid.UUID(bytes=digest[:16], version=5))


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
    return whole and numbers.card_number(str(int(abs(value))))


def _text(value: Any) -> str | None:
    return (str(value) or None) if type(value) in (str, int) else None


def _time(said: Any, taken_us: int) -> int:
    if type(said) is str and re.fullmatch(r"[0-9]{9,20}", said):
        said = int(said)
    if type(said) is str:
        try:
            moment = datetime.fromisoformat(said if not said.isdigit() or len(said) < 9 else "")
        except ValueError:
            if not re.search("[tz]", said):
                return taken_us
            return _time(said.replace("t", "T").replace("z", "Z"), taken_us)
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
    looked_for = settings.scrub - keep
    found: list[str] = []

    def ask(kind: str, rule: Callable[[str], str], text: str) -> str:
        # A UUID's digits are nobody's card.
        if kind not in looked_for or (kind != "url" and _UUID.fullmatch(text)):
            return text
        changed = rule(text)
        if changed != text and kind not in found:
            found.append(kind)
        return changed

    def address(text: str) -> str:
        return _url(text, settings.url_parameters)

    text = ask("url", address, text)
    # Rules see it as its reader does; it stays as it was written where they find nothing.
    seen = after = plain(text)
    if seen != text:
        after = ask("url", address, after)
    after = ask("token", _token, after)
    after = ask("mail", lambda text: rules._MAIL.sub("[mail]", text), after)
    after = ask("iban", numbers.without_ibans, after)
    after = ask("card", _cards, after)
    after = ask(
        "ip", lambda t: rules._IPV4.sub("[ip]", rules._IPV6.sub(rules._ipv6_or_not, t)), after
    )
    text = after if after != seen else text
    patterns = {n: p for n, p in settings.patterns.items() if n not in keep}
    # One that finds nothing in what is seen is looked for in what was written.
    seen = plain(text)
    for name, pattern in patterns.items():
        if seen != text and not pattern.search(seen) and pattern.search(text):
            found.append(name)
            text = pattern.sub(f"[{name}]", text)
    seen = after = plain(text)
    for name, pattern in patterns.items():
        if pattern.search(after):
            found += [name] if name not in found else []
            after = pattern.sub(f"[{name}]", after)
    return after if after != seen else text, tuple(found)


def _token(text: str) -> str:
    # Only where letters, digits, - and _ stand together, twelve at least.
    if re.search(r"[A-Za-z0-9_-]{12}", text):
        text = rules._LONG.sub(rules._random, rules._TOKEN.sub("[token]", text))
    text = rules._SCHEME.sub(rules._scheme, text)
    # A colon of :// labels nothing.
    if "=" in text or text.count(":") > text.count("://"):
        text = rules._LABELLED.sub(lambda m: "".join(g or "" for g in m.groups()) + "[token]", text)
    return text


def _cards(text: str) -> str:
    """Of each group of digits on, the longest card that the next ones make with it."""
    pieces = re.split("([0-9]+)", text)
    out, n = [pieces[0]], 1
    while n < len(pieces):
        longest = 0
        for end in range(n, len(pieces), 2):
            groups, gaps = pieces[n : end + 1 : 2], pieces[n + 1 : end : 2]
            if (
                all(len(group) >= 4 for group in groups[:-1])
                and all(re.fullmatch(r"[\s._+/-]{1,3}", gap) for gap in gaps)
                and 13 <= len("".join(groups)) <= 19
                and numbers.card_number("".join(groups))
            ):
                longest = end
        out += ["[card]" if longest else pieces[n], pieces[max(longest, n) + 1]]
        n = max(longest, n) + 2
    return "".join(out)


def _url(text: str, listed: frozenset[str]) -> str:
    text = re.sub(r"(?<=//)[^/\s?#]+@", "", text)
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
