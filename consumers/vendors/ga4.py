"""Google Analytics 4: the Measurement Protocol, and its validation server.

developers.google.com/analytics/devguides/collection/protocol/ga4: sending-events,
validating-events; reserved names as rudder-transformer has them.

It answers 204 to anything, so all its rules are kept here, before sending:
what it would drop, cut or date anew without a word is refused. It has no key: an event sent twice
counts twice, but for a `purchase` on the web, which it knows by `transaction_id`. `key` goes there
where the event brings none of its own, and into a parameter that its export to BigQuery keeps; one
that is too long for a value as a UUID that is made from it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any
from urllib.parse import quote

from consumers.trace.event import Event, Value
from consumers.vendors.packing import Limits, Packed, outgoing
from consumers.vendors.request import (
    UNKNOWN,
    WHOLE,
    Answer,
    Code,
    Outgoing,
    Reason,
    Refused,
    Request,
    Sending,
    Unfit,
    json_post,
)
from consumers.vendors.settings import Secret, VendorError, base_url, one_of
from consumers.vendors.values import as_text, to_json, uuid_of
from consumers.vendors.verdicts import Stop, Verdict, by_status, json_object, said
from ingest.units import HOUR_US

__all__ = ["Ga4"]

_HOSTS = {
    "us": "https://www.google-analytics.com",
    "eu": "https://region1.google-analytics.com",
}
_COLLECT, _VALIDATE = "/mp/collect", "/debug/mp/collect"
_LIMITS = Limits(
    max_events=25,
    max_bytes=129_999,
    max_event_bytes=129_999,
    max_user_events=25,
    # No rate but 100 million requests an hour, far from what one forwarder sends.
)
_MAX_AGE_US = 72 * HOUR_US
_MAX_PARAMETERS = 25
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,39}")
_RESERVED_PREFIXES = ("_", "firebase_", "ga_", "google_", "gtag.")
_RESERVED = {
    "ad_activeview", "ad_click", "ad_exposure", "ad_impression", "ad_query", "adunit_exposure",
    "app_clear_data", "app_install", "app_remove", "app_update", "error", "first_open",
    "first_visit", "in_app_purchase", "notification_dismiss", "notification_foreground",
    "notification_open", "notification_receive", "os_update", "screen_view", "session_start",
    "user_engagement",
}  # fmt: skip
# By which Google knows a purchase, and what is refunded of it.
_TRANSACTION = "transaction_id"
_LONGER = {"page_title": 300, "page_referrer": 420, "page_location": 1000}
_INSTANCE = re.compile(r"[0-9a-fA-F]{32}")
# What the validation server says of one event: "Event at index: [3] has …"; or a path to it.
_AT = re.compile(r"\b(?:events|Event at index: )\[(\d{1,4})\]")
# Where a request of ours may be wrong as a whole.
_OF_REQUEST = {
    "client_id", "app_instance_id", "user_id", "measurement_id", "firebase_app_id", "api_secret",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ga4:
    """[vendors.ga4]"""

    api_secret: Secret
    # One of them: a web stream ("G-…"), an app's stream.
    measurement_id: str = ""
    firebase_app_id: str = ""
    # "us" or "eu", where the data is collected.
    region: str = "us"
    endpoint: str = ""
    # Characters that a value may have: 500 in Analytics 360.
    value_chars: int = 100
    cut_long_text: bool = False
    # The parameter that holds the event's key; "" leaves it out.
    key_parameter: str = "event_id"
    # Given to events without one: users of events without it do not count as active. 0 for none.
    engagement_time_msec: int = 0
    validate_share: float = 0.0

    def __post_init__(self) -> None:
        one_of("region", self.region, _HOSTS)
        if self.endpoint:
            base_url("endpoint", self.endpoint)
        if bool(self.measurement_id) == bool(self.firebase_app_id):
            raise VendorError("measurement_id or firebase_app_id: give one of them")
        if self.key_parameter and _wrong_name(self.key_parameter):
            raise VendorError(f"key_parameter = {self.key_parameter!r} is no name of a parameter")
        if not 0 <= self.validate_share <= 1:
            raise VendorError("validate_share must be 0 to 1")
        if self.value_chars < 1 or self.engagement_time_msec < 0:
            raise VendorError("value_chars must be 1 at least, engagement_time_msec 0 at least")

    def limits(self, *, backfill: bool) -> Limits:
        return _LIMITS

    def users(self, event: Event) -> tuple[str, ...]:
        # What a request is about. Its events have their own times: order between devices is free.
        return (f"{event.device_id or event.user_id}\n{event.user_id or ''}",)

    def requests(self, events: Sequence[Event], sending: Sending) -> Outgoing:
        """A request is about one client, so there are as many of them at least."""
        oldest_us = None if sending.allow_redate else sending.now_us - _MAX_AGE_US
        refused: list[Refused] = []
        clients: dict[tuple[str, str], list[Event]] = {}
        for event in events:
            try:
                client = self._client(event)
            except Unfit as unfit:
                refused.append(Refused(event, unfit.reason))
            else:
                clients.setdefault((client, event.user_id or ""), []).append(event)

        def encode(event: Event) -> bytes:
            if oldest_us is not None and event.time_us < oldest_us:
                text = "it is older than 72 hours: Google would date it anew without saying so"
                raise Unfit(Code.TOO_OLD, f"{text} (--allow-redate)")
            return self._encode(event)

        def request(packed: Packed) -> Request:
            return json_post(self._url(_COLLECT), packed.body, packed.events, (self.api_secret,))

        requests: list[Request] = []
        for (client, user), theirs in clients.items():
            about = {"client_id" if self.measurement_id else "app_instance_id": client}
            if user:
                about["user_id"] = user
            head = to_json({**about, "events": []})[:-2]
            found = outgoing(theirs, encode, _LIMITS, head=head, tail=b"]}", request=request)
            requests += found.requests
            refused += found.refused
        return Outgoing(tuple(requests), tuple(refused))

    def _url(self, path: str) -> str:
        base = self.endpoint.rstrip("/") or _HOSTS[self.region]
        stream = (
            f"measurement_id={quote(self.measurement_id, safe='')}"
            if self.measurement_id
            else f"firebase_app_id={quote(self.firebase_app_id, safe='')}"
        )
        return f"{base}{path}?{stream}&api_secret={quote(self.api_secret.reveal(), safe='')}"

    def _client(self, event: Event) -> str:
        found = event.device_id or event.user_id
        if self.firebase_app_id:
            if not event.device_id or not _INSTANCE.fullmatch(event.device_id):
                text = "an app's stream needs a device id that is an app_instance_id, 32 hex digits"
                raise Unfit(Code.ID_INVALID, text)
        elif not found:
            raise Unfit(Code.ID_MISSING, "it has neither a user nor a device")
        return found or ""

    def _encode(self, event: Event) -> bytes:
        name = event.name
        if wrong := _wrong_name(name):
            raise Unfit(*wrong)
        if name in _RESERVED:
            raise Unfit(Code.NAME_RESERVED, f"the name {name!r} is Google's own")
        parameters: dict[str, Any] = as_text(event.properties)
        if self.key_parameter and self.key_parameter in parameters:
            text = f"property {self.key_parameter!r} is where the key goes (key_parameter)"
            raise Unfit(Code.PROPERTY_RESERVED, text)
        if name == "purchase" and (
            _TRANSACTION in event.scrubbed or parameters.get(_TRANSACTION, "") == ""
        ):
            # Google takes all purchases with an empty one for the same purchase, and all that have
            # become [card]: of 13 digits that begin with 6 one number in ten.
            parameters[_TRANSACTION] = self._key(event)
        elif name == "refund" and _TRANSACTION in event.scrubbed:
            text = (
                f"the scrubber has changed {_TRANSACTION}, by which Google knows what is refunded"
            )
            raise Unfit(
                Code.VALUE_INVALID, f'{text} (keep = ["card", "token"] in [trace] leaves it)'
            )
        for parameter, value in parameters.items():
            if wrong := _wrong_name(parameter):
                code = (
                    Code.PROPERTY_INVALID
                    if wrong[0] is Code.NAME_INVALID
                    else Code.PROPERTY_RESERVED
                )
                raise Unfit(code, f"property {parameter[:60]!r}: {wrong[1]}")
            if isinstance(value, str) and len(value) > self.value_chars:
                parameters[parameter] = self._shorter(parameter, value)
        if self.key_parameter:
            parameters[self.key_parameter] = self._key(event)
        if self.engagement_time_msec:
            parameters.setdefault("engagement_time_msec", self.engagement_time_msec)
        if len(parameters) > _MAX_PARAMETERS:
            text = f"{len(parameters)} parameters; Google takes {_MAX_PARAMETERS}"
            raise Unfit(Code.TOO_MANY_PROPERTIES, text)
        return to_json({"name": name, "timestamp_micros": event.time_us, "params": parameters})

    def _key(self, event: Event) -> str:
        key = event.key if len(event.key) <= self.value_chars else uuid_of(event.key)
        if len(key) > self.value_chars:
            text = f"its key is longer than {self.value_chars} characters"
            raise Unfit(Code.VALUE_TOO_LONG, f'{text} (key_parameter = "" leaves it out)')
        return key

    def _shorter(self, parameter: str, value: str) -> Value:
        most = max(self.value_chars, _LONGER.get(parameter, 0))
        if len(value) > most:
            text = f"property {parameter!r} is longer than {most} characters"
            if parameter == _TRANSACTION:
                raise Unfit(Code.VALUE_TOO_LONG, f"{text}; cut, two of them may be the same")
            if not self.cut_long_text:
                raise Unfit(Code.VALUE_TOO_LONG, f"{text} (cut_long_text = true cuts it here)")
        return value[:most]

    def verdict(self, request: Request, answer: Answer, now_us: int) -> Verdict:
        if 200 <= answer.status < 300 and answer.body.strip():
            # Not Google's, which has nothing to say: a login's page, a proxy's, or an endpoint of
            # one's own that says "ok". That one has them, and each attempt would be a copy more.
            return Stop(said(request, answer))
        # 204 to anything, also to a wrong api_secret: what it thinks only `validation` tells.
        return by_status(request, answer, now_us)

    def validation(self, request: Request) -> Request:
        return replace(request, url=self._url(_VALIDATE))

    def findings(self, request: Request, answer: Answer) -> Mapping[int, Reason] | None:
        body = json_object(answer.body)
        messages = body.get("validationMessages", []) if body is not None else None
        if answer.status != 200 or not isinstance(messages, list):
            return None
        found: dict[int, Reason] = {}
        for message in messages:
            told = message if isinstance(message, dict) else {}
            path, code, text = (
                str(told.get(k, "")) for k in ("fieldPath", "validationCode", "description")
            )
            at = _AT.search(text) or _AT.search(path)
            if at:
                place = int(at[1]) if int(at[1]) < len(request.events) else UNKNOWN
            else:
                place = WHOLE if _is_of_request(path, code) else UNKNOWN
            if place not in found:
                detail = said(request, answer, detail=f"{code} {path}: {text}")
                found[place] = Reason(Code.REJECTED, detail)
        return found


def _is_of_request(path: str, code: str) -> bool:
    """Whether a message without an index is about all events: too many, or what they stand in.

    Others are about one that is not named. Google takes the rest, and what it took must not be
    rejected: sent again, it counts twice.
    """
    if path == "events":
        return code == "EXCEEDED_MAX_ENTITIES"
    # Without a path: the body as such, its size or that it can't be read.
    return path in _OF_REQUEST or (not path and bool(code))


@lru_cache(maxsize=4096)
def _wrong_name(name: str) -> tuple[Code, str] | None:
    """What is wrong with the name of an event or a parameter."""
    if name.startswith(_RESERVED_PREFIXES):
        return Code.NAME_RESERVED, f"the name {name[:60]!r} begins with a reserved prefix"
    if not _NAME.fullmatch(name):
        text = f"{name[:60]!r} must be a letter and up to 39 letters, digits and underscores"
        return Code.NAME_INVALID, f"the name {text}; rename it in [trace]"
    return None
