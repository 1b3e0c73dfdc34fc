"""Running PostgreSQL when we are root: it refuses to be, so it becomes `nobody`.

Rules: an ordinary user runs it as himself. Root runs it as the owner of its data, `nobody` at
first. `nobody` must be able to enter the data's and the program's directories. Where he cannot
(a checkout or a virtual environment below /root, pytest's own directories) and the system has
`setpriv` (util-linux, on every Linux), he keeps one capability of root, CAP_DAC_OVERRIDE, which
lets him through; no permission of those directories is changed. Where that is not allowed either,
StackError says which directory is the obstacle.

`nobody` is also who else runs as `nobody`, and he may put links and settings where PostgreSQL's
data is. So root does nothing there by itself (`as_owner`), and where PostgreSQL keeps the
capability because of its programs, the state directory is closed: who can change the data of such a
process (`shared_preload_libraries`) has what it has.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from pathlib import Path

from .model import StackError
from .process import MYSELF, RunAs


def postgres_user(data_parent: Path, *programs: Path) -> RunAs:
    """How to run `programs` on data below the existing `data_parent`, which is given to the user
    it is for; it lies in the state directory. StackError when there is no way."""
    if os.geteuid() != 0:
        return MYSELF
    owner = data_parent.stat().st_uid
    try:
        user = pwd.getpwuid(owner) if owner != 0 else pwd.getpwnam("nobody")
    except KeyError as e:
        raise StackError(
            f"PostgreSQL refuses to run as root, and {data_parent} belongs to nobody who exists "
            f"({e}). Run headrace as an ordinary user."
        ) from e
    plain = RunAs(user.pw_uid, user.pw_gid)
    with_capability = RunAs(
        user.pw_uid,
        user.pw_gid,
        (
            shutil.which("setpriv") or "setpriv",
            f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups",
            "--inh-caps=+dac_override", "--ambient-caps=+dac_override",
            # access(2) drops capabilities without it, and Postgres asks access(2) about itself.
            "--securebits=+no_setuid_fixup",
        ),
    )  # fmt: skip
    if not _can_enter(plain, *programs) and _can_enter(with_capability, *programs):
        state_dir = data_parent.parent
        state_dir.chmod(state_dir.stat().st_mode & 0o700)
    if owner == 0:
        # While it is still ours, and after the above: he gets nothing to hold on to.
        data_parent.chmod(0o700)
        os.chown(data_parent, user.pw_uid, user.pw_gid)
    if _can_enter(plain, data_parent, *programs):
        return plain
    if _can_enter(with_capability, data_parent, *programs):
        return with_capability
    closed = next(p for p in (data_parent, *programs) if not _can_enter(plain, p))
    raise StackError(
        f"PostgreSQL refuses to run as root, and the user {user.pw_name!r} cannot enter {closed}. "
        "Run headrace as an ordinary user, or use directories that everybody may enter and only "
        "root may write to, for example: HEADRACE_STATE=/var/lib/headrace headrace up"
    )


def as_owner(run_as: RunAs, directory: Path, script: str, text: str = "") -> str:
    """Runs a shell script on `text` in a directory of that user's, as that user and without any
    capability; what it printed. StackError when it fails.

    So a link in there leads nobody further than he could go himself. The directory is entered
    before root is left, because its path may be closed to him: the script has no absolute path,
    and no `cd`, which makes one.
    """
    run = subprocess.run(
        ["/bin/sh", "-c", f"umask 077; {script}"],
        input=text, capture_output=True, text=True, errors="replace", check=False, cwd=directory,
        **run_as.bare().popen_args(),
    )  # fmt: skip
    if run.returncode != 0:
        raise StackError(f"PostgreSQL's files in {directory} can't be used: {run.stderr.strip()}")
    return run.stdout


def _can_enter(run_as: RunAs, *paths: Path) -> bool:
    """Asks the kernel rather than the mode bits: ACLs and mount options count too."""
    script = 'for p in "$@"; do test -r "$p" && test -x "$p" || exit 1; done'
    argv = [*run_as.wrapper, "/bin/sh", "-c", script, "sh", *map(str, paths)]
    try:
        run = subprocess.run(argv, capture_output=True, check=False, cwd="/", **run_as.popen_args())
    except OSError:  # no setpriv here
        return False
    return bool(run.returncode == 0)
