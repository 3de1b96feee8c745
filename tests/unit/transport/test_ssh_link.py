"""The socket below an SSH connection: when silence counts as loss."""

from __future__ import annotations

import pytest

from skylib.transport.ssh_connection import _Link


class SilentSocket:
    """A socket on which nothing comes."""

    def recv(self, size: int) -> bytes:
        raise TimeoutError


def test_without_keepalive_silence_never_ends_a_connection() -> None:
    """probe_s 0 asks nobody and takes no silence for a loss."""
    link = _Link(SilentSocket(), probe_s=0.0, silence_s=0.0)
    asked: list[bool] = []
    link.probe = lambda: asked.append(True)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            link.recv(1)
    assert asked == []


def test_silence_beyond_the_limit_ends_a_connection() -> None:
    """With a limit that is over the connection counts as lost."""
    link = _Link(SilentSocket(), probe_s=1e-9, silence_s=0.0)
    link.probe = lambda: None
    with pytest.raises(ConnectionAbortedError):
        link.recv(1)
