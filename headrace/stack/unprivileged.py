"""Running PostgreSQL when we are root: it refuses to be, so it becomes `nobody`.

Rules: an ordinary user runs it as himself. Root runs it as the owner of its data, `nobody` at
first. `nobody` must be able to enter the data's and the program's directories. Where he cannot
(a checkout or a virtual environment below /root, pytest's own directories) and the system has
`setpriv` (util-linux, on every Linux), he keeps one capability of root, CAP_DAC_OVERRIDE, which
lets him through; no permission of any directory is changed. Where that is not allowed either,
StackError says which directory is the obstacle.
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
    it is for. StackError when there is no way."""
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
    if owner == 0:
        os.chown(data_parent, user.pw_uid, user.pw_gid)
        data_parent.chmod(0o700)
    plain = RunAs(user.pw_uid, user.pw_gid)
    if _can_enter(plain, data_parent, *programs):
        return plain
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
    if _can_enter(with_capability, data_parent, *programs):
        return with_capability
    closed = next(p for p in (data_parent, *programs) if not _can_enter(plain, p))
    raise StackError(
        f"PostgreSQL refuses to run as root, and the user {user.pw_name!r} cannot enter {closed}. "
        "Run headrace as an ordinary user, or use directories that everybody may enter and only "
        "root may write to, for example: HEADRACE_STATE=/var/lib/headrace headrace up"
    )


def _can_enter(run_as: RunAs, *paths: Path) -> bool:
    """Asks the kernel rather than the mode bits: ACLs and mount options count too."""
    script = 'for p in "$@"; do test -r "$p" && test -x "$p" || exit 1; done'
    argv = [*run_as.wrapper, "/bin/sh", "-c", script, "sh", *map(str, paths)]
    try:
        run = subprocess.run(argv, capture_output=True, check=False, cwd="/", **run_as.popen_args())
    except OSError:  # no setpriv here
        return False
    return bool(run.returncode == 0)
