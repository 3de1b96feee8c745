"""Who may speak to a cluster's Ray: certificates that its head makes at each bring-up, and their way to the other nodes.

Private keys pass through this process's memory on their way and are nowhere else here: stdin and stdout of commands reach
no journal, no event and no error of a command that succeeded; one that failed has printed none (agent/certs.py).
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from skylib.errors import BringUpError
from skylib.runtime.layout import NodeLayout
from skylib.runtime.node_files import NodePlan
from skylib.transport.base import Transport
from skylib.transport.command import Command
from skylib.transport.fanout import fanout

__all__ = ["TOKENS_SINCE", "Seal", "new_seal", "spread_certificates"]

TOKENS_SINCE = (2, 52)  # Ray's first version with RAY_AUTH_MODE=token, which its HTTP servers ask for as well
TIMEOUT_S = 60.0


@attrs.frozen(kw_only=True)
class Seal:
    """What one bring-up protects its Ray with. stamp: names the bring-up's certificates. token: beside them, a token."""

    stamp: str
    token: bool = False

    def environment(self, layout: NodeLayout) -> dict[str, str]:
        """What every process of Ray's, or that speaks to it, has in its environment on that node."""
        variables = {
            "RAY_USE_TLS": "1",
            "RAY_TLS_SERVER_CERT": f"{layout.tls_dir}/node.crt",
            "RAY_TLS_SERVER_KEY": f"{layout.tls_dir}/node.key",
            "RAY_TLS_CA_CERT": f"{layout.tls_dir}/ca.crt",
            "SKYLIB_RAY_TLS_STAMP": self.stamp,
            "SKYLIB_RAY_DOORS": "guarded",
        }
        if self.token:
            variables.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=f"{layout.tls_dir}/token")
        return variables


def new_seal(ray_version: str) -> Seal:
    """For one bring-up of that Ray; of a version that is not understood, as for the oldest."""
    numbers = tuple(int(part) for part in re.findall(r"\d+", ray_version)[:2])
    return Seal(stamp=secrets.token_hex(8), token=numbers >= TOKENS_SINCE)


def spread_certificates(
    nodes: Sequence[NodePlan], seal: Seal, transport: Callable[[NodePlan], Transport], check: Callable[[], None]
) -> None:
    """Have the head make them, and give each other node its own. check: asked right before each act.

    Raises TransportError; BringUpError when the head's answer is none.
    """
    head, others = nodes[0], nodes[1:]
    check()
    words = ("certs", "--config", head.layout.agent_json, "--stamp", seal.stamp, *(("--token",) if seal.token else ()))
    made = transport(head).run(Command.of(head.python, "-E", head.layout.agent_bundle, *words), timeout_s=TIMEOUT_S).check()
    files = _read(made.stdout, head.host, [node.rank for node in others])

    def give(node: NodePlan) -> None:
        take = ("certs", "--config", node.layout.agent_json, "--stamp", seal.stamp, "--take")
        command = Command.of(node.python, "-S", "-E", node.layout.agent_bundle, *take)
        check()
        transport(node).run(command, stdin=json.dumps(files[node.rank]).encode(), timeout_s=TIMEOUT_S).check()

    for outcome in fanout(give, others):
        outcome.get()


def _read(said: bytes, host: str, ranks: Sequence[int]) -> dict[int, Mapping[str, Any]]:
    try:
        files: Any = json.loads(said)
        return {rank: files[str(rank)] for rank in ranks}
    except (ValueError, KeyError, TypeError):
        pass  # what was said is not told: there may be keys in it
    raise BringUpError(f"the certificates that {host} made cannot be read", host=host, step="runtime.certificates")
