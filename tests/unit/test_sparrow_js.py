"""sparrow.js as the collector serves it: its size, what it may not hold, how it behaves."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVED = ROOT / "ingest" / "collector" / "static" / "sparrow.js"
SDK = ROOT / "sdk" / "js"


def test_it_is_smaller_than_3_kb_on_the_wire() -> None:
    assert len(gzip.compress(SERVED.read_bytes(), mtime=0)) < 3_000


def test_it_runs_under_a_strict_content_security_policy() -> None:
    """No code from text, no markup, no script or style that it adds."""
    text = SERVED.read_text(encoding="ascii")
    assert not re.search(r"\beval\b|\bFunction\(|innerHTML|createElement|document\.write", text)
    assert not re.search(r"setTimeout\([\"'`]", text)


def test_it_brings_nothing_along() -> None:
    """No run-time dependency, and every tool of the build has one version and a hash."""
    package = json.loads((SDK / "package.json").read_text(encoding="utf-8"))
    assert "dependencies" not in package
    assert all(re.fullmatch(r"[\d.]+", v) for v in package["devDependencies"].values())
    locked = json.loads((SDK / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    tools = {name: entry for name, entry in locked.items() if name}
    assert tools
    assert all("integrity" in entry and "resolved" not in entry for entry in tools.values())


def test_its_behaviour_in_a_browser_that_the_test_owns() -> None:
    """sdk/js/test: every case there, under Node's own test runner."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.lstrip("v").split(".")[0]) < 20:
        pytest.skip(f"node is {version.strip()}, the tests need 20")
    tests = sorted(str(path) for path in (SDK / "test").glob("*.test.mjs"))
    ran = subprocess.run(
        [node, "--test", "--test-reporter=tap", *tests],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    passed = re.search(r"^# pass (\d+)$", ran.stdout, re.MULTILINE)
    assert passed is not None
    assert int(passed[1]) > 50
