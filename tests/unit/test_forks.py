"""A fork: what a process has open stays its own, and its child hears so at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ingest.spool import Spool

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")

PATIENCE_S = 30.0


def test_a_child_does_not_keep_the_spool_of_a_parent_that_is_dead(tmp_path: Path) -> None:
    """Neither does it take it from one that is alive, nor open it anew: SQLite can't do that."""
    program = """
import os, signal, sys
from pathlib import Path
from ingest.spool import Spool, SpoolInUse
from ingest.spool.lock import user_of
folder = Path(sys.argv[1])
spool = Spool(folder)
child = os.fork()
if not child:
    os._exit(0)
os.waitpid(child, 0)
assert user_of(folder) == os.getpid()
there, here = os.pipe()
if os.fork():
    os.read(there, 1)  # the child has begun, and let go of what it must not keep
    print("forked", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
os.write(here, b"1")
sys.stdin.read()
try:
    Spool(folder)
except SpoolInUse as error:
    print(error, flush=True)
os._exit(0)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as parent:  # fmt: skip
        assert parent.stdout is not None
        assert parent.stdout.readline() == "forked\n"
        assert parent.wait(PATIENCE_S) == -signal.SIGKILL
        Spool(tmp_path).close()
        # Ends the child's wait.
        said, _ = parent.communicate(timeout=PATIENCE_S)
    assert "was open in the process that this one was forked from" in said


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:1 spool", "unix:PATH"])
def test_a_publisher_after_a_fork_says_whose_it_is_instead_of_waiting(
    tmp_path: Path, address: str
) -> None:
    """Nobody would send what the child gave it, nor answer, nor make room in a full queue."""
    program = """
import os, sys
from headrace import Publisher
from ingest.publisher import PublishError
state = {"deviceId": "d", "timestamp": "2025-06-16T22:50:12.226Z"}
address, _, spool = sys.argv[1].partition(" ")
publisher = Publisher(address, spool=spool or None)
delivery = publisher.publish("device_state", state)
child = os.fork()
if child:
    print(os.waitpid(child, 0)[1], flush=True)
    publisher.publish("device_state", state)
    os._exit(0)
for call in (
    lambda: publisher.publish("device_state", state),
    lambda: publisher.publish_many("device_state", [b""], [b""]),
    publisher.flush,
):
    try:
        call()
    except PublishError as error:
        assert "Make a Publisher of its own after the fork" in str(error)
    else:
        os._exit(2)
if not spool:
    try:
        delivery.result()
    except PublishError:
        pass
with publisher:
    pass
del publisher, delivery
os._exit(0)
"""
    where = address.replace("spool", str(tmp_path)).replace("PATH", str(tmp_path / "socket"))
    done = subprocess.run(
        [sys.executable, "-c", program, where],
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.stdout == "0\n", done.stderr
    assert done.returncode == 0, done.stderr
    assert "may be lost" not in done.stderr
