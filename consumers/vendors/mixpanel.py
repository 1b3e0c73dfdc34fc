"""Mixpanel: /import with strict=1, for what has just come in and for backfill alike.

docs.mixpanel.com/reference/import-events, and openapi/ingestion.openapi.yaml of mixpanel/docs.

`key` is `$insert_id`, as long as it is one of Mixpanel's form; else a UUID
made from it. Mixpanel knows an event by name, time, distinct_id and $insert_id together, so none of
them may change between two attempts. What is up to an hour ahead it dates anew, what is further it
refuses; so an event that is ahead of the collector, as its sender's clock is, has the collector's
time: the same at each attempt. Its 400 is a partial success: what it does not list, it has.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from consumers.trace.event import Event
from consumers.vendors.packing import Limits, Packed, Rate, outgoing
from consumers.vendors.request import (
    Answer,
    Code,
    Outgoing,
    Reason,
    Request,
    Sending,
    Unfit,
    json_post,
)
from consumers.vendors.settings import Secret, VendorError, base_url, one_of
from consumers.vendors.values import no_longer_than, not_reserved, to_json, uuid_of
from consumers.vendors.verdicts import (
    Accepted,
    PartlyRejected,
    RetryAfter,
    Verdict,
    by_status,
    indexes,
    json_object,
    said,
    split,
)
from ingest.units import DAY_US

__all__ = ["Mixpanel"]

_HOSTS = {
    "us": "https://api.mixpanel.com",
    "eu": "https://api-eu.mixpanel.com",
    "in": "https://api-in.mixpanel.com",
}
_LIMITS = Limits(
    max_events=2000,
    # 10 MB by the documents of today, 2 MB by older ones and by the 413 they show.
    max_bytes=2_000_000,
    max_event_bytes=999_999,
    max_user_events=2000,
    rates=(Rate(30_000 * 60, 60),),
)
_TEXT = 255
_OWN = ("time", "distinct_id", "$insert_id", "$device_id", "$user_id", "token")
_MAX_PROPERTIES = 254 - len(_OWN)
_EARLIEST_US = 365 * DAY_US
# A smaller `time` is one of seconds: in milliseconds those before 3 March 1973 are too.
_MILLISECONDS_FROM = 10**11
_KEY = re.compile(r"[A-Za-z0-9-]{1,36}")
# Refused as an id of a user and as $insert_id.
_NO_ID = {
    "00000000-0000-0000-0000-000000000000", "anon", "anonymous", "nil", "none", "null", "n/a", "na",
    "undefined", "unknown", "<nil>", "0", "-1", "true", "false", "[]", "{}",
}  # fmt: skip
_NONE = Secret("")


@dataclass(frozen=True, slots=True)
class Mixpanel:
    """[vendors.mixpanel]"""

    # A service account's user and secret; or a project's token, alone.
    username: Secret = _NONE
    secret: Secret = _NONE
    token: Secret = _NONE
    # A service account works for several projects.
    project_id: str = ""
    # "us", "eu" or "in".
    region: str = "us"
    endpoint: str = ""
    gzip: bool = True
    cut_long_text: bool = False

    def __post_init__(self) -> None:
        one_of("region", self.region, _HOSTS)
        if self.endpoint:
            base_url("endpoint", self.endpoint)
        account = bool(self.username), bool(self.secret)
        if any(account) == bool(self.token) or any(account) != all(account):
            raise VendorError("username_env and secret_env, or token_env: give one of both")
        if self.username and not self.project_id:
            raise VendorError("project_id is needed with a service account")

    def limits(self, *, backfill: bool) -> Limits:
        return _LIMITS

    def users(self, event: Event) -> tuple[str, ...]:
        return (event.user_id or event.device_id or "",)

    def requests(self, events: Sequence[Event], sending: Sending) -> Outgoing:
        user = self.username.reveal() or self.token.reveal()
        basic = b64encode(f"{user}:{self.secret.reveal()}".encode()).decode()
        secrets = tuple(s for s in (self.username, self.secret, self.token, Secret(basic)) if s)
        url = (self.endpoint.rstrip("/") or _HOSTS[self.region]) + "/import?strict=1"
        if self.project_id:
            url += f"&project_id={quote(self.project_id, safe='')}"

        def encode(event: Event) -> bytes:
            return self._encode(event)

        def request(packed: Packed) -> Request:
            return json_post(
                url, packed.body, packed.events, secrets,
                pack=self.gzip, headers={"Authorization": f"Basic {basic}"},
            )  # fmt: skip

        return outgoing(events, encode, _LIMITS, head=b"[", tail=b"]", request=request)

    def _encode(self, event: Event) -> bytes:
        not_reserved(event.properties, _OWN, "Mixpanel")
        if len(event.properties) > _MAX_PROPERTIES:
            text = f"{len(event.properties)} properties; there is room for {_MAX_PROPERTIES}"
            raise Unfit(Code.TOO_MANY_PROPERTIES, text)
        if len(event.name) > _TEXT:
            raise Unfit(Code.NAME_INVALID, f"its name is longer than {_TEXT} characters")
        ids: dict[str, Any] = {"distinct_id": event.user_id or event.device_id or ""}
        if event.device_id:
            ids["$device_id"] = event.device_id
        if event.user_id:
            ids["$user_id"] = event.user_id
        for found in ids.values():
            if found.lower() in _NO_ID or len(found) > _TEXT:
                text = "its user or device id is one that Mixpanel refuses, or would cut"
                raise Unfit(Code.ID_INVALID, text)
        properties = no_longer_than(
            event.properties, _TEXT, cut=self.cut_long_text, vendor="Mixpanel"
        )
        of_ours = {"time": _time(event), "$insert_id": _insert_id(event.key)}
        return to_json({"event": event.name, "properties": {**properties, **ids, **of_ours}})

    def verdict(self, request: Request, answer: Answer, now_us: int) -> Verdict:
        body = json_object(answer.body)
        match answer.status:
            case 200 if body is not None and body.get("code") == 200:
                return Accepted()
            case status if 200 <= status < 300:
                # Not Mixpanel's; sent again, the key keeps it single.
                return RetryAfter(None, said(request, answer), unknown=True)
            case 400 if body is not None:
                return self._partly(request, answer, body)
            case _:
                return by_status(request, answer, now_us)

    def _partly(self, request: Request, answer: Answer, body: Mapping[str, Any]) -> Verdict:
        records = body.get("failed_records")
        keys = {_insert_id(event.key): n for n, event in enumerate(request.events)}
        rejected: dict[int, Reason] = {}
        for record in records if isinstance(records, list) else ():
            told = record if isinstance(record, dict) else {}
            places = indexes([told.get("index")], len(request.events))
            key = told.get("$insert_id", told.get("insert_id"))
            at = keys.get(key) if isinstance(key, str) else None
            if at is not None and not any(_insert_id(request.events[n].key) == key for n in places):
                places = [at]
            for n in places:
                if n not in rejected:
                    what = f"{told.get('field')}: {told.get('message')}"
                    rejected[n] = Reason(Code.REJECTED, said(request, answer, detail=what))
        if not rejected:
            return split(request, said(request, answer))
        rest = frozenset(range(len(request.events))).difference(rejected)
        # Where its count is not that of the rest, the rest goes again: the key keeps it single.
        taken = body.get("num_records_imported", len(rest))
        return PartlyRejected(rejected, frozenset() if taken == len(rest) else rest)


def _time(event: Event) -> int:
    """In milliseconds, or in seconds where Mixpanel would read them so."""
    time_us = min(event.time_us, event.received_us)
    if time_us < _EARLIEST_US:
        raise Unfit(Code.TIME_INVALID, "Mixpanel refuses times before 1971")
    time_ms = time_us // 1000
    return time_ms if time_ms >= _MILLISECONDS_FROM else time_ms // 1000


def _insert_id(key: str) -> str:
    return key if _KEY.fullmatch(key) and key.lower() not in _NO_ID else uuid_of(key)
