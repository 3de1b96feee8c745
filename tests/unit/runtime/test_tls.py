"""Certificates on their way from the head to the other nodes."""

from __future__ import annotations

import json

import pytest

from skylib.errors import BringUpError
from skylib.runtime.layout import NodeLayout
from skylib.runtime.node_files import NodePlan
from skylib.runtime.tls import Seal, new_seal, spread_certificates
from skylib.transport.scripted import Rule, ScriptedTransport

LAYOUT = NodeLayout(root="/home/me")


def plan(rank: int) -> NodePlan:
    """A node of a cluster."""
    names = {"host": f"h{rank}", "ip": f"10.0.0.{rank + 1}", "python": "/e/bin/python", "ray": "/e/bin/ray"}
    return NodePlan(rank=rank, layout=LAYOUT, cpus=1, memory_gib=1, **names)


@pytest.mark.parametrize(
    ("version", "token"), [("2.9.3", False), ("2.51.2", False), ("2.52.0", True), ("3.0.0rc1", True), ("unknown", False)]
)
def test_a_token_is_for_rays_that_know_it(version: str, token: bool) -> None:
    """RAY_AUTH_MODE=token from 2.52 on; certificates for all."""
    variables = new_seal(version).environment(LAYOUT)
    assert variables["RAY_USE_TLS"] == "1"
    assert variables["RAY_TLS_SERVER_KEY"] == "/home/me/.sky/tls/node.key"
    assert (variables.get("RAY_AUTH_MODE") == "token") is token


def test_each_bring_up_has_a_stamp_of_its_own() -> None:
    """Two that follow each other never take the same files for theirs."""
    assert new_seal("2.9.3").stamp != new_seal("2.9.3").stamp


def test_each_node_gets_its_own_files_and_nobody_else_s() -> None:
    """What the head printed for a rank is that rank's stdin; no key stands in a command line."""
    files = {str(rank): {"node.key": f"key of {rank}"} for rank in (1, 2)}
    hosts = [ScriptedTransport("h0", [Rule(" certs ", json.dumps(files).encode())])]
    hosts += [ScriptedTransport(f"h{rank}", [Rule(" certs ", b"")]) for rank in (1, 2)]
    spread_certificates([plan(rank) for rank in range(3)], Seal(stamp="s"), lambda node: hosts[node.rank], lambda: None)
    given = [[json.loads(call.stdin) for call in host.calls] for host in hosts[1:]]
    assert given == [[files["1"]], [files["2"]]]
    assert not any("key of" in call.command.text() for host in hosts for call in host.calls)


def test_what_the_head_said_is_not_told() -> None:
    """An answer that cannot be read fails the bring-up without a word of it: there may be keys in it."""
    head = ScriptedTransport("h0", [Rule(" certs ", b'{"2": {"node.key": "PRIVATE"}}')])
    with pytest.raises(BringUpError) as failed:
        spread_certificates([plan(0), plan(1)], Seal(stamp="s"), lambda node: head, lambda: None)
    assert (failed.value.host, failed.value.step) == ("h0", "runtime.certificates")
    assert "PRIVATE" not in str(failed.value) + repr(failed.value.__dict__)
    assert failed.value.__cause__ is None
