"""What the allowlist says of one event, compiled for one vendor: what the gate looks up for it.

Made once; for each event it spares the gate every question to the settings that has the same answer
each time (who gets it, under which name, which types).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from typing import NamedTuple

from consumers.trace.allowlist import Allowed, names_for
from consumers.trace.event import Value
from consumers.trace.scrub import Scrubber

__all__ = ["CARDS", "Listed", "Plan", "compiled"]

# Numbers between these are no card's, and finite.
CARDS = 1e11

_TYPES: Mapping[str, frozenset[type]] = {
    "string": frozenset({str}), "integer": frozenset({int}), "number": frozenset({int, float}),
    "boolean": frozenset({bool}),
}  # fmt: skip
_NO_TYPES: frozenset[type] = frozenset()


class Listed(NamedTuple):
    """A property that may leave: what it must be, for a value that is not plainly so."""

    where: str
    types: frozenset[type]
    # By type too: 1 is not true.
    one_of: frozenset[tuple[type, Value]] | None
    scrub: Scrubber


# A property, compiled: its name for the vendor; text that may leave as it is; types of which a
# value that is no text may, if it is small; and the rest. A plain tuple: a NamedTuple takes longer
# to take apart.
Rule = tuple[str, Container[str], frozenset[type], Listed]


class Plan(NamedTuple):
    """An event, compiled."""

    name: str
    rules: Mapping[str, Rule]
    # Listed, but for others.
    others: frozenset[str]
    # What is counted for it, and for a property that is not listed.
    allowed: tuple[str, str, str]
    not_listed: tuple[str, str, str]


def compiled(
    name: str, allowed: Allowed, vendor: str, scrubber: Callable[[frozenset[str]], Scrubber]
) -> Plan:
    """The plan of an event that this vendor gets; `scrubber` has one for each `Property.keep`."""
    names = names_for(allowed, vendor)
    rules: dict[str, Rule] = {}
    for key, renamed in names.items():
        found = allowed.properties[key]
        types = _TYPES[found.type]
        scrub = scrubber(found.keep)
        if found.one_of is None:
            one_of = None
            known: Container[str] = scrub.clean if str in types else ()
            plain = types - {str}
        else:
            one_of = frozenset((type(v), v) for v in found.one_of)
            known = frozenset(v for v in found.one_of if type(v) is str)
            plain = _NO_TYPES
        rules[key] = (renamed, known, plain, Listed(f"properties.{key}", types, one_of, scrub))
    return Plan(
        allowed.names.get(vendor, name), rules, frozenset(allowed.properties.keys() - names.keys()),
        (name, "", "allowed"), (name, "properties", "not_listed"),
    )  # fmt: skip
