"""[trace] in headrace.toml: what may leave, and under which name for which vendor.

    [trace]
    user_id = "keep"                     # or "hash", or "drop"; device_id likewise
    device_id = "keep"
    url_parameters = ["utm_source"]      # of a URL's query only these stay
    scrub = ["mail", "card", "iban", "token", "ip", "url"]

    [trace.patterns]                     # more to take out of text: name = regular expression
    customer = 'KD-[0-9]{8}'

    [trace.events."purchase product"]
    vendors = ["ga4", "amplitude"]       # without it, every vendor that is configured
    names = { ga4 = "purchase" }         # without one, the event's own

    [trace.events."purchase product".properties]
    category = "string"
    price = { type = "number", vendors = ["ga4"], rename = { ga4 = "value" } }
    plan = { type = "string", one_of = ["free", "pro"] }
    version = { type = "string", keep = ["ip"] }      # 1.2.3.4 is no address here

What is not listed stays inside: without the section, everything does.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from consumers.trace.event import Value

__all__ = [
    "KINDS", "TYPES", "UTM", "Allowed", "Property", "TraceError", "TraceSettings",
    "from_table", "names_for",
]  # fmt: skip

TYPES = ("string", "integer", "number", "boolean")
# What is known of personal data, see scrub.py.
KINDS = ("mail", "card", "iban", "token", "ip", "url")
UTM = ("utm_source", "utm_medium", "utm_campaign", "utm_term", "utm_content")
_ID_RULES = ("keep", "hash", "drop")
_PATTERN_NAME = re.compile(r"[a-z][a-z0-9_]{0,30}")
_KNOWN = {"user_id", "device_id", "url_parameters", "scrub", "patterns", "events"}
_KNOWN_OF_EVENT = {"vendors", "names", "properties"}
_KNOWN_OF_PROPERTY = {"type", "one_of", "vendors", "rename", "keep"}


class TraceError(Exception):
    """[trace] can't be used as it is; the text names the setting and says what to do."""


@dataclass(frozen=True, slots=True)
class Property:
    """One property of an event that may leave."""

    # One of TYPES. An integer is a number too; nothing is converted.
    type: str
    # Without it any value of the type.
    one_of: tuple[Value, ...] | None = None
    # Without it every vendor that gets the event.
    vendors: frozenset[str] | None = None
    # By vendor.
    rename: Mapping[str, str] = field(default_factory=dict)
    # Kinds of personal data, or names of patterns, that are not looked for in it.
    keep: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Allowed:
    """One event that may leave."""

    vendors: frozenset[str] | None = None
    # By vendor; without one the event's own.
    names: Mapping[str, str] = field(default_factory=dict)
    properties: Mapping[str, Property] = field(default_factory=dict)

    def goes_to(self, vendor: str) -> bool:
        """Whether this vendor may get the event."""
        return self.vendors is None or vendor in self.vendors


@dataclass(frozen=True, slots=True)
class TraceSettings:
    """What may leave. Without anything said, nothing."""

    events: Mapping[str, Allowed] = field(default_factory=dict)
    # Each one of "keep", "hash" (HMAC-SHA-256 under `hash_key`), "drop".
    user_id: str = "keep"
    device_id: str = "keep"
    url_parameters: frozenset[str] = frozenset(UTM)
    scrub: frozenset[str] = frozenset(KINDS)
    patterns: Mapping[str, re.Pattern[str]] = field(default_factory=dict)
    # HEADRACE_TRACE_KEY: a secret, so it is not in the file. Another one makes users new users.
    # Where it is set, keys of events whose id is personal data are made under it too.
    hash_key: str | None = field(default=None, repr=False)


def from_table(
    table: Mapping[str, Any], vendors: Collection[str], hash_key: str | None = None
) -> TraceSettings:
    """[trace] of headrace.toml; `vendors` are those there are. Raises TraceError."""
    _known(table, _KNOWN, "trace")
    rules = {who: table.get(who, "keep") for who in ("user_id", "device_id")}
    for who, rule in rules.items():
        if rule not in _ID_RULES:
            raise TraceError(f"trace.{who} = {rule!r} must be one of {', '.join(_ID_RULES)}")
    patterns = _patterns(_section(table.get("patterns", {}), "trace.patterns"))
    kinds = _texts(table.get("scrub", list(KINDS)), "trace.scrub")
    _among(kinds, KINDS, "trace.scrub", "kind of personal data")
    events = {}
    for name, said in _section(table.get("events", {}), "trace.events").items():
        where = f"trace.events.{_quoted(name)}"
        if not name:
            raise TraceError(f"{where}: an event's name can't be empty")
        events[name] = _event(_section(said, where), where, vendors, {*KINDS, *patterns})
    return TraceSettings(
        events=events,
        url_parameters=frozenset(
            _texts(table.get("url_parameters", list(UTM)), "trace.url_parameters")
        ),
        scrub=frozenset(kinds),
        patterns=patterns,
        hash_key=hash_key,
        **rules,
    )


def names_for(allowed: Allowed, vendor: str) -> dict[str, str]:
    """The event's properties that this vendor may get: each by its own name, as the vendor's."""
    return {
        name: found.rename.get(vendor, name)
        for name, found in allowed.properties.items()
        if found.vendors is None or vendor in found.vendors
    }


def _event(
    table: Mapping[str, Any], where: str, vendors: Collection[str], kinds: set[str]
) -> Allowed:
    _known(table, _KNOWN_OF_EVENT, where)
    targets = _vendors(table, where, vendors)
    properties = {
        key: _property(said, f"{where}.properties.{_quoted(key)}", targets or vendors, kinds)
        for key, said in _section(table.get("properties", {}), f"{where}.properties").items()
    }
    names = _renames(table.get("names", {}), f"{where}.names", targets or vendors)
    found = Allowed(targets, names, properties)
    for vendor in targets or vendors:
        taken: dict[str, str] = {}
        for key, renamed in names_for(found, vendor).items():
            if renamed in taken:
                raise TraceError(
                    f"{where}: {vendor} would get both {taken[renamed]!r} and {key!r} as "
                    f"{renamed!r}; rename one of them, or leave it out with `vendors`"
                )
            taken[renamed] = key
    return found


def _property(said: Any, where: str, vendors: Collection[str], kinds: set[str]) -> Property:
    table = {"type": said} if isinstance(said, str) else said
    if not isinstance(table, dict):
        raise TraceError(
            f'{where} = {said!r} must be a type ("string") or a table ({{ type = "string", … }})'
        )
    _known(table, _KNOWN_OF_PROPERTY, where)
    kind = table.get("type")
    if kind not in TYPES:
        what = "needs a type" if kind is None else f"has the unknown type {kind!r}"
        raise TraceError(f"{where} {what}; types are {', '.join(TYPES)}")
    keep = _texts(table.get("keep", []), f"{where}.keep")
    _among(keep, kinds, f"{where}.keep", "kind of personal data or pattern")
    return Property(
        type=kind,
        one_of=_one_of(table["one_of"], kind, where) if "one_of" in table else None,
        vendors=_vendors(table, where, vendors),
        rename=_renames(table.get("rename", {}), f"{where}.rename", vendors),
        keep=frozenset(keep),
    )


def _one_of(said: Any, kind: str, where: str) -> tuple[Value, ...]:
    types: dict[str, tuple[type, ...]] = {
        "string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,),
    }  # fmt: skip
    if not isinstance(said, list) or not said or any(type(v) not in types[kind] for v in said):
        raise TraceError(f"{where}.one_of must be a list of values of the type {kind}")
    return tuple(said)


def _vendors(
    table: Mapping[str, Any], where: str, vendors: Collection[str]
) -> frozenset[str] | None:
    if "vendors" not in table:
        return None
    found = _texts(table["vendors"], f"{where}.vendors")
    _among(found, vendors, f"{where}.vendors", "vendor")
    if not found:
        raise TraceError(f"{where}.vendors is empty: name a vendor, or take the entry out")
    return frozenset(found)


def _renames(said: Any, where: str, vendors: Collection[str]) -> dict[str, str]:
    table = _section(said, where)
    _among(table, vendors, where, "vendor")
    for vendor, name in table.items():
        if not isinstance(name, str) or not name:
            raise TraceError(f"{where}.{vendor} = {name!r} must be a name, as text")
    return dict(table)


def _patterns(table: Mapping[str, Any]) -> dict[str, re.Pattern[str]]:
    found = {}
    for name, said in table.items():
        where = f"trace.patterns.{_quoted(name)}"
        if not _PATTERN_NAME.fullmatch(name) or name in KINDS:
            raise TraceError(
                f"{where}: the name must be a-z, 0-9 and _, and none of {', '.join(KINDS)}"
            )
        if not isinstance(said, str):
            raise TraceError(f"{where} = {said!r} must be a regular expression, as text")
        try:
            found[name] = re.compile(said)
        except re.error as error:
            raise TraceError(f"{where} is no regular expression: {error}") from error
        if found[name].search(""):
            raise TraceError(f"{where} = {said!r} matches nothing at all, so it is everywhere")
    return found


def _section(said: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(said, dict):
        raise TraceError(f"{where} must be a section: [{where}]")
    return said


def _known(table: Mapping[str, Any], known: set[str], where: str) -> None:
    for key in table:
        if key not in known:
            raise TraceError(
                f"{where}.{_quoted(key)} is no setting; known: {', '.join(sorted(known))}"
            )


def _texts(said: Any, where: str) -> list[str]:
    if not isinstance(said, list) or not all(isinstance(text, str) for text in said):
        raise TraceError(f"{where} must be a list of text")
    return said


def _among(found: Collection[str], known: Collection[str], where: str, what: str) -> None:
    for name in found:
        if name not in known:
            raise TraceError(f"{where}: there is no {what} {name!r}; {_list(known)}")


def _list(known: Collection[str]) -> str:
    return f"there are: {', '.join(sorted(known))}"


def _quoted(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else '"' + key.replace('"', '\\"') + '"'
