"""What the acts hand to each other: plain values without behaviour."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

__all__ = [
    "CLICKHOUSE", "NOISY", "POSTGRES", "VENDOR_KEY", "DemoError", "Kill", "Rates", "Settings",
]  # fmt: skip

POSTGRES, CLICKHOUSE = "PostgreSQL", "ClickHouse"

# The stream that carries rubbish; its headrace.toml is written by `place`.
NOISY = "noisy_state"

# The environment variable that holds the key for the stand-in vendors, who take any.
VENDOR_KEY = "DEMO_VENDOR_KEY"

# Each device reports every two minutes, as in the original.
EVERY_S = 120


class DemoError(Exception):
    """The demo can't go on; the text says what happened and where to look."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How large the demo is, and where it works."""

    devices: int = 9_000
    hours: int = 2
    # How long publishing the first half takes, in seconds: long enough to kill in the middle of it.
    # A vendor is down for as long.
    live_s: float = 10.0
    # None: a temporary directory.
    state_dir: Path | None = None
    keep: bool = False


@dataclass(frozen=True, slots=True)
class Kill:
    """One SIGKILL. `landed` was counted in the table right after it, `published` right before."""

    who: str
    pid: int
    at_s: float
    landed: int
    published: int
    total: int

    @property
    def in_the_middle(self) -> bool:
        """Some had landed, and not all."""
        return 0 < self.landed < self.total


@dataclass(slots=True)
class Rates:
    """Records a second while the second half went through, all on this machine at the same time."""

    published: float = 0.0
    landed: dict[str, float] = field(default_factory=dict)
