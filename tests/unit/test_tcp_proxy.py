"""The proxy that other tests trust."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from tcp_proxy import Proxy


@pytest.fixture
def echo() -> Iterator[tuple[int, list[bytes]]]:
    """A server that sends back what it gets, and a list of all that it got."""
    seen: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def talk(peer: socket.socket) -> None:
        with peer:
            try:
                while data := peer.recv(65536):
                    seen.append(data)
                    peer.sendall(data)
            except OSError:
                pass

    def accept() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=talk, args=(peer,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield listener.getsockname()[1], seen
    listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)
    listener.close()


@pytest.fixture
def proxy(echo: tuple[int, list[bytes]]) -> Iterator[Proxy]:
    with Proxy("127.0.0.1", echo[0]) as running:
        yield running


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), 5)


def ends(peer: socket.socket) -> bool:
    """Whether it is cut; answers at once or fails after the socket's timeout."""
    try:
        return peer.recv(100) == b""
    except ConnectionError:
        return True


def test_bytes_pass_both_ways(proxy: Proxy) -> None:
    with connect(proxy) as peer:
        peer.sendall(b"hello")
        assert peer.recv(100) == b"hello"


def test_a_cut_ends_every_connection_and_new_ones_work(proxy: Proxy) -> None:
    with connect(proxy) as one, connect(proxy) as two:
        for peer in (one, two):
            peer.sendall(b"x")
            peer.recv(1)
        proxy.cut_all()
        assert ends(one) and ends(two)
    test_bytes_pass_both_ways(proxy)


def test_who_is_refused_gets_nothing_and_who_is_connected_goes_on(proxy: Proxy) -> None:
    with connect(proxy) as old:
        old.sendall(b"x")
        assert old.recv(1) == b"x"
        proxy.refuse()
        # A reset that is fast enough is seen by connect() already.
        with contextlib.suppress(ConnectionResetError), connect(proxy) as new:
            assert ends(new)
        old.sendall(b"y")
        assert old.recv(1) == b"y"
        proxy.refuse(False)
    test_bytes_pass_both_ways(proxy)


def test_exactly_so_many_bytes_pass_before_the_cut(
    proxy: Proxy, echo: tuple[int, list[bytes]]
) -> None:
    proxy.after_bytes(3, "up")
    with connect(proxy) as peer:
        peer.sendall(b"abcdef")
        while not ends(peer):
            pass
    proxy.close()
    assert b"".join(echo[1]) in (b"", b"abc")  # a reset may overtake what the server had not read
    assert proxy.cuts == 1


def test_a_needle_begins_the_hold_and_does_not_pass_itself(
    proxy: Proxy, echo: tuple[int, list[bytes]]
) -> None:
    proxy.hold_at(b"stop here")
    with connect(proxy) as peer:
        peer.sendall(b"before, st")
        assert peer.recv(100) == b"before, st"
        assert not proxy.held
        peer.sendall(b"op here")
        give_up = time.monotonic() + 10
        while not proxy.held:
            assert time.monotonic() < give_up
            time.sleep(0.001)
        peer.settimeout(0.05)
        with pytest.raises(TimeoutError):
            peer.recv(100)
        assert b"".join(echo[1]) == b"before, st"
        proxy.release()
        peer.settimeout(5)
        assert peer.recv(100) == b"op here"


def test_what_is_held_arrives_after_the_release(proxy: Proxy) -> None:
    with connect(proxy) as peer:
        proxy.hold()
        peer.sendall(b"later")
        peer.settimeout(0.05)
        with pytest.raises(TimeoutError):
            peer.recv(100)
        proxy.release()
        peer.settimeout(5)
        assert peer.recv(100) == b"later"


def test_a_cut_before_a_word_keeps_it_from_the_server(
    proxy: Proxy, echo: tuple[int, list[bytes]]
) -> None:
    proxy.cut_before(b"COMMIT")
    with connect(proxy) as peer:
        peer.sendall(b"one COM")
        assert peer.recv(100) == b"one COM"
        peer.sendall(b"MIT")
        assert ends(peer)
    assert echo[1] == [b"one COM"]


def test_a_cut_after_a_word_lets_the_server_do_it(
    proxy: Proxy, echo: tuple[int, list[bytes]]
) -> None:
    proxy.cut_after(b"COMMIT")
    with connect(proxy) as peer:
        peer.sendall(b"COMMIT")
        assert ends(peer)
    assert echo[1] == [b"COMMIT"]


def test_a_held_proxy_still_closes(echo: tuple[int, list[bytes]]) -> None:
    with Proxy("127.0.0.1", echo[0]) as proxy, connect(proxy) as peer:
        proxy.hold()
        peer.sendall(b"x")


def test_a_slow_line_is_shared_and_loses_nothing(
    proxy: Proxy, echo: tuple[int, list[bytes]]
) -> None:
    proxy.slow(200_000, "up")
    began = time.monotonic()
    with connect(proxy) as one, connect(proxy) as two:
        for peer in (one, two):
            peer.sendall(bytes(20_000))
        for peer in (one, two):
            left = 20_000
            while left:
                left -= len(peer.recv(left))
    # 40 kB at 200 kB/s.
    assert time.monotonic() - began >= 0.2
    assert sum(map(len, echo[1])) == proxy.passed["up"] == proxy.passed["down"] == 40_000


def test_a_word_of_the_servers_is_another_one_when_it_arrives(
    proxy: Proxy, echo: tuple[int, list[bytes]]
) -> None:
    proxy.rewrite(b"there", b"here")
    with connect(proxy) as peer:
        peer.sendall(b"go there")
        assert peer.recv(100) == b"go here"
    assert echo[1] == [b"go there"]
