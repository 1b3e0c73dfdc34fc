"""sparrow.js is what its source says: built anew with the pinned tools, and compared."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVED = ROOT / "ingest" / "collector" / "static" / "sparrow.js"

# How npm says that it did not reach its registry; anything else is a fault of ours.
_AWAY = re.compile(r"ENOTFOUND|ECONNREFUSED|ECONNRESET|ETIMEDOUT|EAI_AGAIN|E403|E5\d\d|ENOTCACHED")


@pytest.fixture(scope="module")
def sdk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of sdk/js with the tools that its lock file names."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("there is no npm")
    copy = tmp_path_factory.mktemp("sdk") / "js"
    shutil.copytree(ROOT / "sdk" / "js", copy, ignore=shutil.ignore_patterns("node_modules"))
    installed = subprocess.run(
        [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
        cwd=copy, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    if installed.returncode and _AWAY.search(installed.stderr):
        pytest.skip(f"npm did not reach its registry: {installed.stderr.splitlines()[0]}")
    assert installed.returncode == 0, installed.stderr
    return copy


def run(sdk: Path, script: str) -> str:
    ran = subprocess.run(
        ["npm", "run", "--silent", script],
        cwd=sdk, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_the_served_script_is_built_from_the_source(sdk: Path) -> None:
    assert run(sdk, "build") == SERVED.read_text(encoding="ascii"), "run `make js`, and commit it"


def test_the_source_passes_the_strict_checks_of_typescript(sdk: Path) -> None:
    run(sdk, "check")
