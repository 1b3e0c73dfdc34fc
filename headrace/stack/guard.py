"""A promise for tests: when this process dies, in whatever way, its stack is shut down.

`Guard` starts a small process that waits for the end of a pipe whose other end only we hold. A
test that is killed with SIGKILL closes the pipe, and the small process runs `Stack.down`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click

from .model import StackError

RELEASED = b"released"


class Guard:
    """Watches from construction until `release`, which returns when it is gone."""

    def __init__(self, state_dir: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(state_dir)],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True, cwd="/",
        )  # fmt: skip

    def release(self) -> None:
        self._process.communicate(RELEASED)


def main(state_dir: Path) -> None:
    from .stack import Stack

    if sys.stdin.buffer.read() != RELEASED:
        try:
            Stack(state_dir).down()
        except StackError as e:
            click.echo(e, err=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
