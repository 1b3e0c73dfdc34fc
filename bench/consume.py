"""What librdkafka needs to be fast from Python: slices and queue settings of bare consume().

The findings are in `consumers/client.py` (TUNING) and `consumers/fetch.py` (_SLICE); limit (c) of
bench/insert.py is the best of this table.
"""

from __future__ import annotations

import json

from _measure import compare, in_turn, report, run, stack
from insert import ROWS, TOPIC, publish

from consumers.client import TUNING

_DEFAULTS: dict[str, int] = {}
_LONG = {
    "queued.min.messages": 400_000,
    "queued.max.messages.kbytes": 262_144,
    "fetch.queue.backoff.ms": 5,
    "fetch.wait.max.ms": 10,
}
_CASES = {
    "librdkafka's defaults, 500": (_DEFAULTS, 500),
    "ours, 250": (TUNING, 250),
    "ours, 500": (TUNING, 500),
    "ours, 1000": (TUNING, 1000),
    "ours, 10000": (TUNING, 10_000),
    "long queue, 500": (_LONG, 500),
    "long queue, no CRC, 500": ({**_LONG, "check.crcs": False}, 500),
}


def main() -> None:
    """Measure, print, write."""
    with stack() as ends:
        publish(ends.kafka, ROWS)

        def bare(settings: object, size: int) -> float:
            more = ("--slice", str(size), "--settings", json.dumps(settings))
            rate: float = run("consume", ends.kafka, TOPIC, str(ROWS), *more)["rate"]
            return rate

        samples = in_turn({name: lambda c=case: bare(*c) for name, case in _CASES.items()})
    rows = [compare(n, samples, n, "long queue, 500", target=None) for n in _CASES]
    report("consume", rows)


if __name__ == "__main__":
    main()
