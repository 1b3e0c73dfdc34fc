"""The fleet as the databases see it: drawn from PostgreSQL, the same figures from ClickHouse."""

from __future__ import annotations

from headrace.demo import charts
from headrace.demo.landed import Figures
from headrace.demo.model import Settings
from headrace.demo.story import Story

__all__ = ["agree", "draw", "step_s"]

_INDENT = 10


def step_s(settings: Settings) -> int:
    """The interval of the chart over time: ten minutes, an hour for more than four hours."""
    return 600 if settings.hours <= 4 else 3600


def draw(story: Story, figures: Figures, settings: Settings) -> None:
    """Show them."""
    devices = sum(figures.latest.values())
    story.say(f"Newest status of {devices:,} devices, from PostgreSQL:")
    story.show(charts.by_status(figures.latest, story.blocks), _INDENT)
    story.say("The same by data centre:")
    story.show(charts.by_colo(figures.latest, story.blocks), _INDENT)
    story.say(f"Status over time, share of reports each {step_s(settings) // 60} minutes:")
    story.show(charts.over_time(figures.history, story.blocks), _INDENT)


def agree(story: Story, postgres: Figures, clickhouse: Figures) -> list[str]:
    """What is wrong with the figures of one, seen from the other; nothing if they are the same."""
    if postgres == clickhouse:
        colos = len({colo for colo, _status in postgres.latest})
        slots = len({begin for begin, _status in postgres.history})
        story.say(
            f"ClickHouse, asked the same in its own SQL, gives the same figures: {colos} data "
            f"centres, {slots} intervals, every number equal."
        )
        return []
    return ["PostgreSQL and ClickHouse give different figures of the same fleet"]
