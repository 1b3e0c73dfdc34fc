"""`headrace keys`: who may send to a collector, and how much."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ingest.collector.key import Key

__all__ = ["keys"]


# Where nobody names the file of keys.
_DEFAULT = Path("keys.json")
_COLUMNS = ("ID", "SOURCE", "ACCOUNT", "STREAMS", "ORIGINS", "RATE", "BURST", "DAILY", "SINCE")
_CONFIG = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The collector's settings and streams; ./headrace.toml where it exists.",
)
_FILE = click.option(
    "--keys",
    "given_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The file of keys; without it, keys under [collect] in headrace.toml, or keys.json.",
)


def _file(given: Path | None, config_path: Path | None) -> Path:
    """The file of keys: the one that is given, else what the collector's settings say."""
    from headrace.config import load

    return given or load(config_path, need_kafka=False).collect.keys or _DEFAULT


@contextmanager
def _there(given: Path | None, config_path: Path | None) -> Iterator[Path]:
    """The file of keys, to be read; that it is missing is said with why it is this one."""
    from headrace.config import load
    from ingest.collector.key import KeyFileError

    file = _file(given, config_path)
    try:
        yield file
    except KeyFileError as error:
        if given or file is not _DEFAULT or file.exists():
            raise
        where = load(config_path, need_kafka=False).file
        more = f"(no [collect] keys in {where}; give --config or --keys)"
        raise KeyFileError(f"{error} {more}") from None


@click.group()
def keys() -> None:
    """Who may send to a collector: add a key, list them, revoke one.

    The file of keys holds no secret, only hashes. A running collector takes a change within a
    second or so; nothing has to be restarted. Run this as the user the file belongs to, or as root.

    \b
    Examples:
      headrace keys add web --origin https://www.example.com --rate 500
      headrace keys ls
      headrace keys revoke k_3f9a1c2b
    """


@keys.command()
@click.argument("source")
@_CONFIG
@_FILE
@click.option("--account", metavar="TEXT", default="", help="Whose it is; shown by ls.")
@click.option(
    "--stream",
    "streams",
    multiple=True,
    metavar="NAME",
    help="A stream that it may write to, declared already; several times. Without it all, or with "
    "--origin only raw_events: a key in a web page is known to everyone.",
)
@click.option(
    "--origin",
    "origins",
    multiple=True,
    metavar="URL",
    help="A web page's origin that may use it, https://host or https://host:port; several times.",
)
@click.option(
    "--rate",
    type=click.FloatRange(0, 1e9),
    default=0.0,
    metavar="N",
    help="Records a second; 0 is no limit.",
)
@click.option(
    "--burst",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Records at once; without it 10 seconds of --rate, at least 1000.",
)
@click.option(
    "--daily",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Records a day, in UTC; 0 is no limit.",
)
@click.option(
    "--key-from-stdin",
    "given",
    is_flag=True,
    help="Take a key that clients have already, such as a Segment write key; else one is made.",
)
def add(
    source: str,
    config_path: Path | None,
    given_file: Path | None,
    account: str,
    streams: tuple[str, ...],
    origins: tuple[str, ...],
    rate: float,
    burst: int,
    daily: int,
    given: bool,
) -> None:
    """Make a key for SOURCE and print its secret, once: it can't be shown again.

    SOURCE names who sends (a site, a service, a fleet): it is stored with each product event, and
    ids of events are its own, so two keys of one source share them. The secret is the only thing on
    standard output. Without --rate and --daily there is no limit; each worker of a collector counts
    for itself, so with 4 workers a key may get up to 4 times its limits.

    A key that is imported must be 20 to 200 visible characters, and nothing that could be guessed.

    \b
    Examples:
      headrace keys add web --origin https://www.example.com --rate 500 --daily 5000000
      headrace keys add billing --account acme --stream device_state --keys /etc/headrace/keys.json
      headrace keys add ios --key-from-stdin <write-key.txt
      headrace keys add fleet --stream readings --config /etc/headrace/headrace.toml
    """
    from ingest.collector.key import KeyFileError, new_secret
    from ingest.collector.keyfile import add as put

    _check_streams(streams, config_path)
    file = _file(given_file, config_path)
    secret = sys.stdin.readline().strip() if given else new_secret()
    if origins and not streams:
        streams = ("raw_events",)
    entry: dict[str, object] = {
        "source": source,
        "account": account,
        "streams": sorted(set(streams)),
        "origins": sorted(set(origins)),
        "rate": int(rate) if rate.is_integer() else rate,
        "burst": burst,
        "daily": daily,
    }
    key = put(file, secret, entry)
    if given:
        click.echo(f"added key {key.id} for {key.source} to {file}", err=True)
    else:
        click.echo(
            f"added key {key.id} for {key.source} to {file}; this is its secret, keep it now:",
            err=True,
        )
        try:
            click.echo(secret)
        except OSError as error:
            raise KeyFileError(
                f"the secret of {key.id} could not be printed ({error.strerror}), and can't be "
                f"shown again: `headrace keys revoke {key.id} --keys {shlex.quote(str(file))}`, "
                "then add another"
            ) from error


@keys.command()
@_CONFIG
@_FILE
def ls(config_path: Path | None, given_file: Path | None) -> None:
    """List the keys, revoked ones last; no secret is known here.

    \b
    Examples:
      headrace keys ls
      headrace keys ls --keys /etc/headrace/keys.json
    """
    from ingest.collector.keyfile import read

    rows: list[tuple[str, ...]] = [_COLUMNS]
    with _there(given_file, config_path) as file:
        found = read(file)
    rows += map(_row, sorted(found, key=lambda key: key.revoked_at != ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


@keys.command()
@click.argument("key_ids", metavar="ID...", nargs=-1, required=True)
@_CONFIG
@_FILE
def revoke(key_ids: tuple[str, ...], config_path: Path | None, given_file: Path | None) -> None:
    """Revoke the keys with these ids: collectors refuse them within a second or so, for good.

    To roll a key, add the new one first, bring it to those who send, then revoke the old one.

    \b
    Examples:
      headrace keys revoke k_3f9a1c2b
      headrace keys revoke k_3f9a1c2b k_77d0e1aa --keys /etc/headrace/keys.json
    """
    from ingest.collector.keyfile import revoke as take

    with _there(given_file, config_path) as file:
        for key_id in key_ids:
            key = take(file, key_id)
            click.echo(f"key {key.id} of {key.source} is revoked since {key.revoked_at}")


def _check_streams(names: tuple[str, ...], config_path: Path | None) -> None:
    """A key for a stream that there is not would be taken, and every record of it be refused.

    Raises ConfigError.
    """
    from headrace.config import ConfigError, load

    if not names:
        return
    config = load(config_path, need_kafka=False)
    for name in names:
        try:
            config.stream(name)
        except ConfigError as error:
            raise ConfigError(
                f"{error} Where the collector has another file than this one, give it with "
                "--config; no key was made"
            ) from None


def _row(key: Key) -> tuple[str, ...]:
    limits = (
        f"{key.rate:,g}/s" if key.rate else "-",
        f"{key.burst:,}" if key.burst else "-",
        f"{key.daily:,}" if key.daily else "-",
    )
    lists = (" ".join(sorted(key.streams)) or "all", " ".join(sorted(key.origins)) or "-")
    since = f"revoked {key.revoked_at}" if key.revoked_at else key.created_at
    return (key.id, key.source, key.account or "-", *lists, *limits, since or "-")
