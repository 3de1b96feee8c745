"""Trying doors: what answers a stranger is open, what only accepts is not."""

from __future__ import annotations

import http.server
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from skylib.agent import certs, doors
from skylib.runtime import door_guard


@contextmanager
def serving(answer: bytes, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """A port that reads something, answers that, and closes."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with closing(connection):
                connection.settimeout(10)
                try:
                    spoken = tls.wrap_socket(connection, server_side=True) if tls else connection
                    spoken.recv(64)
                    spoken.sendall(answer)
                    if tls:
                        spoken.close()
                except OSError:
                    continue

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


def test_an_http_server_is_open() -> None:
    """It is told with its port and what it answered."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port = server.server_address[1]
    try:
        assert doors.try_doors(["127.0.0.1"], [port]) == [(port, "HTTP")]
    finally:
        server.shutdown()
        server.server_close()


def test_what_says_nothing_is_shut() -> None:
    """Neither a port where nobody listens nor one that closes, nor one that speaks of TLS alone, is open."""
    with serving(b"") as silent, serving(b"\x15\x03\x01\x00\x02\x02\x46") as alert:
        with closing(socket.create_server(("127.0.0.1", 0))) as gone:
            nobody = gone.getsockname()[1]
        assert doors.try_doors(["127.0.0.1"], [silent, alert, nobody]) == []


@pytest.mark.parametrize("asks", [False, True])
def test_tls_is_shut_when_it_asks_for_a_certificate(tmp_path: Path, asks: bool) -> None:
    """A server that anybody may speak to inside TLS is open; one that wants a certificate of the cluster is not."""
    certs.write_files(str(tmp_path), certs.make([["127.0.0.1"]], cluster_id="c")[0], "s")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / certs.CERTIFICATE, tmp_path / certs.KEY)
    context.load_verify_locations(tmp_path / certs.AUTHORITY)
    context.verify_mode = ssl.CERT_REQUIRED if asks else ssl.CERT_NONE
    with serving(b"\0\0\0\4\0\0\0\0\0", context) as port:
        found = doors.try_doors(["127.0.0.1"], [port])
    assert found == ([] if asks else [(port, "TLS without a certificate")])


@pytest.mark.parametrize(
    ("ips", "testers"),
    [
        (["a", "b", "c"], [1, 2, 0]),
        (["a"], [None]),
        (["a", "a"], [None, None]),
        (["a", "a", "b"], [2, 2, 0]),
    ],
)
def test_a_node_is_tried_from_another_machine(ips: list[str], testers: list[int | None]) -> None:
    """By the next node that is elsewhere; by none where all share a machine."""
    assert [doors.tester_of(ips, rank) for rank in range(len(ips))] == testers


def test_both_sides_know_the_stranger() -> None:
    """The address that a lone node tries itself from is the one that its servers turn away."""
    assert doors.STRANGER == door_guard.STRANGER
