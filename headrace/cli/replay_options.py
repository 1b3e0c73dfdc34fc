"""Options that starting a replay and going on with one share."""

from __future__ import annotations

import click

__all__ = ["RATE", "Rate", "skip_lost_option"]


class Rate(click.ParamType[float]):
    """ "500/s" or "500": records a second."""

    name = "rate"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            found = float(str(value).removesuffix("/s"))
        except ValueError:
            found = 0.0
        if not 1 <= found < float("inf"):
            self.fail(f"{value!r} is not a rate: write 500/s; at least 1/s", param, ctx)
        return found


RATE = Rate()
skip_lost_option = click.option(
    "--skip-lost",
    is_flag=True,
    help="Go on behind records that Kafka's retention removed before they were replayed.",
)
