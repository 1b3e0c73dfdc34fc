"""The connections to a vendor: whatever goes wrong with one, there is just no answer."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from consumers.forward.client import Client
from consumers.forward.engine_settings import EngineSettings
from consumers.vendors import Request


class Reset(httpx.AsyncBaseTransport):
    """A connection that is gone as soon as it stands."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        raise self._error


@pytest.mark.parametrize(
    "error",
    [
        # The first was seen; the others are what else the same place may raise.
        AttributeError("'NoneType' object has no attribute 'getpeername'"),
        RuntimeError("unable to perform operation on <TCPTransport closed=True>"),
        OSError(107, "Transport endpoint is not connected"),
    ],
)
def test_a_connection_that_is_gone_at_once_is_one_without_an_answer(error: Exception) -> None:
    """And not one that was never there: whether the request left, nobody knows."""
    client = Client(EngineSettings(), Reset(error))
    request = Request("POST", "http://127.0.0.1:1/", {}, b"{}", ())
    with pytest.raises(httpx.NetworkError) as raised:
        asyncio.run(client.send(request))
    assert not isinstance(raised.value, httpx.ConnectError)
