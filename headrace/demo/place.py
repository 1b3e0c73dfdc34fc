"""Where the demo plays: a stack of its own, a headrace.toml of its own, one work directory.

    with opened(settings, story) as place: …

Rules: the user's own stack (./.headrace) is neither looked at nor touched. Afterwards, however it
ended, the servers are gone, and so is the directory unless it is to be kept; an interrupt during
that cleaning is ignored. When this very process is killed, the stack's guard shuts the servers
down, and the inserters notice (see `crew`).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import descriptor_pb2, timestamp_pb2

from headrace.config import Config, load
from headrace.demo.model import NOISY, VENDOR_KEY, DemoError, Settings
from headrace.demo.story import Story
from headrace.stack import Endpoints, Stack
from ingest.gen.headrace.v1 import device_state_pb2

__all__ = ["Place", "opened"]

_TOML = f"""\
# Written by `headrace demo`. The built-in streams need no entry; this one carries rubbish too.
[streams.{NOISY}]
descriptor_set = "device_state.bin"
message = "headrace.v1.DeviceState"
key = "device_id"
time = "timestamp"
"""

# What a child runs. It ends with the demo, also when that is killed: the pipe that is its standard
# input closes then. (A daemon thread in os.read, not in sys.stdin: the interpreter could not end.)
_MAIN = """
import os, threading
def watch():
    os.read(0, 1)
    os._exit(3)
threading.Thread(target=watch, daemon=True).start()
from headrace.cli import main
main()
"""


@dataclass(frozen=True, slots=True)
class Place:
    """A running stack with topics and tables, and how to run `headrace` on it."""

    state: Path
    folder: Path
    endpoints: Endpoints
    config: Config

    @property
    def bootstrap(self) -> str:
        """Kafka's address."""
        return self.endpoints.kafka

    @property
    def temp(self) -> Path:
        """Children's temporary files: an inserter that is killed leaves what it hands to chDB."""
        return self.folder / "tmp"

    def start(
        self,
        args: list[str],
        log: Path,
        config: str = "headrace.toml",
        answer: int | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start `headrace ARGS…` on this stack; both its outputs go to `log`.

        With `answer`, a descriptor, standard output goes there.
        """
        argv = [sys.executable, "-c", _MAIN, *args, "--config", str(self.folder / config)]
        with log.open("wb") as out:
            # A session of its own: Ctrl-C is for the demo, which ends its children in order.
            return subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=out if answer is None else answer, stderr=out,
                cwd=self.folder, env={**_environment(self.state), "TMPDIR": str(self.temp)},
                start_new_session=True,
            )  # fmt: skip

    def run(self, *args: str, config: str = "headrace.toml") -> str:
        """Run `headrace ARGS…` to its end and answer its standard output. Raises DemoError.

        Not what else it says: ClickHouse's engine complains there of a machine without cgroups.
        """
        log = self.folder / f"{args[0]}.log"
        with tempfile.TemporaryFile() as out:
            process = self.start(list(args), log, config, out.fileno())
            try:
                code = process.wait(120)
            finally:
                end(process)
            out.seek(0)
            answer = out.read().decode(errors="replace")
        if code != 0:
            said = answer + log.read_text(errors="replace")
            raise DemoError(f"`headrace {' '.join(args)}` ended with {code}:\n{said[-2000:]}")
        return answer


def end(process: subprocess.Popen[bytes]) -> None:
    """Gone when this returns; nothing happens when it had ended before."""
    process.kill()
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


@contextmanager
def opened(settings: Settings, story: Story) -> Iterator[Place]:
    """Stack up, topics and tables made; gone afterwards. Raises DemoError, StackError."""
    root, state = _directory(settings)
    try:
        stack = Stack(state)
        # Outside of the context below, which shows no progress: the first time it downloads 45 MB.
        stack.kafka.install(story.say, progress=True)
        with stack:
            endpoints = stack.endpoints()
            if endpoints is None:
                raise DemoError(f"the stack in {state} ended by itself; see its logs there")
            folder = state / "demo"
            place = Place(state, folder, endpoints, _configure(folder, state))
            place.temp.mkdir()
            yield place
    finally:
        with _undisturbed():
            if not settings.keep:
                shutil.rmtree(state / "demo", ignore_errors=True)
                # Down already, unless leaving the context failed.
                Stack(state).delete()
                if root is not None:
                    shutil.rmtree(root, ignore_errors=True)


def _directory(settings: Settings) -> tuple[Path | None, Path]:
    """What to remove, and the stack's own directory in it."""
    state = settings.state_dir
    if state is None:
        root = Path(tempfile.mkdtemp(prefix="headrace-demo-"))
        if os.geteuid() == 0:
            root.chmod(0o711)  # PostgreSQL refuses to be root, and its user has to pass through
        return root, root / "state"
    state = state.resolve()
    if state.exists() and (not state.is_dir() or any(state.iterdir())):
        raise DemoError(
            f"{state} is not empty, and the demo works only in a directory of its own: name one "
            "that does not exist yet (`headrace down --delete --state-dir DIR` removes a stack)"
        )
    return None, state


def _configure(folder: Path, state: Path) -> Config:
    """Write headrace.toml as a user would, and read it as the commands will."""
    folder.mkdir()
    files = descriptor_pb2.FileDescriptorSet()
    for module in (timestamp_pb2, device_state_pb2):
        module.DESCRIPTOR.CopyToProto(files.file.add())
    (folder / "device_state.bin").write_bytes(files.SerializeToString())
    (folder / "headrace.toml").write_text(_TOML)
    return load(folder / "headrace.toml", environ=_environment(state))


def _environment(state: Path) -> Mapping[str, str]:
    """This process's, without settings for another Headrace."""
    other = ("HEADRACE_", "SENTRY_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(other)}
    ours = {"HEADRACE_STATE": str(state), VENDOR_KEY: "stand-in", "PYTHONUNBUFFERED": "1"}
    return {**kept, **ours}


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C and the like wait until the block is over, and are then forgotten."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = {number: signal.signal(number, signal.SIG_IGN) for number in (
        signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}  # fmt: skip
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
