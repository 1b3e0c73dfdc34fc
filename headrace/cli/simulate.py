"""`headrace simulate`: a made-up fleet, published or printed."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from headrace.cli.options import config_options, require_topics
from headrace.cli.when import DURATION, TIME
from headrace.words import counted

if TYPE_CHECKING:
    from headrace.fleet import Records

__all__ = ["simulate"]

_BATCH = 10_000


@click.command()
@click.option("--devices", type=click.IntRange(min=1), default=1000, show_default=True,
              help="How many there are.")  # fmt: skip
@click.option("--every", type=DURATION, default="2m", show_default=True,
              help="Interval between a device's reports, in whole seconds.")  # fmt: skip
@click.option("--from", "start_us", type=TIME, default="-1h", show_default=True,
              help="Start of the time simulated: RFC 3339, or relative as in -2h.")  # fmt: skip
@click.option("--until", "until_us", type=TIME, default="now", show_default=True,
              help="End of the time simulated, exclusive.")  # fmt: skip
@click.option("--seed", type=int, default=1, show_default=True,
              help="Another seed, another fleet.")  # fmt: skip
@click.option("--streams", default="device_state", show_default=True, metavar="NAME,…",
              help="device_state, http_test, traceroute_test, or all.")  # fmt: skip
@click.option("--rate", metavar="N[/s]",
              help="At most so many messages a second. [default: as fast as it goes]")  # fmt: skip
@click.option("--print", "to_stdout", is_flag=True,
              help="Print JSON lines instead of publishing; for one stream.")  # fmt: skip
@config_options
def simulate(
    devices: int,
    every: float,
    start_us: int,
    until_us: int,
    seed: int,
    streams: str,
    rate: str | None,
    to_stdout: bool,
    config_path: Path | None,
    kafka: str | None,
) -> None:
    """Make up a fleet of devices and publish its logs.

    Each device reports its state at every interval, at a phase of its own; devices lose their
    connection and find it again in runs, some are upgraded on the way. Some customers also have
    synthetic HTTP tests and traceroutes, every five minutes at most. The same arguments make the
    same messages, byte for byte and in the same order; give --from and --until as full times for
    that, since relative ones move with the clock.

    The last line says how many messages of each stream Kafka has acknowledged. The exit code is 1
    if that is not all of them.

    \b
    Examples:
      # thirty thousand devices, a day, as fast as it goes
      headrace simulate --devices 30000 --from -24h
      # live: ten minutes at the pace such a fleet has
      headrace simulate --devices 30000 --from now --until +10m --rate 250/s
      # look at it first
      headrace simulate --devices 3 --from -10m --print
    """
    from headrace.simulate import STREAMS, Fleet

    names = list(STREAMS) if streams == "all" else list(dict.fromkeys(streams.split(",")))
    for name in names:
        if name not in STREAMS:
            raise click.BadParameter(
                f"{name!r} can't be simulated; known: {', '.join(STREAMS)}, all",
                param_hint="--streams",
            )
    if every < 1 or every != int(every):
        raise click.BadParameter("must be whole seconds, 1s at least", param_hint="--every")
    try:
        fleet = Fleet(devices, int(every), start_us, until_us, seed)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    limit = _rate(rate)
    if to_stdout:
        if len(names) > 1:
            raise click.UsageError("--print shows one stream; choose it with --streams")
        _print(paced(fleet.batches(_size(limit), names), limit))
        return

    from headrace.config import load
    from ingest.publisher import Publisher

    settings = load(config_path, kafka=kafka)
    require_topics(settings, [settings.stream(name) for name in names])
    bootstrap = str(settings.kafka["bootstrap.servers"])
    publishers: dict[str, Publisher] = {}
    try:
        with ExitStack() as stack:
            # One for each stream, because a publisher counts all that it is given together.
            for name in names:
                publisher = Publisher(bootstrap, streams=settings.streams, config=settings.kafka)
                publishers[name] = stack.enter_context(publisher)
            for records in paced(fleet.batches(_size(limit), names), limit):
                publishers[records.stream].publish_many(
                    records.stream, records.values, records.keys
                )
    finally:
        # Whatever happened, and after the flush that leaving a publisher is.
        counts = {name: publisher.acknowledged for name, publisher in publishers.items()}
        said = [f"{name} {count:,}" for name, count in counts.items()]
        click.echo(f"acknowledged: {', '.join(said) or 'nothing'}")
    for name, count in counts.items():
        if count != fleet.expected(name):
            missing = fleet.expected(name) - count
            what = counted(missing, "message was", "messages were")
            raise click.ClickException(f"{name}: {what} not acknowledged")


def paced(
    batches: Iterator[Records],
    limit: float | None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Records]:
    """The same batches, held back so that never more than `limit` records a second pass."""
    began, sent = clock(), 0
    for records in batches:
        if limit is not None and (early := began + sent / limit - clock()) > 0:
            sleep(early)
        yield records
        sent += len(records.values)


def _rate(said: str | None) -> float | None:
    if said is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(?:/s)?", said)
    if found is None or float(found[1]) <= 0:
        raise click.BadParameter(f"{said!r} is not a rate: write 5000/s", param_hint="--rate")
    return float(found[1])


def _size(limit: float | None) -> int:
    """Batches of a tenth of a second, so that a low rate is smooth."""
    return _BATCH if limit is None else max(1, min(_BATCH, int(limit / 10)))


def _print(batches: Iterator[Records]) -> None:
    import orjson
    from google.protobuf import json_format

    from ingest.streams import BUILT_IN

    for records in batches:
        message = BUILT_IN[records.stream].message
        lines = [json_format.MessageToDict(message.FromString(v)) for v in records.values]
        click.echo(b"\n".join(map(orjson.dumps, lines)))
