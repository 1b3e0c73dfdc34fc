"""`headrace demo`: the whole path on this machine, with kills, and the proof."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType

import click

from headrace.cli.when import DURATION
from ingest.extras import missing

__all__ = ["demo"]


@click.command()
@click.option("--devices", type=click.IntRange(50, 100_000), default=9_000, show_default=True,
              help="Size of the fleet; each device reports every two minutes.")  # fmt: skip
@click.option("--hours", type=click.IntRange(1, 24), default=2, show_default=True,
              help="How many hours of the fleet go through.")  # fmt: skip
@click.option("--live", type=DURATION, default="10s", show_default=True,
              help="How long publishing the first half takes, and a vendor is down.")  # fmt: skip
@click.option("--state-dir", type=click.Path(file_okay=False, path_type=Path),
              help="Work here; empty, or not there yet. [default: a temporary one]")  # fmt: skip
@click.option("--keep", is_flag=True, help="Leave the directory with all data and logs.")
def demo(devices: int, hours: int, live: float, state_dir: Path | None, keep: bool) -> None:
    """Show and prove the whole path on this machine, inserters killed in the middle included.

    On a stack of its own (Kafka, PostgreSQL, ClickHouse's engine; yours is left alone), two hours
    of a fleet's device logs and synthetic tests are published. Two inserters land them in
    PostgreSQL and one in ClickHouse; one of each is killed with SIGKILL in the middle and started
    again. Another stream has one record in a hundred that is rubbish.

    Meanwhile product events go through a collector to three stand-in vendors, as far as [trace]
    lets them. One vendor is down for as long as --live says, and the forwarder is killed once.

    Then the fleet is drawn from SQL, and what Kafka holds is compared with both databases row by
    row, in every column. The closing table says for each stream and database how many records were
    published, have landed, are dead letters, are duplicated, are lost; for each vendor, which is
    asked itself, how many were sent, accepted, dropped by the allowlist, are missing, duplicated.
    Before it stands the table of `headrace audit` over all of it, hour by hour.

    It takes about a minute and 2 GB of memory (more for a larger fleet: 1 kB a log); the first time
    on a machine it also downloads Kafka (45 MB). Ctrl-C ends it and cleans up.

    \b
    Exit code:
      0    it adds up: nothing lost, nothing duplicated
      1    it does not, or something went wrong; the output says what
      130  interrupted

    \b
    Examples:
      headrace demo
      headrace demo --devices 1000 --hours 1 --live 5s       # smaller
      headrace demo --state-dir /tmp/look --keep             # and look around afterwards
    """
    if live < 1:
        raise click.BadParameter("must be 1s at least", param_hint="--live")
    try:
        # The collector's and the forwarder's, here, so that their absence is said at once.
        import granian  # noqa: F401 - see above
        import httpx  # noqa: F401 - see above

        from headrace.demo.model import DemoError, Settings
        from headrace.demo.run import run
        from headrace.demo.story import Story
    except ModuleNotFoundError as error:
        raise click.ClickException(missing(error.name, "local, collect or vendors")) from error

    def leave(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
    story = Story(sys.stdout)
    try:
        sound = run(Settings(devices, hours, live, state_dir, keep), story)
    except DemoError as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        story.say("Interrupted. Its processes have been ended, and its directory cleaned up.")
        sys.exit(130)
    sys.exit(0 if sound else 1)
