"""Options that several commands share, and how a destination is named on the command line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from headrace.config import Config, ConfigError, start_the_stack
from ingest.streams import Stream

__all__ = [
    "config_options", "destination_url", "group_option", "require_topics", "stream_option",
    "streams_of",
]  # fmt: skip


def config_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--config and --kafka."""
    command = click.option(
        "--kafka", metavar="HOST:PORT,…", help="Kafka's bootstrap servers (HEADRACE_KAFKA)."
    )(command)
    return click.option(
        "--config",
        "config_path",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Settings and streams; ./headrace.toml where it exists.",
    )(command)


def stream_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--stream, several times."""
    return click.option(
        "--stream",
        "stream_names",
        multiple=True,
        metavar="NAME",
        help="A stream; may be given several times. Without it, all that are declared.",
    )(command)


def group_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--group, for who looks at inserters from outside."""
    return click.option(
        "--group", metavar="NAME", help="The consumer group of the databases' inserters."
    )(command)


def streams_of(config: Config, names: Sequence[str]) -> list[Stream]:
    """The streams of these names, all of them without a name."""
    if not names:
        return list(config.streams.values())
    return [config.stream(name) for name in dict.fromkeys(names)]


def require_topics(config: Config, streams: Sequence[Stream]) -> None:
    """Say at once what librdkafka would find out after ten seconds.

    Raises ConfigError where a topic is missing, TopicError where Kafka does not answer.
    """
    from ingest.topics import topic_ids

    wanted = [stream.topic for stream in streams]
    missing = sorted(set(wanted) - topic_ids(config.kafka, wanted).keys())
    if missing:
        topics = ", ".join(map(repr, missing))
        do = "does" if len(missing) == 1 else "do"
        raise ConfigError(
            f"topic {topics} {do} not exist on Kafka at {config.kafka['bootstrap.servers']}; "
            "create it with `headrace migrate`"
        )


def destination_url(config: Config, to: str) -> str:
    """`postgres` and `chdb` alone mean those of the environment, else of the local stack."""
    if to == "postgres":
        if config.postgres is None:
            raise ConfigError(
                f"--to postgres means the local stack's: {start_the_stack(config.state)}, or "
                "set HEADRACE_POSTGRES, or give a URL: --to postgres://user:password@host/database"
            )
        return config.postgres
    if to == "chdb":
        if config.chdb is None:
            raise ConfigError(
                f"--to chdb means the local stack's: {start_the_stack(config.state)}, or set "
                "HEADRACE_CHDB, or give a directory: --to chdb:DIRECTORY"
            )
        return f"chdb:{config.chdb}"
    return to
