"""Whether the suite can fail: the product with one promise broken, and the tests that must notice.

    python -m mutants.run [NAME …]        # in tests/; `make mutants`, MUTANTS="NAME …" for some

Each mutation (mutations.py) goes into a copy of the repository, and its tests run there until one
of them fails. What ends in another way than by a failed test has caught nothing: a copy that can't
be imported, a fixture that breaks, a run without an end. All these tests also run in a copy of the
product as it is, and must pass there. Exits with 0 when they do and every mutation is caught.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mutants.mutations import MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parents[2]
# Runs at the same time: some wait half of their time for a server.
_JOBS = 2
_PATIENCE_S = 900.0
_FAILED = re.compile(r"^FAILED (.+?)(?: - (.*))?$", re.MULTILINE)


@dataclass(frozen=True)
class Outcome:
    """Of a run of tests: the first one that failed and why, or "" when all passed.

    `trouble` says why the run shows nothing.
    """

    seconds: float
    failed: str = ""
    why: str = ""
    trouble: str = ""


def copy_of(root: Path, into: Path) -> None:
    """The repository, without what is hidden or was made in it."""
    shutil.copytree(
        root, into, ignore=shutil.ignore_patterns(".*", "__pycache__", "node_modules", "build")
    )


def ask(root: Path, tests: Sequence[str]) -> Outcome:
    """Run tests in a copy until one fails."""
    began = time.monotonic()
    command = [
        sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow", "-rf", "--tb=short",
        "--hypothesis-seed=0", "-p", "no:cacheprovider", "--basetemp", str(root / "tmp"), *tests,
    ]  # fmt: skip
    # The copy, not the repository that is installed.
    environment = {**os.environ, "PYTHONPATH": str(root), "COLUMNS": "200"}
    try:
        done = subprocess.run(
            command, cwd=root, env=environment, capture_output=True, text=True, check=False,
            timeout=_PATIENCE_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Outcome(_PATIENCE_S, trouble=f"no end after {_PATIENCE_S:.0f} s")
    seconds = time.monotonic() - began
    failed = _FAILED.search(done.stdout)
    if done.returncode == 1 and failed:
        return Outcome(seconds, failed[1], failed[2] or "")
    if done.returncode == 0:
        return Outcome(seconds)
    said = f"pytest ended with {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return Outcome(seconds, trouble=said)


def judge(product: Path, mutation: Mutation | None, tests: Sequence[str]) -> Outcome:
    """What these tests say of the product with a mutation, or as it is."""
    with tempfile.TemporaryDirectory(prefix="mutant-", ignore_cleanup_errors=True) as folder:
        root = Path(folder) / "copy"
        copy_of(product, root)
        if mutation is not None:
            path, text = mutation.of(root)
            path.write_text(text)
        return ask(root, tests)


def main(names: Sequence[str]) -> int:
    chosen = [m for m in MUTATIONS if not names or m.name in names]
    if unknown := set(names) - {m.name for m in chosen}:
        print(f"no such mutation: {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    began = time.monotonic()
    asked = list(dict.fromkeys(test for m in chosen for test in m.tests))
    caught = 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        product = Path(folder) / "product"
        copy_of(ROOT, product)
        with ThreadPoolExecutor(_JOBS) as pool:
            as_it_is = pool.submit(judge, product, None, asked)
            for mutation, outcome in zip(
                chosen, pool.map(lambda m: judge(product, m, m.tests), chosen), strict=True
            ):
                caught += bool(outcome.failed)
                what = outcome.trouble or (
                    f"{outcome.failed}\n    {outcome.why}" if outcome.failed else "SURVIVED"
                )
                print(f"{mutation.name}: {mutation.breaks}  ({outcome.seconds:.0f} s)\n    {what}")
                sys.stdout.flush()
            plain = as_it_is.result()
    passes = not plain.failed and not plain.trouble
    why = plain.trouble or f"{plain.failed}\n    {plain.why}"
    what = "passes" if passes else f"{why}\n    so nothing above is shown"
    print(f"the product as it is  ({plain.seconds:.0f} s)\n    {what}")
    print(f"{caught} of {len(chosen)} caught in {time.monotonic() - began:.0f} s")
    return 0 if passes and caught == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
