"""[vendors.NAME]: what is read, what is refused, and credentials that stay where they belong."""

from __future__ import annotations

import copy
import dataclasses
import traceback
from typing import Any

import pytest
from vendors_under_test import SECRET, UNDER

from consumers.vendors import VENDORS, Secret, VendorError, vendor

KEYS = {"A_KEY": SECRET}


def webhook(**table: Any) -> Any:
    return vendor("webhook", {"url": "https://example.com", "secret_env": "A_KEY", **table}, KEYS)


@pytest.mark.parametrize("name", VENDORS)
def test_a_vendor_is_a_frozen_value(name: str) -> None:
    one: Any = UNDER[name].make(name)
    same = UNDER[name].make(name)
    assert one == same
    assert hash(one) == hash(same)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(one, dataclasses.fields(one)[0].name, "x")


@pytest.mark.parametrize("name", VENDORS)
def test_a_credential_in_the_file_is_refused_without_repeating_it(name: str) -> None:
    table = dict(UNDER[name].table)
    (setting,) = (s for s in table if s.endswith("_env"))
    del table[setting]
    table[setting.removesuffix("_env")] = SECRET
    with pytest.raises(VendorError, match=f"name that, {setting}") as caught:
        vendor(name, table, KEYS)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_a_credential_in_the_place_of_its_variables_name_is_not_repeated() -> None:
    with pytest.raises(VendorError, match="must be the name of an environment variable") as caught:
        webhook(secret_env=SECRET)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("name", VENDORS)
def test_a_credential_that_is_missing_is_asked_for(name: str) -> None:
    with pytest.raises(VendorError, match="the environment variable A_KEY is not set"):
        vendor(name, UNDER[name].table, {})


@pytest.mark.parametrize("text", [SECRET + "\n", f'"{SECRET}"', f" {SECRET}", "größe", "a\\b"])
def test_a_credential_with_a_line_break_or_quotes_is_refused_unseen(text: str) -> None:
    """It could not be found again in what is shown, nor go into a header."""
    with pytest.raises(VendorError, match="characters that no credential has") as caught:
        vendor("heap", {"app_id_env": "A_KEY"}, {"A_KEY": text})
    assert text.strip() not in str(caught.value)


@pytest.mark.parametrize("name", VENDORS)
def test_a_setting_that_is_misspelt_is_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(VendorError, match=rf"vendors\.{name}\.regoin is no setting; known: .*_env"):
        UNDER[name].make(name, regoin="eu")


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"max_events": "5"}, "max_events = '5' must be a whole number"),
        ({"max_events": True}, "max_events = True must be a whole number"),
        ({"max_events": 1.5}, "max_events = 1.5 must be a whole number"),
        ({"url": 5}, "url = 5 must be text"),
        ({"secret_env": 5}, "secret_env must be the name of an environment variable"),
        ({"max_events": 0}, r"vendors\.webhook\.max_events must be 1 at least"),
        ({"kind": "webhok"}, "'webhok' is no vendor; give kind = one of "),
        ({"kind": 5}, "5 is no vendor"),
    ],
)
def test_a_setting_of_the_wrong_kind_is_refused_by_name(table: dict[str, Any], said: str) -> None:
    with pytest.raises(VendorError, match=said):
        webhook(**table)


def test_what_has_no_default_is_required() -> None:
    with pytest.raises(VendorError, match=r"vendors\.webhook needs url"):
        vendor("webhook", {"secret_env": "A_KEY"}, KEYS)
    with pytest.raises(VendorError, match=r"vendors\.heap needs app_id_env"):
        vendor("heap", {}, KEYS)


def test_two_of_a_kind_have_names_of_their_own() -> None:
    one = vendor("orders", {"kind": "heap", "app_id_env": "A_KEY"}, KEYS)
    assert one == vendor("heap", {"app_id_env": "A_KEY"}, KEYS)


def test_a_switch_and_a_share_are_read() -> None:
    amplitude: Any = UNDER["amplitude"].make("amplitude", gzip=False)
    assert amplitude.gzip is False
    for share in (1, 0.25):
        ga4: Any = UNDER["ga4"].make("ga4", validate_share=share)
        assert ga4.validate_share == share
    with pytest.raises(VendorError, match="validate_share must be 0 to 1"):
        UNDER["ga4"].make("ga4", validate_share=float("nan"))


@pytest.mark.parametrize(
    "url",
    ["https://example.com/x", "http://127.0.0.1:9000", "http://127.8.9.1", "http://[::1]:9000/x",
     "http://localhost:9000/x/"],
)  # fmt: skip
def test_https_goes_anywhere_and_plain_http_stays_on_this_machine(url: str) -> None:
    assert webhook(url=url).url == url


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com", "http://10.0.0.1", "http://127.0.0.1.example.com", "http://0.0.0.0",
        "http://localhost.example.com", "ftp://127.0.0.1", "example.com", "https://", "https:///x",
        "", "https://user:pass@example.com", "https://example.com?key=x", "https://example.com#x",
        "http://127.0.0.1\\@example.com", "https://exa mple.com", "https://example.com:port",
        "https://exämple.com", "https://example.com\n", "http://[::1", "HTTP://example.com",
    ],
)  # fmt: skip
def test_any_other_address_is_refused(url: str) -> None:
    with pytest.raises(VendorError, match="url"):
        webhook(url=url)


IN_REGIONS = [name for name in VENDORS if hasattr(UNDER[name].make(name), "region")]


@pytest.mark.parametrize("name", IN_REGIONS)
def test_an_endpoint_is_held_to_it_too_and_a_region_to_those_there_are(name: str) -> None:
    with pytest.raises(VendorError, match=rf"vendors\.{name}\.endpoint = .* must be https"):
        UNDER[name].make(name, endpoint="http://example.com")
    with pytest.raises(VendorError, match=rf"vendors\.{name}\.region = 'mars' must be one of eu, "):
        UNDER[name].make(name, region="mars")


def test_a_secret_shows_itself_only_when_asked() -> None:
    secret = Secret(SECRET)
    assert SECRET not in f"{secret} {secret!r} {[secret]} {copy.deepcopy(secret)}"
    assert secret.reveal() == SECRET
    assert secret == Secret(SECRET)
    assert secret != Secret("other")
    assert secret != SECRET
    assert not Secret("")
