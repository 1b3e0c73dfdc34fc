"""The vendors' own SDKs work against the stand-ins as they do against the vendors.

Amplitude's, Mixpanel's and PostHog's from PyPI, unchanged, each with nothing but another address.
They hold the stand-ins to what the vendors really answer: an SDK that could not read an answer
would raise, give up or send again. Segment's goes to a collector, see test_segment_sdks.py.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from amplitude import Amplitude, BaseEvent, Config
from mixpanel import BufferedConsumer, Consumer, Mixpanel, MixpanelException
from mixpanel import ServiceAccountCredentials as Account
from posthog import Posthog
from waiting import until

from headrace.vendors.client import Vendors, serve

DEADLINE_S = 30.0
MAIN = "from headrace.cli import main; main()"
BATCH = "/batch"

# Amplitude's SDK leaves answers of urllib's to be collected, which Python 3.14 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:Implicitly cleaning up <HTTPError:ResourceWarning")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDKs do as the environment says; loopback is not to go through a proxy."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")


# -- Amplitude -------------------------------------------------------------------------------------


class Told:
    """What Amplitude's SDK told of each event: its insert_id, the code, the text."""

    def __init__(self) -> None:
        self.codes: dict[str, int] = {}

    def __call__(self, event: BaseEvent, code: int, message: str | None = None) -> None:
        self.codes[str(event.insert_id)] = code


def amplitude(stand_ins: Vendors, path: str = BATCH, **settings: Any) -> tuple[Amplitude, Told]:
    told = Told()
    config = Config(
        server_url=stand_ins.at("amplitude") + path, use_batch=path == BATCH, callback=told,
        flush_interval_millis=20, **settings,
    )  # fmt: skip
    return Amplitude("a-key", config), told


def purchase(n: int, **more: Any) -> BaseEvent:
    event = {"user_id": f"user {n}", "insert_id": f"id-{n}", "time": 1_700_000_000_000 + n}
    return BaseEvent("purchase", **{**event, "event_properties": {"n": n}, **more})


@pytest.mark.parametrize("path", [BATCH, "/2/httpapi"])
def test_amplitudes_sdk_is_told_200_for_each_event(stand_ins: Vendors, path: str) -> None:
    sdk, told = amplitude(stand_ins, path, flush_queue_size=10)
    for n in range(25):
        sdk.track(purchase(n))
    sdk.shutdown()
    until(lambda: len(told.codes) == 25)
    assert set(told.codes.values()) == {200}
    stored = stand_ins.stored("amplitude", list="events")
    assert {(row["key"], row["user"], row["time_us"]) for row in stored["list"]} == {
        (f"id-{n}", f"user {n}", (1_700_000_000_000 + n) * 1000) for n in range(25)
    }
    assert (stored["count"], stored["repeated"]) == (25, 0)


def test_amplitudes_sdk_drops_the_events_that_a_400_names_and_sends_the_rest(
    stand_ins: Vendors,
) -> None:
    sdk, told = amplitude(stand_ins)
    for n in range(6):
        sdk.track(purchase(n, user_id="none") if n in (1, 4) else purchase(n))
    until(lambda: len(told.codes) == 6)
    sdk.shutdown()
    assert {key for key, code in told.codes.items() if code == 400} == {"id-1", "id-4"}
    assert sorted(stand_ins.keys("amplitude")) == ["id-0", "id-2", "id-3", "id-5"]


def test_amplitudes_sdk_repeats_what_was_taken_with_500_and_it_is_stored_once(
    stand_ins: Vendors,
) -> None:
    """Not when the answer breaks off: this SDK loses its thread there, and the events with it."""
    stand_ins.break_("amplitude", fail=0.2, fail_after=0.3, seed=5)
    sdk, told = amplitude(stand_ins, flush_queue_size=5)
    for n in range(60):
        sdk.track(purchase(n))
    until(lambda: len(told.codes) == 60)
    sdk.shutdown()
    assert set(told.codes.values()) == {200}
    stored = stand_ins.stored("amplitude")
    assert (stored["count"], stored["keys"]) == (60, 60)
    assert stored["repeated"] > 0


def test_amplitudes_sdk_sends_again_at_once_after_a_429_that_names_nobody(
    stand_ins: Vendors,
) -> None:
    stand_ins.break_("amplitude", throttle=0.3, seed=1)
    sdk, told = amplitude(stand_ins, "/2/httpapi", flush_queue_size=3)
    for n in range(30):
        sdk.track(purchase(n))
    until(lambda: len(told.codes) == 30)
    sdk.shutdown()
    assert set(told.codes.values()) == {200}
    stored = stand_ins.stored("amplitude")
    assert (stored["count"], stored["repeated"]) == (30, 0)
    assert {"429", "200"} == set(stored["answers"])


def test_amplitudes_sdk_sends_less_at_once_after_a_413(stand_ins: Vendors) -> None:
    sdk, told = amplitude(stand_ins, "/2/httpapi", flush_queue_size=20)
    for n in range(20):
        sdk.track(purchase(n, event_properties={"parts": ["y" * 1000] * 60}))
    until(lambda: len(told.codes) == 20)
    sdk.shutdown()
    assert set(told.codes.values()) == {200}
    stored = stand_ins.stored("amplitude")
    assert (stored["count"], stored["repeated"]) == (20, 0)
    assert {"413", "200"} == set(stored["answers"])


def test_amplitudes_sdk_knows_a_revoked_key(
    stand_ins: Vendors, caplog: pytest.LogCaptureFixture
) -> None:
    stand_ins.break_("amplitude", revoked=True)
    sdk, _ = amplitude(stand_ins, logger=logging.getLogger("amplitude under test"))
    sdk.track(purchase(1))
    until(lambda: "Invalid API Key" in caplog.text)
    sdk.shutdown()
    assert stand_ins.stored("amplitude")["count"] == 0


# -- Mixpanel --------------------------------------------------------------------------------------


def urls(stand_ins: Vendors) -> dict[str, str]:
    at = stand_ins.at("mixpanel")
    return {"events_url": f"{at}/track", "people_url": f"{at}/engage",
            "import_url": f"{at}/import", "groups_url": f"{at}/groups"}  # fmt: skip


@pytest.mark.parametrize("kind", [Consumer, BufferedConsumer])
def test_mixpanels_sdk_tracks_and_sets_profiles(stand_ins: Vendors, kind: Any) -> None:
    consumer = kind(**urls(stand_ins))
    sdk = Mixpanel("a-token", consumer=consumer)
    now_s = time.time()
    for n in range(7):
        sdk.track(f"user {n}", "see", {"n": n})
    sdk.people_set("user 1", {"$name": "Zoë"})
    sdk.group_set("company", "acme", {"plan": "pro"})
    if isinstance(consumer, BufferedConsumer):
        consumer.flush()
    stored = stand_ins.stored("mixpanel", list="events")
    assert sorted(row["user"] for row in stored["list"]) == [f"user {n}" for n in range(7)]
    assert (stored["count"], stored["keys"]) == (7, 7)
    assert all(abs(row["time_us"] / 1e6 - now_s) < 60 for row in stored["list"])


def test_mixpanels_sdk_imports_what_is_old_with_a_service_account(stand_ins: Vendors) -> None:
    account = Account(username="robot", secret="hush", project_id="7")
    sdk = Mixpanel("a-token", consumer=Consumer(**urls(stand_ins), credentials=account))
    for _ in range(2):
        sdk.import_data(None, "user 1", "see", 1_600_000_000, {"$insert_id": "same"})
    stored = stand_ins.stored("mixpanel")
    assert (stored["count"], stored["repeated"]) == (1, 1)
    assert stored["time_us"] == [1_600_000_000_000_000] * 2


def test_mixpanels_sdk_raises_what_the_answer_says(stand_ins: Vendors) -> None:
    sdk = Mixpanel("a-token", consumer=Consumer(**urls(stand_ins)))
    with pytest.raises(MixpanelException, match="credentials are missing"):
        sdk.import_data(None, "user 1", "see", 1_600_000_000)
    with pytest.raises(MixpanelException, match="1 data points failed validation"):
        sdk.import_data(None, "anonymous", "see", 1_600_000_000, api_secret="a-token")
    stand_ins.break_("mixpanel", down="reset")
    with pytest.raises(MixpanelException, match="Connection"):
        sdk.track("user 1", "see")
    assert stand_ins.stored("mixpanel")["count"] == 0


# -- PostHog ---------------------------------------------------------------------------------------


def posthog(stand_ins: Vendors, failed: list[Any], **settings: Any) -> Posthog:
    return Posthog(
        "phc_key", host=stand_ins.at("posthog"), flush_interval=0.02,
        on_error=lambda error, batch: failed.append(error), **settings,
    )  # fmt: skip


@pytest.mark.parametrize("packed", [False, True])
def test_posthogs_sdk_captures_under_the_uuid_that_it_returns(
    stand_ins: Vendors, packed: bool
) -> None:
    failed: list[Any] = []
    sdk = posthog(stand_ins, failed, gzip=packed, historical_migration=packed)
    uuids = [sdk.capture("see", distinct_id=f"user {n}", properties={"n": n}) for n in range(30)]
    sdk.shutdown()
    assert failed == []
    assert sorted(stand_ins.keys("posthog")) == sorted(map(str, uuids))
    assert stand_ins.stored("posthog", user="user 7", name="see")["count"] == 1


@pytest.mark.parametrize(("fault", "answer"), [("fail_after", "500"), ("reset_after", "reset")])
def test_posthogs_sdk_repeats_what_was_taken_and_it_is_left_once(
    stand_ins: Vendors, fault: str, answer: str
) -> None:
    stand_ins.break_("posthog", **{fault: 1.0})
    failed: list[Any] = []
    sdk = posthog(stand_ins, failed)
    uuid = str(sdk.capture("see", distinct_id="user 1"))
    until(lambda: answer in stand_ins.stored("posthog")["answers"])
    stand_ins.mend("posthog")
    sdk.shutdown()
    stored = stand_ins.stored("posthog", list="keys")
    assert failed == []
    assert (stored["list"], stored["repeated"] > 0) == ([uuid], True)


def test_posthogs_sdk_waits_as_long_as_a_429_says(stand_ins: Vendors) -> None:
    stand_ins.break_("posthog", throttle=1.0, retry_after_s=1)
    failed: list[Any] = []
    sdk = posthog(stand_ins, failed, max_retries=5)
    begun = time.monotonic()  # not later than the answer
    sdk.capture("see", distinct_id="user 1")
    until(lambda: "429" in stand_ins.stored("posthog")["answers"])
    stand_ins.mend("posthog")
    until(lambda: stand_ins.stored("posthog")["count"] == 1)
    assert time.monotonic() - begun > 0.8
    sdk.shutdown()
    assert failed == []


def test_posthogs_sdk_gives_up_on_a_revoked_key_and_says_why(stand_ins: Vendors) -> None:
    stand_ins.break_("posthog", revoked=True)
    failed: list[Any] = []
    sdk = posthog(stand_ins, failed)
    sdk.capture("see", distinct_id="user 1")
    sdk.shutdown()
    assert [error.status for error in failed] == [401]
    assert "API key is not valid" in str(failed[0])


# -- the process -----------------------------------------------------------------------------------


def test_a_connection_is_really_reset_and_one_answer_really_broken_off(stand_ins: Vendors) -> None:
    with httpx.Client(trust_env=False) as client:
        stand_ins.break_("heap", down="reset")
        with pytest.raises(httpx.ReadError):
            client.post(stand_ins.at("heap") + "/api/track", json={})
        stand_ins.break_("heap", reset_after=1.0)
        event = {"app_id": "1", "event": "e", "identity": "u", "idempotency_key": "k"}
        with pytest.raises(httpx.RemoteProtocolError):
            client.post(stand_ins.at("heap") + "/api/track", json=event)
        stand_ins.break_("ga4", reset_after=1.0)  # its answer has no middle
        hit = {"client_id": "c", "events": [{"name": "e", "params": {"event_id": "e1"}}]}
        with pytest.raises(httpx.ReadError):
            client.post(
                stand_ins.at("ga4") + "/mp/collect?measurement_id=G-1&api_secret=s", json=hit
            )
    assert (stand_ins.keys("heap"), stand_ins.keys("ga4")) == (["k"], ["e1"])


def test_its_time_goes_on_when_it_is_told_to(stand_ins: Vendors) -> None:
    event = {"app_id": "1", "event": "e", "identity": "u"}
    with httpx.Client(trust_env=False) as client:
        for _ in range(2):
            client.post(stand_ins.at("heap") + "/api/track", json=event).raise_for_status()
            stand_ins.advance(86_400)
    first, last = stand_ins.stored("heap")["came_us"]
    assert 86_400 <= (last - first) / 1e6 < 86_400 + DEADLINE_S


def test_what_is_slow_is_taken_although_its_sender_has_gone(stand_ins: Vendors) -> None:
    stand_ins.break_("heap", slow_s=0.3)
    event = {"app_id": "1", "event": "e", "identity": "u", "idempotency_key": "late"}
    with httpx.Client(trust_env=False) as client, pytest.raises(httpx.ReadTimeout):
        client.post(stand_ins.at("heap") + "/api/track", json=event, timeout=0.05)
    until(lambda: stand_ins.keys("heap") == ["late"])


def test_what_is_held_goes_on_when_the_faults_change(stand_ins: Vendors) -> None:
    stand_ins.break_("heap", slow_s=3000)
    event = {"app_id": "1", "event": "e", "identity": "u", "idempotency_key": "held"}
    url = stand_ins.at("heap") + "/api/track"
    with ThreadPoolExecutor(1) as pool, httpx.Client(trust_env=False) as client:
        asked = pool.submit(client.post, url, json=event, timeout=DEADLINE_S)
        until(lambda: stand_ins.stored("heap")["waiting"] == 1)
        stand_ins.mend("heap")
        assert asked.result().status_code == 200
    assert stand_ins.keys("heap") == ["held"]


def test_the_process_ends_at_once_also_where_it_is_slow() -> None:
    with ThreadPoolExecutor(1) as pool, httpx.Client(trust_env=False) as client:
        with serve() as vendors:
            vendors.break_("heap", slow_s=3000)
            url = vendors.at("heap") + "/api/track"
            asked = pool.submit(client.post, url, timeout=DEADLINE_S)
            until(lambda: vendors.stored("heap")["waiting"] == 1)
            began = time.monotonic()
        assert time.monotonic() - began < DEADLINE_S / 3
        with pytest.raises(httpx.TransportError):
            asked.result()


def test_the_process_ends_with_its_block() -> None:
    with serve() as vendors:
        assert vendors.stored("ga4")["count"] == 0
    with pytest.raises(ConnectionRefusedError):
        vendors.stored("ga4")


def test_the_process_ends_with_whoever_started_it(tmp_path: Path) -> None:
    """Also when that one is killed."""
    code = (
        "import json, time\nfrom headrace.vendors.client import serve\n"
        "with serve() as vendors:\n    print(vendors.url, flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        vendors = Vendors(parent.stdout.readline().decode().strip())
        assert vendors.stored("ga4")["count"] == 0
        parent.kill()

        def gone() -> bool:
            try:
                vendors.stored("ga4")
            except OSError:
                return True
            return False

        until(gone)


def test_the_command_serves_at_its_address_with_its_faults_until_it_is_told_to_stop(
    tmp_path: Path,
) -> None:
    (tmp_path / "faults.toml").write_text("[webhook]\ndown = '503'\n")
    command = [sys.executable, "-c", MAIN, "vendors", "serve", "--faults", "faults.toml"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline().decode()
            found = re.match(r"listening at (http://127\.0\.0\.1:\d+) ", said)
            assert found is not None, said
            with httpx.Client(base_url=found[1], trust_env=False) as client:
                assert client.post("/webhook", content=b"{}").status_code == 503
                assert "<h2>webhook</h2>" in client.get("/").text
                told = json.loads(client.get("/faults").content)
                assert told["webhook"]["down"] == "503"
            taken = [*command[:-2], "--listen", found[1].removeprefix("http://")]
            second = subprocess.run(taken, check=False, capture_output=True, text=True, timeout=60)
            assert second.returncode == 1
            assert "it is taken" in second.stderr
            os.kill(process.pid, signal.SIGTERM)
            assert process.wait(DEADLINE_S) == 0
        finally:
            process.kill()
