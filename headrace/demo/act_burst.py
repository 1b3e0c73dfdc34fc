"""The second half: all at once, as after an outage, and how fast it went through."""

from __future__ import annotations

import time

from headrace.demo.act_live import Stage, wait
from headrace.demo.model import Rates
from headrace.demo.traffic import Background

__all__ = ["burst"]


def burst(stage: Stage) -> Rates:
    """Returns when everything has landed and the inserters have left. Raises DemoError."""
    story, traffic = stage.story, stage.traffic
    before = sum(tally.count for tally in traffic.tallies.values())
    rest = traffic.total - before
    story.say(f"The other {rest:,} records are published as fast as it goes.")
    began = time.monotonic()
    publishing = Background(traffic.burst)
    took_s: dict[str, float] = {}

    def enough(landed: dict[str, int]) -> bool:
        for to, count in landed.items():
            if count >= traffic.total and to not in took_s:
                took_s[to] = time.monotonic() - began
        return publishing.done and len(took_s) == len(landed)

    with story.meter(traffic.total) as meter:
        wait(stage, meter, publishing, enough)
    rates = Rates(rest / publishing.took_s, {to: rest / s for to, s in took_s.items()})
    shares = ", ".join(f"in {to} after {s:.1f} s" for to, s in took_s.items())
    story.say(f"Acknowledged by Kafka after {publishing.took_s:.1f} s, {shares}.")
    stage.crew.stop()
    story.say("The inserters were told to leave (SIGTERM): they committed, and ended with 0.")
    return rates
