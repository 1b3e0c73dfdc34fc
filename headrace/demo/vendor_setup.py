"""What the vendors' act is played with: a headrace.toml with [vendors] and [trace], and events.

`ALLOWED` says the same as the [trace] section, by hand: what is counted later is held against it,
not against what the forwarder makes of its configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from headrace.demo.model import VENDOR_KEY

__all__ = ["ALLOWED", "BROKEN", "CONFIG", "OUTAGE_S", "SECRET", "configuration", "event"]

# The file of its own.
CONFIG = "vendors.toml"

# The one that goes down; and for how long until it gets fresh events first.
BROKEN, OUTAGE_S = "amplitude", 1
ALLOWED: Mapping[str, frozenset[str]] = {
    "amplitude": frozenset({"checkout", "search"}),
    "mixpanel": frozenset({"checkout"}),
    "posthog": frozenset({"checkout", "search"}),
}
# Stands in every event, in a property that [trace] does not list.
SECRET = "nobody-is-to-see-this"  # noqa: S105 - it is no credential

_KEYS = {"amplitude": "api_key_env", "mixpanel": "token_env", "posthog": "api_key_env"}
_TRACE = """
[trace.events.checkout]
[trace.events.checkout.properties]
plan = "string"
step = "integer"

[trace.events.search]
vendors = ["amplitude", "posthog"]
[trace.events.search.properties]
results = "integer"
"""
# In turn; the last one is for no vendor.
_NAMES = ("checkout", "search", "checkout", "mouse moved")
_USERS = 400


def configuration(at: Callable[[str], str]) -> str:
    """A headrace.toml; `at` is the address of each vendor."""
    sections = [
        f'[vendors.{name}]\n{_KEYS[name]} = "{VENDOR_KEY}"\nendpoint = "{at(name)}"\n'
        + (f"outage_s = {OUTAGE_S}\n" if name == BROKEN else "")
        for name in ALLOWED
    ]
    return "# Written by `headrace demo`.\n" + "\n".join(sections) + _TRACE


def event(number: int, event_id: str, at_us: int, random: Random) -> dict[str, Any]:
    """The event of that number, as a page sends it."""
    name = _NAMES[number % len(_NAMES)]
    user = random.randrange(_USERS)
    properties: dict[str, Any] = {"note": SECRET}
    if name == "checkout":
        properties |= {"plan": random.choice(("free", "pro")), "step": random.randrange(1, 4)}
    elif name == "search":
        properties |= {"results": random.randrange(100)}
    return {
        "event": name, "eventId": event_id, "deviceId": f"device-{user:05}",
        "userId": f"user-{user:05}", "timestamp": at_us / 1e6, "properties": properties,
    }  # fmt: skip
