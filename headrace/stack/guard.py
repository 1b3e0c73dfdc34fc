"""A promise for tests: when this process dies, in whatever way, its stack is shut down.

`Guard` starts a small process that waits for the end of a pipe whose other end only we hold. A
test that is killed with SIGKILL closes the pipe, and the small process runs `Stack.down`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# Waits before it imports anything: it costs 20 ms and 10 MB.
_WATCH = """
import sys
if sys.stdin.buffer.read() != b"released":
    sys.path[:] = sys.argv[2:]
    from pathlib import Path
    from headrace.stack import Stack
    Stack(Path(sys.argv[1])).down()
"""


class Guard:
    """Watches from construction until `release`, which returns when it is gone."""

    def __init__(self, state_dir: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _WATCH, str(state_dir), *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def release(self) -> None:
        self._process.communicate(b"released")
