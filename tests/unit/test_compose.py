"""docker-compose.yml and what it mounts, as far as they can be judged without Docker."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from command_lines import complaint
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from prometheus_client import REGISTRY

import consumers.metrics  # noqa: F401 - declares them
import ingest.collector.metrics  # noqa: F401 - and these
from consumers.destinations import destination
from headrace.config import load

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")

ROOT = Path(__file__).parents[2]
IMAGE = "headrace:0.1.0"


def _text(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def _substitute(text: str) -> str:
    """What compose makes of ${NAME:-default} when nothing is set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


@pytest.fixture(scope="module")
def compose() -> Any:
    return yaml.safe_load(_substitute(_text("docker-compose.yml")))


@pytest.fixture(scope="module")
def services(compose: Mapping[str, Any]) -> Any:
    return compose["services"]


def test_every_headrace_command_line_is_one_that_the_program_takes(services: Any) -> None:
    ours = {name: s for name, s in services.items() if s["image"] == IMAGE}
    assert set(ours) == {"migrate", "insert-timescale", "insert-clickhouse", "audit"}
    for name, service in ours.items():
        assert complaint(service["command"]) is None, name


def test_urls_name_services_and_the_ports_that_they_listen_on(services: Any) -> None:
    listens = {"timescale": 5432, "clickhouse": 8123}
    found = set()
    for service in services.values():
        for word in service.get("command", ()):
            if word.startswith("--to="):
                url = word.removeprefix("--to=")
                assert destination(url).kind in ("postgres", "clickhouse")
                parts = urlsplit(url)
                assert listens[str(parts.hostname)] == parts.port
                found.add(parts.hostname)
    assert found == set(listens)
    for name in ("migrate", "insert-timescale", "insert-clickhouse", "audit"):
        kafka = services[name]["environment"]["HEADRACE_KAFKA"]
        assert f"INSIDE://{kafka}" in services["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]


def test_every_image_is_pinned_to_one_version(services: Any) -> None:
    for name, service in services.items():
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+[\w.-]*", service["image"]), name
    for line in _text("Dockerfile").splitlines():
        if line.startswith("FROM "):
            assert re.match(r"FROM python:3\.\d+\.\d+-slim", line), line


def test_kafka_is_the_version_of_the_local_stack(services: Any) -> None:
    pinned = _text("headrace/stack/kafka-jars.txt")
    version = services["kafka"]["image"].partition(":")[2]
    assert f"org.apache.kafka:kafka_2.13:{version} " in pinned


def test_the_image_has_the_projects_version(services: Any) -> None:
    assert services["migrate"]["image"] == f"headrace:{metadata.version('headrace')}"


def test_every_port_is_published_on_loopback_only(services: Any) -> None:
    published = [port for service in services.values() for port in service.get("ports", ())]
    assert len(published) >= 6
    for port in published:
        assert re.fullmatch(r"127\.0\.0\.1:\d+(-\d+)?:\d+", port), port


def test_ports_on_this_machine_do_not_overlap(services: Any) -> None:
    taken: list[int] = []
    for service in services.values():
        for port in service.get("ports", ()):
            first, _, last = port.split(":")[1].partition("-")
            taken += range(int(first), int(last or first) + 1)
    assert len(taken) == len(set(taken))


def test_what_it_mounts_exists(compose: Mapping[str, Any], services: Any) -> None:
    for name, service in services.items():
        for mount in service.get("volumes", ()):
            source = mount.split(":")[0]
            if source.startswith("."):
                assert (ROOT / source).exists(), f"{name}: {mount}"
                assert mount.endswith(":ro"), f"{name}: {mount}"
            else:
                assert source in compose["volumes"], f"{name}: {mount}"


def test_a_service_waits_only_for_what_can_come_true(services: Any) -> None:
    for name, service in services.items():
        needs = service.get("depends_on", {})
        for other, how in needs.items() if isinstance(needs, dict) else ():
            match how["condition"]:
                case "service_healthy":
                    assert "healthcheck" in services[other], f"{name} waits for {other}"
                case "service_completed_successfully":
                    assert services[other]["restart"] == "no", f"{name} waits for {other}"
                case other_condition:
                    pytest.fail(f"{name}: {other_condition}")
    for name in ("insert-timescale", "insert-clickhouse", "audit"):
        assert "migrate" in services[name]["depends_on"]


def test_passwords_come_from_the_environment() -> None:
    for line in _text("docker-compose.yml").splitlines():
        if "PASSWORD:" in line and not line.lstrip().startswith("#"):
            assert re.search(r"\$\{\w+_PASSWORD:-\w+\}", line), line


def test_inserters_run_without_rights_and_get_time_to_leave(services: Any) -> None:
    for name in ("insert-timescale", "insert-clickhouse", "audit"):
        assert services[name]["read_only"] is True
        assert services[name]["cap_drop"] == ["ALL"]
        assert services[name]["stop_grace_period"] == "15s"
    assert re.search(r"^USER \d+$", _text("Dockerfile"), re.MULTILINE)


def test_the_mounted_settings_can_be_read() -> None:
    config = load(ROOT / "deploy/headrace/headrace.toml", environ={}, need_kafka=False)
    assert config.streams["device_state"].retention == "7 days"


def test_the_command_beside_the_mounted_settings_restarts_all_that_read_them(services: Any) -> None:
    """Compose recreates no container because a file changed that is mounted into it."""
    (words,) = re.findall(r"docker compose up (.*)", _text("deploy/headrace/headrace.toml"))
    readers = {name for name, service in services.items() if service["image"] == IMAGE}
    assert {"--detach", "--force-recreate", *readers} == set(words.split())


def test_the_image_is_given_all_that_it_copies() -> None:
    allowed = {
        line.removeprefix("!")
        for line in _text(".dockerignore").splitlines()
        if line.startswith("!")
    }
    for line in _text("Dockerfile").splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            for source in line.split()[1:-1]:
                assert source in allowed, line
                assert (ROOT / source).exists(), line


def test_the_build_stage_installs_all_that_the_build_backend_needs() -> None:
    listed = re.search(r"\^\(([a-z|-]+)\)==", _text("Dockerfile"))
    assert listed is not None
    assert set(listed[1].split("|")) == set(_needed_by("hatchling"))
    pinned = _text("requirements.txt")
    for name in listed[1].split("|"):
        assert re.search(rf"^{name}==", pinned, re.MULTILINE), name


def _needed_by(name: str, python: str = "3.13") -> Iterator[str]:
    """A distribution and what it requires, on the image's Python, each once."""
    seen: set[str] = set()
    todo = [canonicalize_name(name)]
    while todo:
        one = todo.pop()
        if one in seen:
            continue
        seen.add(one)
        for text in metadata.requires(one) or ():
            need = Requirement(text)
            environment = {"python_version": python, "python_full_version": f"{python}.0",
                           "extra": "", "sys_platform": "linux"}  # fmt: skip
            if need.marker is None or need.marker.evaluate(environment):
                todo.append(canonicalize_name(need.name))
    yield from seen


# -- metrics: what is watched exists ---------------------------------------------------------------


@pytest.fixture(scope="module")
def exported() -> set[str]:
    """The names of all samples that /metrics can show."""
    names = set()
    for metric in REGISTRY.collect():
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
        names |= {metric.name + suffix for suffix in suffixes.get(metric.type, ("",))}
    return names


def _watched(expression: str) -> set[str]:
    return set(re.findall(r"\bheadrace_\w+", expression))


def test_every_alert_watches_metrics_that_exist(exported: set[str]) -> None:
    document = yaml.safe_load(_text("deploy/alerts.yml"))
    rules = [rule for group in document["groups"] for rule in group["rules"]]
    operating = _text("docs/operating.md")
    assert rules
    for rule in rules:
        assert _watched(rule["expr"]) <= exported, rule["alert"]
        assert rule["alert"] in operating, "docs/operating.md says what to do"


def test_every_panel_shows_metrics_that_exist(exported: set[str]) -> None:
    document = json.loads(_text("deploy/grafana/headrace.json"))
    for panel in document["panels"]:
        for target in panel["targets"]:
            assert _watched(target["expr"]), panel["title"]
            assert _watched(target["expr"]) <= exported, panel["title"]


def test_prometheus_scrapes_the_port_on_which_the_inserters_answer(services: Any) -> None:
    document = yaml.safe_load(_text("deploy/prometheus.yml"))
    (job,) = document["scrape_configs"]
    (found,) = job["dns_sd_configs"]
    assert document["rule_files"] == ["alerts.yml"]
    for name in found["names"]:
        assert f"--metrics=0.0.0.0:{found['port']}" in services[name]["command"]
        # Of a service without a container there is nothing left to scrape.
        assert f'absent(up{{service="{name}"}})' in _text("deploy/alerts.yml")


def test_a_password_that_is_a_part_of_a_url_holds_nothing_that_is_special_there() -> None:
    """Its server takes it as it is written, and a URL percent-decodes it: no spelling is both."""
    text = _text("docker-compose.yml")
    assert "CLICKHOUSE_PASSWORD: ${CLICKHOUSE_PASSWORD:-headrace}" in text
    assert "clickhouse://headrace:${CLICKHOUSE_PASSWORD:-headrace}@" in text
    above = text.partition("\nname:")[0]
    assert "percent" not in above
    assert "CLICKHOUSE_PASSWORD (letters, digits and -._~ only" in above
