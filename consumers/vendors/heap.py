"""Heap: bulk track from servers.

developers.heap.io/reference: track-1, bulk-track.

`key` is `idempotency_key`: a later event with it changes nothing, with no window stated. What
Heap answers to a bad event is not documented: 2xx is taken for all, a refusal is found by
halving.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from consumers.trace.event import Event
from consumers.vendors.packing import Limits, Packed, Rate, outgoing
from consumers.vendors.request import Answer, Code, Outgoing, Request, Sending, Unfit, json_post
from consumers.vendors.settings import Secret, base_url, one_of
from consumers.vendors.values import as_text, moment, no_longer_than, to_json, who
from consumers.vendors.verdicts import Verdict, by_status

__all__ = ["Heap"]

_HOSTS = {"us": "https://heapanalytics.com", "eu": "https://c.eu.heap-api.com"}
_PATH = "/api/track"
_LIMITS = Limits(
    max_events=1000,
    # Heap states none.
    max_bytes=5_000_000,
    max_event_bytes=1_000_000,
    max_user_events=1000,
    rates=(Rate(1000, 60, "user"), Rate(15_000, 60)),
)
_TEXT, _IDENTITY = 1024, 255


@dataclass(frozen=True, slots=True)
class Heap:
    """[vendors.heap]"""

    # The environment's id: all that there is of a credential.
    app_id: Secret
    # "us" or "eu": one does not know the other's app_id.
    region: str = "us"
    endpoint: str = ""
    cut_long_text: bool = False

    def __post_init__(self) -> None:
        one_of("region", self.region, _HOSTS)
        if self.endpoint:
            base_url("endpoint", self.endpoint)

    def limits(self, *, backfill: bool) -> Limits:
        return _LIMITS

    def users(self, event: Event) -> tuple[str, ...]:
        return (event.user_id or event.device_id or "",)

    def requests(self, events: Sequence[Event], sending: Sending) -> Outgoing:
        head = to_json({"app_id": self.app_id.reveal(), "events": []})[:-2]
        url = (self.endpoint.rstrip("/") or _HOSTS[self.region]) + _PATH

        def request(packed: Packed) -> Request:
            return json_post(url, packed.body, packed.events, (self.app_id,))

        return outgoing(events, self._encode, _LIMITS, head=head, tail=b"]}", request=request)

    def _encode(self, event: Event) -> bytes:
        if len(event.name) > _TEXT:
            raise Unfit(Code.NAME_INVALID, f"its name is longer than {_TEXT} characters")
        for name in event.properties:
            if len(name) >= _TEXT:
                text = f"property {name[:60]!r}… must have a name of less than {_TEXT} characters"
                raise Unfit(Code.PROPERTY_INVALID, text)
        properties = no_longer_than(
            event.properties, _TEXT - 1, cut=self.cut_long_text, vendor="Heap"
        )
        return to_json({
            "identity": who(event, _IDENTITY),
            "event": event.name,
            "timestamp": moment(event.time_us),
            "properties": as_text(properties),
            "idempotency_key": event.key,
        })  # fmt: skip

    def verdict(self, request: Request, answer: Answer, now_us: int) -> Verdict:
        return by_status(request, answer, now_us)
