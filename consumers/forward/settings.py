"""[vendors.NAME] of headrace.toml: the vendor's own settings, and how it is sent to.

    [vendors.amplitude]
    api_key_env = "AMPLITUDE_API_KEY"     # the vendor's own
    concurrency = 8                       # requests under way at a time, at most
    timeout_s = 30                        # for an answer
    proxy = "http://proxy:3128"           # without it, straight to the vendor
    outage_s = 60                         # away for longer, it gets fresh events first (gap.py)

NAME is how [trace], receipts and metrics call it; where it is none of the vendors' names, `kind`
says which vendor it is. Credentials are asked for when the vendor is made: other commands do not
need them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from consumers.forward.engine_settings import EngineSettings
from consumers.vendors import VENDORS, Vendor, VendorError, vendor

__all__ = ["VendorSettings", "from_tables"]

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,39}")


@dataclass(frozen=True, slots=True)
class VendorSettings:
    """One vendor that is configured."""

    name: str
    table: Mapping[str, Any]
    engine: EngineSettings
    # How long it may be away before what it missed becomes a replay job.
    outage_s: float = 60.0
    # Those of the environment that the table names.
    credentials: Mapping[str, str] = field(default_factory=dict, repr=False)

    def vendor(self) -> Vendor:
        """The vendor itself. Raises VendorError, also for credentials that are missing."""
        return vendor(self.name, self.table, self.credentials)


def from_tables(tables: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, VendorSettings]:
    """All of [vendors.…]. Raises VendorError."""
    return {name: _read(name, table, environ) for name, table in tables.items()}


def _read(name: str, table: Any, environ: Mapping[str, str]) -> VendorSettings:
    where = f"vendors.{name}"
    if not isinstance(table, dict):
        raise VendorError(f"{where} must be a section: [{where}]")
    if not _NAME.fullmatch(name):
        raise VendorError(f"{where}: the name must be a-z, 0-9, _ and -, 40 at most")
    left = dict(table)
    kind = left.get("kind", name)
    if not isinstance(kind, str) or kind not in VENDORS:
        raise VendorError(
            f"{where}: {kind!r} is no vendor; give kind = one of {', '.join(VENDORS)}"
        )
    engine = EngineSettings()
    if "concurrency" in left:
        found = left.pop("concurrency")
        if type(found) is not int or not 1 <= found <= 100:
            raise VendorError(f"{where}.concurrency = {found!r} must be a whole number, 1 to 100")
        engine = replace(engine, concurrency=found)
    if "timeout_s" in left:
        found = left.pop("timeout_s")
        if type(found) not in (int, float) or not 0 < found <= 600:
            raise VendorError(f"{where}.timeout_s = {found!r} must be seconds, up to 600")
        engine = replace(engine, timeout_s=float(found))
    if "proxy" in left:
        found = left.pop("proxy")
        if not isinstance(found, str) or not found.startswith(("http://", "https://")):
            # There may be a password in it.
            raise VendorError(f"{where}.proxy must be an address, as http://host:port")
        engine = replace(engine, proxy=found)
    outage_s = left.pop("outage_s", 60.0)
    if type(outage_s) not in (int, float) or not 0 < outage_s <= 1e6:
        raise VendorError(f"{where}.outage_s = {outage_s!r} must be seconds, up to a million")
    # What is no name is said with the credentials.
    named = {v for key, v in left.items() if key.endswith("_env") and isinstance(v, str)}
    credentials = {n: environ[n] for n in named if n in environ}
    return VendorSettings(name, left, engine, float(outage_s), credentials)
