"""Listening ports are found by what a process holds open."""

from __future__ import annotations

import os
import socket

from skylib.agent.sockets import listening_ports, ports_of


def test_a_listener_of_this_process_is_found_and_gone_when_closed() -> None:
    """The port is in the table while the socket listens, and belongs to the process that holds it."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert port in ports_of([os.getpid()])
        assert port in listening_ports().values()
    assert port not in ports_of([os.getpid()])


def test_a_bound_socket_that_does_not_listen_is_no_listener() -> None:
    """Binding alone opens nothing to others."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        assert bound.getsockname()[1] not in ports_of([os.getpid()])


def test_a_process_that_is_gone_has_no_ports() -> None:
    """A pid without a process is passed over."""
    assert ports_of([2**22 + 1]) == set()
