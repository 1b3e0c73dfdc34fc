"""Who sends, as far as it is kept: the key's source, and a network and headers where configured.

Nothing of a sender is stored unless the operator asked for it, and an address only truncated: /24
of IPv4, /48 of IPv6, what is left names a network and no person. Behind a proxy of ours the address
is the last one in X-Forwarded-For that is not such a proxy; a header from anybody else is a claim.
So it is with X-Forwarded-Proto.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from ingest.collector.judge import Caller
from ingest.collector.settings import CollectSettings, Network

__all__ = ["Senders", "truncated"]

_MOST_BYTES = 1_000


class Senders:
    """Makes the Caller of a request."""

    def __init__(self, settings: CollectSettings) -> None:
        self._network = settings.store_network
        self._headers = {name.encode(): name for name in settings.store_headers}
        self._proxies: Sequence[Network] = settings.proxies
        self._plain: dict[str, Caller] = {}

    def caller(self, source: str, client: Any, headers: Iterable[tuple[bytes, bytes]]) -> Caller:
        """`client` and `headers` as ASGI has them."""
        if not self._network and not self._headers:
            plain = self._plain.get(source)
            if plain is None:
                plain = self._plain[source] = Caller(source)
            return plain
        network, kept = "", []
        if self._network:
            network = truncated(self._address(str(client[0]) if client else "", headers))
        for name, value in headers if self._headers else ():
            if name in self._headers:
                kept.append((self._headers[name], value[:_MOST_BYTES].decode("latin-1")))
        return Caller(source, network, tuple(kept))

    def scheme(self, scope: Mapping[str, Any]) -> str:
        """How the sender came: as a proxy of ours says, else as it came here."""
        client = scope["client"]
        if self._proxies and _within(str(client[0]) if client else "", self._proxies):
            for name, value in reversed(scope["headers"]):
                if name == b"x-forwarded-proto":
                    said = value.decode("latin-1").rpartition(",")[2].strip().lower()
                    return said if said in ("http", "https") else str(scope["scheme"])
        return str(scope["scheme"])

    def _address(self, address: str, headers: Iterable[tuple[bytes, bytes]]) -> str:
        if not self._proxies or not _within(address, self._proxies):
            return address
        hops = [
            hop.strip()
            for name, value in headers
            if name == b"x-forwarded-for"
            for hop in value.decode("latin-1").split(",")
        ]
        for hop in reversed(hops):
            address = hop
            if not _within(hop, self._proxies):
                break
        return address


def _within(address: str, networks: Sequence[Network]) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(found in network for network in networks)


@lru_cache(maxsize=1024)
def truncated(address: str) -> str:
    """The network of an address, as in "203.0.113.0/24"; "" where it is none."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    prefix = 24 if found.version == 4 else 48
    return str(ipaddress.ip_network((found, prefix), strict=False))
