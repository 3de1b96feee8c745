"""Starting a node's agent beside what runs there: after it died, or because this client's is of another version."""

from __future__ import annotations

import json
from collections.abc import Mapping

from skylib.agent.protocol import PROTOCOL
from skylib.errors import AgentError, CommandError
from skylib.models.cluster import NodeRecord
from skylib.runtime.agent_bundle import build_bundle
from skylib.runtime.agent_client import daemon_command
from skylib.runtime.layout import NodeLayout
from skylib.runtime.teardown import layout_of
from skylib.transport.base import Transport
from skylib.transport.command import Command

__all__ = ["bring_back", "restart_agent"]

TIMEOUT_S = 60.0


def restart_agent(transport: Transport, node: NodeRecord, cluster_id: str, *, as_it_was: bool = False) -> bool:
    """The agent runs, and is this client's; jobs go on. True when it had to be started.

    as_it_was: of the version that it had, if that one is still there and speaks as this client does: for one node alone,
    since the head's agent has the nodes run its own version, which they must have.
    Raises AgentError when the node does not serve that cluster, TransportError when the node cannot be reached.
    """
    layout = layout_of(node)
    bundle = build_bundle()
    found = transport.run(Command.of("cat", layout.agent_json), timeout_s=TIMEOUT_S)
    try:
        config = json.loads(found.stdout) if found.ok else {}
    except ValueError:
        config = {}
    if config.get("cluster_id") != cluster_id:
        raise AgentError(
            f"{transport.host} does not serve the cluster any more",
            host=transport.host,
            step="runtime.agent",
            evidence=found.stderr[-500:].decode(errors="replace") or None,
            retryable=False,
            hint="client.down(name, purge=True) forgets the cluster; client.discover() says what stands on its hosts",
        )
    if config.get("bundle") != bundle.sha256 and not (as_it_was and _is_usable(transport, layout, config)):
        transport.put(bundle.data, f"{layout.agent_dir}/{bundle.sha256}.pyz")
        config.update(bundle=bundle.sha256, protocol=PROTOCOL)
        transport.put(json.dumps(config).encode(), layout.agent_json)
        link = Command.of("ln", "-sfn", f"{bundle.sha256}.pyz", layout.agent_bundle)
        transport.run(link, timeout_s=TIMEOUT_S).check()
    try:
        started = transport.run(daemon_command(node.python, layout, cluster_id), timeout_s=TIMEOUT_S).check()
    except CommandError as error:
        raise AgentError(
            f"the agent on {transport.host} does not start",
            host=transport.host,
            step="runtime.agent",
            command=error.command,
            evidence=error.evidence,
            hint=f"{layout.sky}/agent.log on {transport.host} says more",
        ) from error
    return started.stdout.strip() != b"already"


def _is_usable(transport: Transport, layout: NodeLayout, config: Mapping[str, object]) -> bool:
    """Whether the version that the node was given is there and of this client's protocol."""
    there = Command.of("test", "-s", f"{layout.agent_dir}/{config.get('bundle')}.pyz")
    return config.get("protocol") == PROTOCOL and transport.run(there, timeout_s=TIMEOUT_S).ok


def bring_back(transport: Transport, head: NodeRecord, cluster_id: str) -> bool:
    """The head's agent runs again; False when the cluster has stopped by itself and nothing was done.

    Raises AgentError, TransportError.
    """
    said = transport.run(Command.of("cat", f"{layout_of(head).sky}/stopped.json"), timeout_s=TIMEOUT_S)
    try:
        stopped = json.loads(said.stdout) if said.ok else {}
    except ValueError:
        stopped = {}
    if isinstance(stopped, dict) and stopped.get("cluster_id") == cluster_id:
        return False
    restart_agent(transport, head, cluster_id, as_it_was=True)
    return True
