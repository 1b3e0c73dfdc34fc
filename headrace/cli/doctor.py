"""`headrace doctor`: what is wrong, whether data is safe, and what to type."""

from __future__ import annotations

import logging
import sys
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import click

from headrace.cli.options import config_options, group_option
from headrace.cli.places import places
from headrace.cli.typed import as_given, within_as_given
from headrace.config import ConfigError, load
from headrace.words import json_line

if TYPE_CHECKING:
    from headrace.doctor.check import Check

__all__ = ["doctor"]

_COLOURS = {"OK": "green", "WARN": "yellow", "FAIL": "red"}


@click.command()
@click.option(
    "--to", multiple=True, metavar="URL",
    help="A database, as for `headrace insert`; several times. [default: postgres and chdb where "
    "there are such]",
)  # fmt: skip
@group_option
@click.option("--json", "as_json", is_flag=True, help="A JSON object for each check.")
@config_options
def doctor(
    to: tuple[str, ...],
    group: str | None,
    as_json: bool,
    config_path: Path | None,
    kafka: str | None,
) -> None:
    """Say what is wrong with this installation, whether data is safe meanwhile, and what to type.

    In the order in which a record comes by: the configuration, the collector's spools on this
    machine, Kafka and its topics, databases, vendors, dead letters, replays. Nothing is changed.
    A check that can't be made is said to be one, and the others are made all the same; with all of
    it away this takes a minute.

    FAIL: a person has to act. WARN: it may wait for the morning, or pass by itself. Credentials of
    vendors are looked for in the environment of this shell. Of a vendor's breaker and a database's
    load the processes' own /readyz and /metrics know more.

    \b
    The exit code is
      0   all is well, or there are only warnings
      1   something is wrong
      2   a wrong call

    \b
    Examples:
      headrace doctor
      headrace doctor --to clickhouse://default@ch1:8123/logs
      headrace doctor --json | jq -c 'select(.verdict != "OK")'
    """
    from consumers.errors import Systemic
    from headrace.doctor.check import Verdict, bounded, fail
    from headrace.doctor.edge import configuration
    from headrace.doctor.run import checks, summary

    # What it logs of a server that is away is what the check says.
    logging.getLogger("clickhouse_connect").setLevel(logging.CRITICAL)
    found: list[Check] = []

    def say(check: Check) -> None:
        check = replace(check, text=within_as_given(check.text), do=as_given(check.do))
        found.append(check)
        _show(check, as_json)

    try:
        config = load(config_path, kafka=kafka, need_kafka=False)
        known = places(config, ())
    except (ConfigError, Systemic) as error:
        safe = "yes, what runs goes on with what it read when it was started"
        text = str(error)
        if isinstance(error, Systemic):
            text = f"HEADRACE_POSTGRES or HEADRACE_CHDB: {text}"
        say(fail("configuration", text, "headrace doctor    # once it is mended", safe))
    else:
        where = places(config, to) if to else known
        said = bounded("configuration", lambda: [configuration(config)])
        for check in chain(said, checks(config, where, group)):
            say(check)
    if not as_json:
        click.echo(f"\n{summary(found)}")
    sys.exit(1 if any(check.verdict is Verdict.FAIL for check in found) else 0)


def _show(check: Check, as_json: bool) -> None:
    if as_json:
        click.echo(json_line(asdict(check)))
        return
    verdict = click.style(f"{check.verdict:4}", _COLOURS[check.verdict])
    click.echo(f"{verdict}  {check.name}: {check.text}")
    if check.do:
        click.echo(f"      type: {check.do}")
        click.echo(f"      safe: {check.safe}")
