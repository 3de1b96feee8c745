"""Whether anybody but the cluster can speak to its Ray: each port that its processes listen on is tried, as a stranger.

Asked on the way to "ready". A node's ports are tried by another node; on a machine that has no other, by itself, from an
address that its HTTP servers take for a stranger's (runtime/door_guard.py): whether another account is refused, and what
the machine's other addresses let in, is not seen then.
Open is what answers: an HTTP request, HTTP/2 as gRPC begins it, and the same inside TLS without a certificate.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Dict, List, Optional, Sequence, Set, Tuple

from .config import AgentConfig
from .link import Ranks
from .processes import carrying, own, with_descendants
from .protocol import TOKEN_VARIABLE
from .sockets import ports_of

__all__ = ["STRANGER", "expected_ports", "listening", "tester_of", "try_all", "try_doors"]

STRANGER = "127.83.75.89"  # as in runtime/door_guard.py
_SETTLE_S = 15.0
_POLL_S = 0.02
_ANSWER_S = 3.0  # a shut door is shut at once; this is for what says nothing
_CALL_S = 60.0
_AT_ONCE = 48
_TLS_ALERT = b"\x15\x03"
_GET = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
_HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"  # the preface, and settings: none
_TRIES = {"HTTP": (_GET, False), "HTTP/2 without TLS": (_HTTP2, False), "TLS without a certificate": (_HTTP2, True)}
_PORT_FLAG = re.compile(r"--(?:dashboard-agent-listen|runtime-env-agent|metrics-export)-port=(\d+)")


def expected_ports(config: AgentConfig) -> Set[int]:
    """Those of this node's HTTP servers, which are the last to listen; none when it is not known how Ray was started."""
    words = config.ray_start.argv if config.ray_start is not None else ()
    return {int(found.group(1)) for found in map(_PORT_FLAG.fullmatch, words) if found}


def listening(config: AgentConfig, settle_s: float = _SETTLE_S) -> List[int]:
    """Ports that the cluster's processes on this machine listen on, once all that are expected do so, or after settle_s."""
    expected = expected_ports(config)
    until = time.monotonic() + settle_s
    while True:
        processes = own()
        ours = carrying(processes.values(), {TOKEN_VARIABLE: config.cluster_id})
        ports = ports_of(with_descendants(processes, ours))
        if expected <= ports or time.monotonic() > until:
            return sorted(ports)
        time.sleep(_POLL_S)


def try_doors(ips: Sequence[str], ports: Sequence[int], source: str = "") -> List[Tuple[int, str]]:
    """The ports that answer us at any of a machine's addresses, and how. source: that we speak from, "" for any."""
    tries = [(ip, port, how) for port in ports for how in _TRIES for ip in ips]
    with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
        answers = list(pool.map(lambda each: _answers(each[0], each[1], each[2], source), tries))
    found: Dict[int, str] = {}
    for (_, port, how), answered in zip(tries, answers):
        if answered:
            found.setdefault(port, how)
    return sorted(found.items())


def _answers(ip: str, port: int, how: str, source: str) -> bool:
    data, tls = _TRIES[how]
    try:
        here = (source, 0) if source else None
        with socket.create_connection((ip, port), timeout=_ANSWER_S, source_address=here) as plain:
            if not tls:
                plain.sendall(data)
                said = plain.recv(16)
                return bool(said) and not said.startswith(_TLS_ALERT)
            with _anybody().wrap_socket(plain) as wrapped:
                wrapped.sendall(data)
                return bool(wrapped.recv(16))
    except OSError:  # refused, cut, no TLS, no answer
        return False


def _anybody() -> ssl.SSLContext:
    """A client without a certificate, whom anybody's will do."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context


def tester_of(ips: Sequence[str], rank: int) -> Optional[int]:
    """The node that tries that one's doors: the next one on another machine; None when there is none."""
    order = [*range(rank + 1, len(ips)), *range(rank)]
    return next((other for other in order if ips[other] != ips[rank]), None)


async def try_all(config: AgentConfig, ranks: Ranks) -> List[Dict[str, Any]]:
    """The open doors of all nodes: {"rank", "port", "how"}. Raises RankError and asyncio.TimeoutError."""
    ips = [node.ip for node in config.nodes]
    ports = await asyncio.gather(*(ranks.call(rank, "listening", timeout_s=_CALL_S) for rank in range(len(ips))))

    async def try_machine(ip: str) -> List[Dict[str, Any]]:
        rank = ips.index(ip)
        targets = sorted({port for other, found in zip(ips, ports) for port in found if other == ip})
        tester = tester_of(ips, rank)
        own = sorted({"127.0.0.1", ip})
        where = (rank, own, targets, STRANGER) if tester is None else (tester, [ip], targets, "")
        found = await ranks.call(where[0], "try_doors", *where[1:], timeout_s=_CALL_S)
        return [{"rank": rank, "port": port, "how": how} for port, how in found]

    machines = await asyncio.gather(*(try_machine(ip) for ip in sorted(set(ips))))
    return sorted((door for doors in machines for door in doors), key=lambda door: (door["rank"], door["port"]))
