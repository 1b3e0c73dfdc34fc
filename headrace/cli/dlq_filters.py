"""Which dead letters are meant: the options that the commands of `headrace dlq` share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import click

from headrace.cli.when import TIME, check_range

__all__ = ["filters"]


class _Place(click.ParamType[tuple[int, int]]):
    """ "0:1234": partition and offset."""

    name = "place"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        partition, _, offset = str(value).partition(":")
        if not (partition.isdecimal() and offset.isdecimal()):
            self.fail(f"{value!r} is not PARTITION:OFFSET, as in 0:1234", param, ctx)
        return int(partition), int(offset)


def filters(command: Callable[..., Any]) -> Callable[..., Any]:
    """--reason, --from, --until and --at, as `wanted`: which dead letters are meant."""

    @functools.wraps(command)
    def filtered(
        *args: Any,
        reason: str | None,
        begin_us: int | None,
        end_us: int | None,
        at: Sequence[tuple[int, int]],
        **kwargs: Any,
    ) -> Any:
        from consumers.dlq.letters import Wanted

        check_range(begin_us, end_us)
        return command(*args, wanted=Wanted(reason, begin_us, end_us, at), **kwargs)

    for option in (
        click.option(
            "--at", type=_Place(), multiple=True, metavar="PARTITION:OFFSET",
            help="Only the record that was there in its topic; several times.",
        ),
        click.option("--until", "end_us", type=TIME, metavar="TIME", help="Until when."),
        click.option(
            "--from", "begin_us", type=TIME, metavar="TIME", help="Since when they failed."
        ),
        click.option(
            "--reason", metavar="TEXT",
            help="Only of this kind, or with this in the reason; values in it may be others.",
        ),
    ):  # fmt: skip
        filtered = option(filtered)
    return filtered
