"""Part of a runtime environment, loaded in its Ray's processes alone (SKYLIB_RAY_DOORS): no imports of skylib.

Ray's HTTP servers (dashboard, its agents, runtime environments, metrics) run what anybody posts to them, listen on all
addresses and know neither TLS nor, before 2.52, a token. Here they cut a connection before a byte of it is read, unless
its other end is a socket of this machine that belongs to this account or to root; so the kernel's table of sockets says.
Ray's directories stay the account's own: it makes each of them writable for everybody, sockets and all.
What listens last is the dashboard's agent of each node, and a launch waits for it, to try its doors: Ray 2.9.3 imports the
dashboard's own modules there as well, half of its 1.3 CPU seconds; here it has only those of an agent.
What is patched is looked for first, as its module is imported, so that another Ray starts as it likes, with its doors
open, which a launch then finds. Python 3.8, standard library.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import os
import pkgutil
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

__all__ = ["STRANGER", "VARIABLE", "install", "is_own", "peers_owner"]

VARIABLE = "SKYLIB_RAY_DOORS"
STRANGER = "127.83.75.89"  # who comes from this address is turned away: how a node without others tries its own doors
_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
_LOOKS = 3  # the table is not read at one moment: a row may be missed


def install() -> None:
    """Patch what is loaded, and the rest as it comes. Once: an environment's .pth files may be read twice."""
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    for name, patch in _PATCHES.items():
        if name in sys.modules:
            patch(sys.modules[name])
    sys.meta_path.insert(0, _Finder())


def is_own(connection: socket.socket) -> bool:
    """Whether the other end of a connection belongs to this account, or root, on this machine."""
    if connection.family not in (socket.AF_INET, socket.AF_INET6):
        return True  # a Unix socket, in a directory of ours
    try:
        peer, here = connection.getpeername()[:2], connection.getsockname()[:2]
    except OSError:
        return False
    if _address(peer[0]) == ipaddress.ip_address(STRANGER) or not _is_here(connection.family, peer[0]):
        return False
    if not os.path.exists(_TABLES[0]):
        return bool(_address(peer[0]) == _address(here[0]))  # macOS: this machine, whoever it is
    for _ in range(_LOOKS):
        owner = peers_owner(_tables(), peer, here)
        if owner is not None:
            return owner in (0, os.geteuid())
    return False


def _is_here(family: int, address: str) -> bool:
    """Whether an address is this machine's: for others the table, slow where it is long, is not even read."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def peers_owner(tables: Iterator[bytes], peer: tuple[str, int], here: tuple[str, int]) -> int | None:
    """Uid of the socket at `peer` that is connected to `here`, by /proc/net/tcp and tcp6; None when it is not there.

    A socket that its process has closed is nobody's: the kernel says uid 0 then, and inode 0.
    """
    wanted = [local + b" " + remote for local, remote in zip(_forms(*peer), _forms(*here))]  # noqa: B905 - Python 3.8
    for table in tables:
        for pair in wanted:
            found = table.find(b" " + pair + b" ")
            if found < 0:
                continue
            fields = table[found:].split(b"\n", 1)[0].split()
            if len(fields) > 8 and fields[8] != b"0":  # local, remote, state, queues, timer, retries, uid, timeout, inode
                return int(fields[6])
    return None


def _tables() -> Iterator[bytes]:
    for path in _TABLES:
        try:
            with open(path, "rb") as file:
                yield file.read()
        except OSError:
            continue  # no IPv6 here


def _address(text: str) -> Any:
    address = ipaddress.ip_address(text.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address


def _forms(host: str, port: int) -> list[bytes]:
    """How the tables write an address: as it is, and an IPv4 one also as the IPv6 socket has it that speaks IPv4."""
    address = _address(host)
    written = [address.packed]
    if address.version == 4:
        written.append(b"\0" * 10 + b"\xff\xff" + address.packed)
    return [b"%s:%04X" % (b"".join(_word(each, at) for at in range(0, len(each), 4)), port) for each in written]


def _word(packed: bytes, at: int) -> bytes:
    number: int = struct.unpack("=I", packed[at : at + 4])[0]
    return b"%08X" % number


# --- what is patched


def _guard_aiohttp(module: ModuleType) -> None:
    handler: Any = getattr(module, "RequestHandler", None)
    made: Any = getattr(handler, "connection_made", None)
    if made is None:
        return

    @functools.wraps(made)
    def connection_made(self: Any, transport: Any) -> None:
        made(self, transport)
        connection = transport.get_extra_info("socket")
        if connection is None or not is_own(connection):
            # Not at once: the loop is about to watch the socket, which has to be there for it. Nothing is read before.
            asyncio.get_running_loop().call_soon(transport.abort)

    handler.connection_made = connection_made


def _guard_socketserver(module: ModuleType) -> None:
    server: Any = getattr(module, "TCPServer", None)
    verify: Any = getattr(server, "verify_request", None)
    if verify is None:
        return

    @functools.wraps(verify)
    def verify_request(self: Any, request: Any, client_address: Any) -> bool:
        return is_own(request) and bool(verify(self, request, client_address))

    server.verify_request = verify_request


def _keep_private(module: ModuleType) -> None:
    if hasattr(module, "try_make_directory_shared"):
        module.try_make_directory_shared = lambda directory_path: None  # type: ignore[attr-defined]


def _load_agents_only(module: ModuleType) -> None:
    version = str(getattr(sys.modules.get("ray"), "__version__", ""))
    if version == "2.9.3" and sys.argv[0].endswith("/dashboard/agent.py") and hasattr(module, "pkgutil"):
        module.pkgutil = _AgentModules  # type: ignore[attr-defined]


class _AgentModules:
    """Stands for pkgutil in ray.dashboard.utils, which imports all that this finds."""

    @staticmethod
    def walk_packages(path: Any, prefix: str) -> Iterator[Any]:
        found = pkgutil.walk_packages(path, prefix)
        return (each for each in found if each.ispkg or each.name.endswith("_agent"))


def _submit_here(module: ModuleType) -> None:
    """The dashboard gives a job to the agent of any node, which answers its own node alone: it has to be ours."""
    known: Any = getattr(module, "DataOrganizer", None)
    every: Any = getattr(known, "get_all_agent_infos", None)
    if every is None:
        return

    class Nearby(known):  # type: ignore[misc]
        @classmethod
        async def get_all_agent_infos(cls) -> Any:
            infos = await every()
            return {node: info for node, info in infos.items() if _is_here(socket.AF_INET, str(info.get("ipAddress")))}

    module.DataOrganizer = Nearby  # type: ignore[attr-defined]


_PATCHES: dict[str, Callable[[ModuleType], None]] = {
    "aiohttp.web_protocol": _guard_aiohttp,
    "socketserver": _guard_socketserver,
    "ray._private.utils": _keep_private,
    "ray._common.utils": _keep_private,
    "ray.dashboard.utils": _load_agents_only,
    "ray.dashboard.modules.job.job_head": _submit_here,
}


class _Finder:
    """Finds nothing by itself: it has others find the modules that are patched, and patches them when they were run."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        patch = _PATCHES.get(name)
        if patch is None:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec = None if isinstance(finder, _Finder) or find is None else find(name, path, target)
            if spec is not None:
                _run_then(spec.loader, patch)
                return spec
        return None


def _run_then(loader: Any, patch: Callable[[ModuleType], None]) -> None:
    run: Any = getattr(loader, "exec_module", None)
    if run is None:
        return

    def exec_module(module: ModuleType) -> None:
        run(module)
        patch(module)

    loader.exec_module = exec_module
