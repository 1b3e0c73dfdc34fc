"""The audit: `headrace audit` over everything that the demo did, and its table."""

from __future__ import annotations

import json
from typing import Any

from rich import box
from rich.table import Table

from headrace.demo.crew import GROUPS
from headrace.demo.model import CLICKHOUSE
from headrace.demo.place import Place
from headrace.demo.story import Story
from headrace.demo.vendor_setup import ALLOWED, CONFIG

__all__ = ["audited"]

_TERMS = ("accepted", "landed", "dropped", "dead", "in_flight")


def audited(story: Story, place: Place) -> list[str]:
    """Show it; what does not add up. Raises DemoError."""
    databases = place.run(
        "audit", "--json", "--to", "postgres", "--to", "chdb", "--group", GROUPS[CLICKHOUSE]
    )
    vendors = [part for name in ALLOWED for part in ("--to", name)]
    events = place.run(
        "audit", "--json", "--stream", "raw_events", "--to", "kafka", *vendors, config=CONFIG
    )
    lines = [json.loads(line) for line in databases.splitlines()]
    documents = [json.loads(line) for line in events.splitlines()]
    spools = [document for document in documents if "node" in document]
    crossed = [_crossed(line) for line in documents if line.get("destination") == "kafka"]
    lines += crossed + [line for line in documents if line.get("destination") in ALLOWED]
    story.say(
        "`headrace audit`: accepted = landed + dropped + dead + in flight, hour by hour, each term "
        "counted and hashed where the records were moved. Accepted by the collector, an event has "
        "landed when it is in Kafka; from there on, when it is at its destination."
    )
    story.show(_table(lines, story.blocks))
    wrong = [line for line in lines if not line["holds"]]
    if not wrong:
        story.say(f"All {len(lines)} lines add up, by count and by hash; its exit code is 0.")
    return [
        f"the audit: {line['stream']} in {line['destination']}, {line['hour']}, does not add up"
        for line in wrong
    ] + [
        f"the audit: of what the collector acknowledged {spool['missing']:,} were never sent, "
        f"{spool['twice']:,} twice, {spool['waiting']:,} wait"
        for spool in spools
        if not spool["holds"] or spool["waiting"]
    ]


def _crossed(line: dict[str, Any]) -> dict[str, Any]:
    """What the collector brought into Kafka, in the terms of the others."""
    landed = line["entered"] - line["direct"]
    return line | {"landed": landed, "dropped": 0, "dead": 0, "in_flight": 0}


def _table(lines: list[dict[str, Any]], blocks: bool) -> Table:
    drawn = Table(
        box=box.SIMPLE_HEAD if blocks else box.ASCII2, header_style="bold", pad_edge=False,
        padding=(0, 1, 0, 0),
    )  # fmt: skip
    for name in ("hour", "stream", "in"):
        drawn.add_column(name, no_wrap=True)
    for name in _TERMS:
        # A heading may take two lines, a number never.
        width = max(map(len, name.split("_")))
        numbers = (len(f"{line[name]:,}") for line in lines)
        heading = name.replace("_", "\n")
        drawn.add_column(heading, justify="right", min_width=max(width, *numbers, 0))
    for line in lines:
        drawn.add_row(
            f"{line['hour'][8:13].replace('T', ' ')}h", line["stream"], line["destination"],
            *(f"{line[term]:,}" for term in _TERMS),
            style="" if line["holds"] else "bold red",
        )  # fmt: skip
    return drawn
