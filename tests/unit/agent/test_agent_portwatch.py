"""A port of another node is watched by one open connection."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable

import pytest

from skylib.agent.portwatch import ANSWERS, REFUSED, UNKNOWN, PortWatch


def listening(port: int = 0) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen()
    return listener


def watching(port: int, *steps: tuple[str, Callable[[], object]]) -> list[str]:
    """Waits for each state in turn, then acts; all states that were told of."""
    told: list[str] = []

    async def run() -> None:
        watch = PortWatch("127.0.0.1", port, lambda: told.append(watch.state))
        assert watch.state == UNKNOWN
        watch.begin()
        deadline = time.monotonic() + 10
        for state, act in steps:
            while watch.state != state:
                assert time.monotonic() < deadline, (watch.state, state)
                await asyncio.sleep(0.01)
            act()
        watch.stop()

    asyncio.run(run())
    return told


def test_the_end_of_whoever_listens_is_told_and_its_return():
    """A connection that closes is opened again; only when that is refused has the other side ended."""
    first = listening()
    port = first.getsockname()[1]
    accepted: list[socket.socket] = []
    second: list[socket.socket] = []

    def end() -> None:
        accepted.append(first.accept()[0])
        first.close()
        accepted[0].close()

    told = watching(port, (ANSWERS, end), (REFUSED, lambda: second.append(listening(port))), (ANSWERS, lambda: None))
    second[0].close()
    assert told == [ANSWERS, REFUSED, ANSWERS]


def test_a_connection_that_the_other_side_closes_says_nothing():
    """A server that drops who says nothing is there all the same."""
    with listening() as listener:
        came = threading.Event()

        def drop() -> None:
            listener.accept()[0].close()
            with listener.accept()[0]:  # it comes again
                came.set()

        server = threading.Thread(target=drop)
        server.start()
        told: list[str] = []

        async def run() -> None:
            watch = PortWatch("127.0.0.1", listener.getsockname()[1], lambda: told.append(watch.state))
            watch.begin()
            assert await asyncio.get_running_loop().run_in_executor(None, came.wait, 10)
            watch.stop()

        asyncio.run(run())
        server.join()
    assert told == [ANSWERS]


def test_who_cannot_follow_the_news_does_not_end_the_watch(caplog: pytest.LogCaptureFixture):
    """What goes wrong with one change is logged, and the next one is told."""
    first = listening()
    told: list[str] = []

    async def run() -> None:
        def follow() -> None:
            told.append(watch.state)
            if watch.state == ANSWERS:
                raise ValueError("news that nobody expected")

        watch = PortWatch("127.0.0.1", first.getsockname()[1], follow)
        watch.begin()
        loop = asyncio.get_running_loop()
        accepted, _ = await loop.run_in_executor(None, first.accept)
        deadline = time.monotonic() + 10
        while not told:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        first.close()
        accepted.close()
        while REFUSED not in told:
            assert time.monotonic() < deadline, told
            await asyncio.sleep(0.01)
        watch.stop()

    asyncio.run(run())
    assert told == [ANSWERS, REFUSED]
    assert "news that nobody expected" in caplog.text
