"""`headrace replay ls`, `show`, `pause`, `resume`, `cancel`: the replays there are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headrace.cli.forward import prepare
from headrace.cli.options import config_options
from headrace.cli.places import place
from headrace.cli.replay_options import RATE, skip_lost_option
from headrace.cli.replay_run import run, share_done
from headrace.cli.when import rfc3339
from headrace.config import Config, load
from headrace.words import printable, without_password

if TYPE_CHECKING:
    from consumers.replay.job import Job, State
    from consumers.replay.jobs import Jobs

__all__ = ["cancel", "list_", "pause", "resume", "show"]

# Why there is one that no person has made; by whether it sends only what is not accepted.
_AFTER = {False: " (after an outage)", True: " (its position was forgotten)"}


@click.command()
@click.argument("job_id", metavar="ID")
@click.option("--rate", type=RATE, metavar="N/s", help="From now on; without it, as before.")
@skip_lost_option
@config_options
def resume(
    job_id: str,
    rate: float | None,
    skip_lost: bool,
    config_path: Path | None,
    kafka: str | None,
) -> None:
    """Go on with a replay that was paused, stopped or killed.

    Where it is still running in another process, the two share its partitions. What an outage of a
    vendor has left out is not run here: its forwarders go on with it.

    \b
    Example:
      headrace replay resume 3f9c01d2
    """
    prepare()
    config, jobs = _jobs(config_path, kafka)
    from consumers.replay.job import Origin, State

    job = jobs.get(job_id).moved(State.OPEN)
    if rate is not None:
        job = replace(job, rate=rate)
    if job.origin is Origin.OUTAGE:
        _go_on(jobs, replace(job, skip_lost=job.skip_lost or skip_lost))
        click.echo(f"replay {job_id}: {job.state}; the forwarders of {job.to} go on with it")
        return
    where = place(config, job.to)
    run(config, jobs, where, replace(job, to=where.name), skip_lost=skip_lost)


@click.command()
@click.argument("job_id", metavar="ID")
@config_options
def pause(job_id: str, config_path: Path | None, kafka: str | None) -> None:
    """Stop a replay for now, wherever it runs; `headrace replay resume` goes on with it.

    \b
    Example:
      headrace replay pause 3f9c01d2
    """
    from consumers.replay.job import State

    _move(config_path, kafka, job_id, State.PAUSED)


@click.command()
@click.argument("job_id", metavar="ID")
@config_options
def cancel(job_id: str, config_path: Path | None, kafka: str | None) -> None:
    """Stop a replay for good, wherever it runs. What it has sent stays sent.

    \b
    Example:
      headrace replay cancel 3f9c01d2
    """
    from consumers.replay.job import State

    _move(config_path, kafka, job_id, State.CANCELLED)


@click.command("ls")
@click.option("--all", "all_", is_flag=True, help="Also those that are done or cancelled.")
@config_options
def list_(all_: bool, config_path: Path | None, kafka: str | None) -> None:
    """List the replays: state, how far each has come, its range and where it goes.

    \b
    Example:
      headrace replay ls --all
    """
    from consumers.replay.job import Origin

    config, jobs = _jobs(config_path, kafka)
    wanted = [job for job in jobs.readable().values() if all_ or not job.state.over]
    for job in wanted:
        share = _share(config, job)
        done = "-" if share is None else f"{share:.0%}"
        # An older headrace may have noted more of its URL than is shown now.
        after = _AFTER[job.only_missing] if job.origin is Origin.OUTAGE else ""
        to = f"{without_password(job.to)}{after}"
        line = (
            f"{job.id}  {job.state:9}  {done:>4}  {rfc3339(job.begin_us)}  "
            f"{rfc3339(job.end_us)}  {to}"
        )
        click.echo(printable(line))
    if not wanted:
        click.echo("there is no replay" if all_ else "no replay is open")


@click.command()
@click.argument("job_id", metavar="ID")
@config_options
def show(job_id: str, config_path: Path | None, kafka: str | None) -> None:
    """Show all that is known of a replay, as JSON.

    \b
    Example:
      headrace replay show 3f9c01d2
    """
    config, jobs = _jobs(config_path, kafka)
    job = jobs.get(job_id)
    known: dict[str, Any] = json.loads(job.value())
    for name in ("begin", "end", "created", "table_until"):
        at_us = known.pop(f"{name}_us")
        known[name] = None if at_us is None else rfc3339(at_us)
    share = _share(config, job)
    done = None if share is None else round(share, 4)
    known["to"] = without_password(job.to)
    known |= {"offsets": job.offsets, "done": done, "group": job.group}
    click.echo(json.dumps(known, indent=2))


# -- what they share -------------------------------------------------------------------------------


def _jobs(config_path: Path | None, kafka: str | None) -> tuple[Config, Jobs]:
    from consumers.replay.jobs import Jobs

    config = load(config_path, kafka=kafka)
    return config, Jobs(config.kafka)


def _share(config: Config, job: Job) -> float | None:
    """How much of it is done; None where its stream is declared no more, so that nobody can say."""
    from consumers.replay.job import State

    if job.state is State.DONE:
        return 1.0  # Kafka forgets a group's offsets a week after its last member has left
    return share_done(config, job) if job.stream in config.streams else None


def _move(config_path: Path | None, kafka: str | None, job_id: str, state: State) -> None:
    _config, jobs = _jobs(config_path, kafka)
    job = jobs.get(job_id).moved(state)
    if state.over:
        jobs.put(job)
    else:
        _go_on(jobs, job)
    click.echo(f"replay {job_id}: {state}")


def _go_on(jobs: Jobs, job: Job) -> None:
    """Raises Systemic where somebody else has ended it just now."""
    if jobs.go_on(job) is None:
        jobs.get(job.id).moved(job.state)
