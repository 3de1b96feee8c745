"""Starting a node's agent anew, on hosts that refuse."""

from __future__ import annotations

import json

import pytest

from skylib.agent.protocol import PROTOCOL
from skylib.errors import AgentError
from skylib.runtime.agent_bundle import build_bundle
from skylib.runtime.agent_restart import bring_back, restart_agent
from skylib.transport.base import Completed
from skylib.transport.scripted import Rule, ScriptedTransport
from tests.records import node_record


def test_a_host_that_serves_another_cluster_says_what_to_do():
    """Its agent is left alone; the cluster may be forgotten or looked for."""
    host = ScriptedTransport("host0", [Rule("agent.json", b'{"cluster_id": "id-2"}')])
    with pytest.raises(AgentError, match="does not serve the cluster") as caught:
        restart_agent(host, node_record(), "id-1")
    assert "purge=True" in str(caught.value.hint)
    assert len(host.calls) == 1


def test_an_agent_that_does_not_start_says_where_its_log_is():
    """On its host, in the cluster's directory."""
    config = json.dumps({"cluster_id": "id-1", "bundle": build_bundle().sha256}).encode()
    refused = Completed(returncode=1, stdout=b"", stderr=b"no socket")
    host = ScriptedTransport("host0", [Rule("cat .*agent.json", config), Rule("daemon", refused)])
    with pytest.raises(AgentError, match="does not start") as caught:
        restart_agent(host, node_record(), "id-1")
    assert "agent.log on host0" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("protocol", "there", "renewed"), [(PROTOCOL, 0, False), (PROTOCOL, 1, True), (PROTOCOL - 1, 0, True)]
)
def test_a_heads_agent_comes_back_as_it_was(protocol: int, there: int, renewed: bool):
    """A newer client does not give the head alone a version that the workers, whose ranks it starts, do not have."""
    config = json.dumps({"cluster_id": "id-1", "bundle": "older", "protocol": protocol}).encode()
    rules = [
        Rule("cat .*stopped.json", Completed(returncode=1, stdout=b"", stderr=b"")),
        Rule("cat .*agent.json", config),
        Rule("test -s .*/older.pyz", Completed(returncode=there, stdout=b"", stderr=b"")),
        Rule("ln", b""),
        Rule("daemon", b"started"),
    ]
    host = ScriptedTransport("host0", rules)
    assert bring_back(host, node_record(), "id-1")
    assert any(path.endswith(f"{build_bundle().sha256}.pyz") for path in host.files) is renewed
