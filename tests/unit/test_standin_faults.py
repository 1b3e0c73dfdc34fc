"""The stand-ins break as they are told, and say truly what they stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from vendors_standin import NOW_US, Standing

from headrace.vendors.faults import FaultError, Faults
from headrace.vendors.server import VendorsError, read_faults, run
from ingest.units import SECOND_US

TRACK = "/heap/api/track"
VENDORS = ["ga4", "amplitude", "heap", "mixpanel", "posthog", "webhook"]
PATHS = {
    "ga4": "/ga4/mp/collect", "amplitude": "/amplitude/batch", "heap": TRACK,
    "mixpanel": "/mixpanel/import", "posthog": "/posthog/batch/", "webhook": "/webhook",
}  # fmt: skip
every = pytest.mark.parametrize("vendor", VENDORS)


@pytest.fixture
def at() -> Standing:
    return Standing()


def one(n: int, **more: Any) -> dict[str, Any]:
    return {"app_id": "11", "event": "buy", "identity": f"u{n}", "idempotency_key": f"k{n}",
            "timestamp": f"2025-06-15T15:00:{n % 60:02}Z", **more}  # fmt: skip


def statuses(at: Standing, count: int = 200) -> list[int]:
    return [at.post(TRACK, one(n)).status for n in range(count)]


# -- what is answered ------------------------------------------------------------------------------


@every
def test_a_vendor_that_is_down_answers_503_whatever_is_sent(at: Standing, vendor: str) -> None:
    at.break_(vendor, down="503", retry_after_s=7)
    answer = at.post(PATHS[vendor], {})
    assert (answer.status, answer.headers["retry-after"]) == (503, "7")
    assert at.stored(vendor)["answers"] == {"503": 1}


@every
def test_a_vendor_that_throttles_answers_429(at: Standing, vendor: str) -> None:
    at.break_(vendor, throttle=1.0)
    answer = at.post(PATHS[vendor], {})
    assert (answer.status, "retry-after" in answer.headers) == (429, False)
    at.break_(vendor, throttle=1.0, retry_after_s=2.5)
    assert at.post(PATHS[vendor], {}).headers["retry-after"] == "2.5"


@pytest.mark.parametrize(
    ("vendor", "status"),
    [("ga4", 204), ("amplitude", 400), ("heap", 401), ("mixpanel", 401), ("posthog", 401),
     ("webhook", 401)],
)  # fmt: skip
def test_a_revoked_key_is_refused_in_the_vendors_way(
    at: Standing, vendor: str, status: int
) -> None:
    """GA4 does not say so; Amplitude's own SDK knows it by how the text begins."""
    at.break_(vendor, revoked=True)
    answer = at.post(PATHS[vendor], {})
    assert answer.status == status
    if vendor == "amplitude":
        assert answer.json["error"].startswith("Invalid API key:")


def test_an_answer_of_500_may_come_with_or_without_the_events_taken(at: Standing) -> None:
    at.break_("heap", fail=1.0)
    assert (at.post(TRACK, one(1)).status, at.keys("heap")) == (500, [])
    at.break_("heap", fail_after=1.0)
    assert (at.post(TRACK, one(1)).status, at.keys("heap")) == (500, ["k1"])


def test_an_answer_that_breaks_off_leaves_the_events_taken(at: Standing) -> None:
    at.break_("heap", reset_after=1.0)
    answer = at.post(TRACK, one(1))
    assert (answer.whole, answer.body) == (False, b"{")
    assert int(answer.headers["content-length"]) > len(answer.body)
    assert (at.keys("heap"), at.stored("heap")["answers"]) == (["k1"], {"reset": 1})


def test_shares_come_out_as_they_were_asked_for_and_are_the_same_each_time() -> None:
    faults = Faults(fail=0.2, fail_after=0.1, throttle=0.1, seed=7)
    first, second, other = (
        statuses(Standing(heap=f)) for f in (faults, faults, Faults(fail=0.2, seed=8))
    )
    assert first == second != other
    assert 40 <= first.count(500) <= 80
    assert 8 <= first.count(429) <= 35


def test_events_are_lost_in_silence_by_share_and_a_copy_of_one_is_new(at: Standing) -> None:
    at.break_("heap", drop=0.25)
    assert statuses(at) == [200] * 200
    found = at.stored("heap")
    assert found["count"] + found["dropped"] == 200
    assert 30 <= found["dropped"] <= 70
    at.break_("heap")
    at.now_us += 60 * SECOND_US
    statuses(at)
    assert (at.stored("heap")["count"], at.stored("heap")["repeated"]) == (200, found["count"])


def test_a_vendor_that_is_slow_judges_after_its_time(at: Standing) -> None:
    at.break_("heap", slow_s=0.05)
    assert at.post(TRACK, one(1)).status == 200
    assert at.keys("heap") == ["k1"]


def test_a_vendors_faults_are_no_other_vendors(at: Standing) -> None:
    for vendor in VENDORS:
        if vendor != "heap":
            at.break_(vendor, down="503")
    assert at.post(TRACK, one(1)).status == 200


@every
def test_what_a_vendor_does_not_have_is_not_found(at: Standing, vendor: str) -> None:
    assert at.post(f"/{vendor}/nothing", {}).status == 404
    assert at.post(PATHS[vendor], {}, method="PUT").status == 405


@every
def test_a_body_beyond_all_limits_is_not_kept(at: Standing, vendor: str) -> None:
    assert at.post(PATHS[vendor], b"x" * (32 * 1024 * 1024 + 1)).status == 413


def test_gzip_that_is_none_is_no_json_and_a_bomb_is_not_unpacked(at: Standing) -> None:
    packed = {"content-encoding": "gzip"}
    assert at.post("/amplitude/batch", b"\x1f\x8bno", packed).status == 400
    assert at.post("/amplitude/batch", b" " * 70_000_000, packed=True).status == 400
    assert at.post(TRACK, one(1), packed=True).status == 400  # Heap takes none


# -- the operator ----------------------------------------------------------------------------------


def test_faults_are_set_seen_and_mended_over_http(at: Standing) -> None:
    told = at.post("/faults/heap", {"fail": 1, "slow_s": 0.5}, method="PUT").json
    assert told == at.get("/faults").json["heap"]
    assert (told["fail"], told["slow_s"], told["down"]) == (1.0, 0.5, "")
    at.post("/faults/heap", method="DELETE")
    assert at.get("/faults/heap").json["fail"] == 0.0


@pytest.mark.parametrize(
    "table",
    [{"fails": 1}, {"fail": 2}, {"fail": "1"}, {"fail": True}, {"fail": 0.6, "throttle": 0.6},
     {"down": "yes"}, {"slow_s": -1}, {"revoked": 1}, {"seed": 1.5}, {"drop": -0.1}],
)  # fmt: skip
def test_a_fault_that_is_none_is_refused_and_changes_nothing(
    at: Standing, table: dict[str, Any]
) -> None:
    at.break_("heap", fail=1.0)
    answer = at.post("/faults/heap", table, method="PUT")
    assert answer.status == 400
    assert next(iter(table)) in answer.json["error"]
    assert at.get("/faults/heap").json["fail"] == 1.0
    with pytest.raises(FaultError):
        Faults.read(table)


def test_the_page_shows_every_vendor_and_its_form_breaks_and_mends_one(at: Standing) -> None:
    at.post("/faults/heap", b"fail_after=0.5&down=&revoked=on&seed=3", method="POST")
    told = at.get("/faults/heap").json
    assert (told["fail_after"], told["revoked"], told["seed"]) == (0.5, True, 3)
    page = at.get("/").body.decode()
    assert all(f"<h2>{vendor}</h2>" in page for vendor in VENDORS)
    assert "name=fail_after value=0.5" in page
    answer = at.post("/faults/heap", b"")
    assert (answer.status, answer.headers["location"]) == (303, "/")
    assert at.get("/faults/heap").json["revoked"] is False
    assert at.post("/faults/heap", b"fail=much").status == 400


def test_a_page_of_another_site_changes_nothing(at: Standing) -> None:
    ours = {"origin": "http://127.0.0.1:9000", "host": "127.0.0.1:9000"}
    theirs = {**ours, "origin": "https://elsewhere.example"}
    assert at.post("/faults/heap", b"fail=1", theirs).status == 403
    assert at.get("/faults/heap").json["fail"] == 0.0
    assert at.post("/faults/heap", b"fail=1", ours).status == 303


def test_what_was_stored_is_found_by_key_name_user_and_time(at: Standing) -> None:
    for n in range(10):
        at.post(TRACK, one(n))
        at.now_us += SECOND_US
    at.post(TRACK, one(10, event="see"))
    start = NOW_US - 400 * SECOND_US  # 15:00:00
    assert at.stored("heap")["time_us"] == [start, start + 10 * SECOND_US]
    assert at.stored("heap", name="see")["count"] == 1
    assert at.stored("heap", key="k3", user="u3")["count"] == 1
    assert at.stored("heap", key="k3", user="u4")["count"] == 0
    window = {"time_from": start + 2 * SECOND_US, "time_until": start + 5 * SECOND_US}
    assert at.stored("heap", list="keys", **window)["list"] == ["k2", "k3", "k4"]
    came = at.stored("heap", came_until=NOW_US + 2 * SECOND_US, list="events", limit=1, offset=1)
    assert (came["count"], came["list"]) == (2, [{
        "key": "k1", "name": "buy", "user": "u1", "time_us": start + SECOND_US,
        "came_us": NOW_US + SECOND_US,
    }])  # fmt: skip


@pytest.mark.parametrize("query", ["colour=red", "list=all", "limit=x", "offset=-1", "limit=-1"])
def test_a_question_that_is_none_is_refused(at: Standing, query: str) -> None:
    assert at.get(f"/stored/heap?{query}").status == 400
    assert at.get("/stored/nobody").status == 404


def test_a_vendor_that_forgets_has_nothing_and_knows_no_copy(at: Standing) -> None:
    at.post(TRACK, one(1))
    at.post("/stored/heap", method="DELETE")
    assert (at.stored("heap")["count"], at.stored("heap")["answers"]) == (0, {})
    at.post(TRACK, one(1))
    assert at.keys("heap") == ["k1"]


def test_the_vendors_time_goes_on_when_it_is_told_to(at: Standing) -> None:
    before = at.get("/clock").json["now_us"]
    assert at.post("/clock", {"advance_s": 3600}).json["now_us"] == before + 3600 * SECOND_US
    assert at.post("/clock", {"advance_s": -1}).status == 400


# -- the start -------------------------------------------------------------------------------------


def test_a_file_of_faults_breaks_them_from_the_start(tmp_path: Path) -> None:
    file = tmp_path / "faults.toml"
    file.write_text("[heap]\nfail = 0.5\n[ga4]\ndown = 'reset'\n")
    assert read_faults(file) == {"heap": Faults(fail=0.5), "ga4": Faults(down="reset")}
    for text, said in (("[heap]\nfial = 1", "fial"), ("[heep]", "heep"), ("x", "faults.toml")):
        file.write_text(text)
        with pytest.raises(VendorsError, match=said):
            read_faults(file)


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "192.0.2.1:9", "localhost:0", "9000", "::1"])
def test_only_an_address_of_this_machine_is_listened_at(listen: str) -> None:
    with pytest.raises(VendorsError, match="address of this machine"):
        run(listen)
