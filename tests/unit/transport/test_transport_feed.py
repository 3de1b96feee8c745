"""Feeding stdin from a thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from skylib.transport.feed import PIECE_BYTES, Feeder, pieces


def test_pieces_are_bounded_and_lose_nothing() -> None:
    """Large parts are cut, empty ones left out."""
    source = [b"", b"a" * (2 * PIECE_BYTES + 5), b"b"]
    cut = list(pieces(source))
    assert b"".join(cut) == b"".join(source)
    assert max(map(len, cut)) == PIECE_BYTES
    assert b"" not in cut


def test_feeder_sends_all_and_finishes() -> None:
    """Every piece, then the end, and a count of bytes."""
    sent: list[bytes] = []
    done = threading.Event()
    feeder = Feeder([b"ab", b"c"], send=sent.append, finish=done.set, on_error=lambda: None).start()
    assert done.wait(10)
    feeder.stop()
    assert (sent, feeder.sent, feeder.error) == ([b"ab", b"c"], 3, None)


def test_error_of_the_source_is_kept_and_told() -> None:
    """An iterable that fails ends the feeding; whoever waits is told by on_error."""
    told = threading.Event()

    def source() -> Iterator[bytes]:
        yield b"a"
        raise OSError("the disk is gone")

    feeder = Feeder(source(), send=lambda data: None, finish=lambda: None, on_error=told.set).start()
    assert told.wait(10)
    assert isinstance(feeder.error, OSError)


def test_receiver_that_stops_is_no_error() -> None:
    """A command that does not read its stdin to the end is not a failure of feeding."""

    def send(data: bytes) -> None:
        raise BrokenPipeError

    feeder = Feeder([b"a"] * 3, send=send, finish=lambda: None, on_error=lambda: None).start()
    feeder.stop()
    assert feeder.error is None
