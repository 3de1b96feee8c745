"""The door guard: whom HTTP servers of our Ray answer. Servers run in processes of their own, where it is loaded."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from skylib.runtime import door_guard
from tests.runtime_fixture import ray_python

LOAD = f"""
import sys
sys.path.insert(0, {str(Path(door_guard.__file__).parent)!r})
import door_guard
door_guard.install()
door_guard.install()
"""
WSGI = """
from wsgiref.simple_server import make_server
def app(environ, start):
    start("200 OK", [])
    return [b"told"]
server = make_server("", 0, app)
print(server.server_port, flush=True)
server.serve_forever()
"""
AIOHTTP = """
import asyncio
from aiohttp import web
async def told(request):
    return web.Response(text="told")
async def main():
    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", told)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "0.0.0.0", 0)
    await site.start()
    print(site._server.sockets[0].getsockname()[1], flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""
REQUEST = b"POST /api/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"


SERVERS = [pytest.param(WSGI, id="wsgiref"), pytest.param(AIOHTTP, id="aiohttp", marks=pytest.mark.ray)]


@contextmanager
def running(*parts: str) -> Iterator[int]:
    """A server's port, until the block ends. aiohttp is where Ray is."""
    program = "".join(parts)
    python = str(ray_python()) if "aiohttp" in program else sys.executable
    with subprocess.Popen([python, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert select.select([process.stdout], [], [], 60)[0]
            yield int(process.stdout.readline())
        finally:
            process.kill()


def ask(port: int, *, source: str = "", data: bytes = REQUEST) -> bytes:
    """All that the server says; nothing when it cuts the connection."""
    try:
        here = (source, 0) if source else None
        with socket.create_connection(("127.0.0.1", port), timeout=20, source_address=here) as connection:
            connection.sendall(data)
            said = b""
            while piece := connection.recv(4096):
                said += piece
            return said
    except ConnectionError:
        return b""


@pytest.mark.parametrize("program", SERVERS)
def test_it_answers_this_account_and_no_stranger(program: str) -> None:
    """Our own request is answered, again and again; a stranger's is cut before a byte, which harms nobody after it."""
    with running(LOAD, program) as port:
        for _ in range(3):
            assert b"told" in ask(port)
            assert ask(port, source=door_guard.STRANGER) == b""
    with running(program) as port:
        assert b"told" in ask(port, source=door_guard.STRANGER)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another account, which only root may")
@pytest.mark.parametrize("program", SERVERS)
def test_another_account_is_cut(program: str) -> None:
    """A server of one account says nothing to another's; root is answered."""
    loaded = "import encodings.idna, os\n" + next(
        line for line in program.splitlines() if "import" in line and "asyncio" not in line
    )
    become = "\nos.setgid(65534)\nos.setuid(65534)\n"
    with running(LOAD, loaded, become, program) as port:
        own, other = (_ask_as(uid, port) for uid in (65534, 65533))
        assert (b"told" in own, other) == (True, b"")
        assert b"told" in ask(port)


def _ask_as(uid: int, port: int) -> bytes:
    """What an account is told."""
    program = f"""
import encodings.idna, os, socket
os.setgid(65534)
os.setuid({uid})
connection = socket.create_connection(("127.0.0.1", {port}), timeout=20)
try:
    connection.sendall({REQUEST!r})
    while piece := connection.recv(4096):
        os.write(1, piece)
except ConnectionError:
    pass
"""
    return subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True, timeout=60).stdout


HEADER = b"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
ROW = b"   1: %s %s 01 00000000:00000000 00:00000000 00000000  %d        0 %d 1 0000000000000000 20 4 30 10 -1\n"
PEER, HERE = ("10.0.0.5", 45678), ("10.0.0.4", 20102)
PEER4, HERE4 = b"0500000A:B26E", b"0400000A:4E86"
MAPPED = b"0000000000000000FFFF0000"


@pytest.mark.skipif(sys.byteorder != "little", reason="rows are written in the machine's order")
@pytest.mark.parametrize(
    ("rows", "owner"),
    [
        ([], None),
        ([ROW % (PEER4, HERE4, 1000, 77)], 1000),
        ([ROW % (HERE4, PEER4, 0, 76), ROW % (PEER4, HERE4, 1001, 77)], 1001),
        ([ROW % (MAPPED + PEER4, MAPPED + HERE4, 1000, 77)], 1000),
        ([ROW % (PEER4, HERE4, 0, 0)], None),
        ([ROW % (PEER4, b"0400000A:4E87", 1000, 77)], None),
    ],
    ids=["empty", "there", "the other direction", "IPv4 in IPv6", "closed, nobody's", "another port"],
)
def test_whose_the_other_end_is(rows: list[bytes], owner: int | None) -> None:
    """By the row of the kernel's table that goes the other way; a socket that was closed belongs to nobody."""
    assert door_guard.peers_owner(iter([HEADER + b"".join(rows)]), PEER, HERE) == owner


def test_a_module_that_is_not_rays_is_left_alone() -> None:
    """Modules with other names load as ever, and ones that lack what is patched do, too."""
    program = LOAD + "import json, socketserver; print(json.dumps(socketserver.TCPServer.verify_request.__name__))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == '"verify_request"'
