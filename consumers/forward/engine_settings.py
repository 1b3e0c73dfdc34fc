"""How a vendor is sent to; apart from the engine, so that reading a configuration needs no HTTP."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["EngineSettings"]


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Of [vendors.NAME]: what is about sending, not about the vendor."""

    # Requests under way at a time, at most.
    concurrency: int = 8
    # For an answer, in seconds.
    timeout_s: float = 30.0
    # "http://host:port", where this network lets nothing else out; "" for none.
    proxy: str = ""
