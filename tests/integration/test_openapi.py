"""/openapi.json is true: schemathesis asks a real collector what the document says, and worse."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from collecting import Collector

from headrace.stack import Endpoints
from ingest.collector.key import new_secret
from ingest.collector.keyfile import add
from ingest.streams import BUILT_IN
from ingest.topics import ensure

TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "examples",
    [pytest.param(2, id="short"), pytest.param(50, id="long", marks=pytest.mark.slow)],
)
def test_every_answer_is_one_that_the_document_has(
    examples: int, tmp_path: Path, endpoints: Endpoints, unique: Callable[[str], str]
) -> None:
    """No 5xx, no status, type or form that is not declared, what is right taken, what is not
    refused; for each path, with and without a key, by every method."""
    # Segment's short paths are the same doors: in the long run only.
    leave_out = ("--exclude-path-regex", r"^/v1/([a-z]|import)$") if examples < 10 else ()
    secret = new_secret()
    add(tmp_path / "keys.json", secret, {"source": "services"})
    topics = {name: unique(name) for name in BUILT_IN}
    ensure({"bootstrap.servers": endpoints.kafka}, dict.fromkeys(topics.values(), 1))
    toml = "".join(f"[streams.{name}]\ntopic = '{topic}'\n" for name, topic in topics.items())
    with Collector(tmp_path, kafka=endpoints.kafka, toml=toml, keys="keys.json") as collector:
        done = subprocess.run(
            [
                str(Path(sys.executable).with_name("schemathesis")), "run",
                f"{collector.url}/openapi.json", "--header", f"Authorization: Bearer {secret}",
                "--checks", "all", "--exclude-checks", "negative_data_rejection",
                "--phases", "examples,coverage,fuzzing",
                "--max-examples", str(examples), "--seed", "7", "--continue-on-failure",
                "--suppress-health-check", "all", "--no-color", *leave_out,
            ],
            cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False,
            env=os.environ | {"SCHEMATHESIS_HOOKS": "openapi_hooks", "PYTHONPATH": str(TESTS)},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert "No issues found" in done.stdout or "passed" in done.stdout, done.stdout
        assert "Traceback" not in collector.log()
        assert secret not in collector.log()
