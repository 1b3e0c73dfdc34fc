"""What `headrace replay --dry-run` shows: a line an hour, and the sums."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime

from consumers.replay.dry import Figures

__all__ = ["lines"]

_WIDTH = 30


def lines(figures: Figures, seconds: float) -> Iterator[str]:
    """The histogram and the sums, a line each. `seconds`: how long a rate makes it last."""
    hours = figures.hours
    most = max((hour.events for hour in hours.values()), default=1)
    yield f"{'hour (UTC)':17} {'events':>12} {'accepted':>12} {'to send':>12} {'refused':>12}"
    refused: Counter[str] = Counter()
    for begin_us, hour in hours.items():
        refused += hour.refused
        moment = datetime.fromtimestamp(begin_us / 1e6, UTC).strftime("%Y-%m-%d %H:%M")
        yield (
            f"{moment:17} {hour.events:12,} {hour.accepted:12,} {hour.sent:12,} "
            f"{hour.refused.total():12,}  {'█' * max(1, round(hour.events / most * _WIDTH))}"
        )
    events, accepted, sent = (
        sum(getattr(hour, name) for hour in hours.values())
        for name in ("events", "accepted", "sent")
    )
    yield f"{'all':17} {events:12,} {accepted:12,} {sent:12,} {refused.total():12,}"
    for reason, count in refused.most_common():
        yield f"{count:,} × {reason}"
    if figures.undecodable:
        yield f"{figures.undecodable:,} records can't be decoded; they are in the dead letters"
    requests = f"{figures.requests:,} requests, if each is as full as it may be"
    yield f"{requests}; {_span(seconds)}" if seconds else requests


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"at least {seconds:.0f} s at its rate"
    if seconds < 7200:
        return f"at least {seconds / 60:.0f} min at its rate"
    return f"at least {seconds / 3600:.1f} h at its rate"
