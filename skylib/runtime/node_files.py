"""The small files that a node gets before Ray starts: SkyPilot's three, the cluster's mark, the agent's configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import attrs

from skylib.agent.protocol import PROTOCOL
from skylib.catalog.accelerators import accelerator_name
from skylib.models.cluster import AutostopRecord
from skylib.models.node import Gpu
from skylib.runtime.layout import NodeLayout
from skylib.transport.command import Command

__all__ = ["NodePlan", "agent_config", "cluster_mark", "write_files"]

# "$1" is a directory to make; then pairs of path and content; the last line printed says whether the bundle stands there.
_WRITE = """
set -e
umask 077
bundle="$1"; shift
mkdir -p "${bundle%/*}"
while [ $# -gt 1 ]; do
  mkdir -p "${1%/*}"
  printf %s "$2" > "$1.new$$"
  mv -f "$1.new$$" "$1"
  shift 2
done
ln -sfn "${bundle##*/}" "${bundle%/*}/current.pyz"
if [ -s "$bundle" ]; then echo have; else echo need; fi
"""


@attrs.frozen(kw_only=True)
class NodePlan:
    """What bring-up knows of one node before it acts."""

    rank: int
    host: str
    ip: str
    layout: NodeLayout
    python: str
    ray: str
    cpus: int
    memory_gib: float
    gpus: tuple[Gpu, ...] = ()


def agent_config(
    node: NodePlan,
    nodes: Sequence[NodePlan],
    *,
    cluster: str,
    cluster_id: str,
    ray_port: int,
    dashboard_port: int,
    infra: str,
    user: str,
    bundle_sha256: str,
    autostop: AutostopRecord | None,
) -> dict[str, object]:
    """The content of agent.json."""
    return {
        "protocol": PROTOCOL,
        "cluster": cluster,
        "cluster_id": cluster_id,
        "rank": node.rank,
        "role": "head" if node.rank == 0 else "worker",
        "root": node.layout.root,
        "temp_dir": node.layout.temp_dir,
        "env": node.layout.runtime_env,
        "socket": node.layout.agent_socket,
        "ray_port": ray_port,
        "dashboard_port": dashboard_port,
        "head_ip": nodes[0].ip,
        "node_ip": node.ip,
        "infra": infra,
        "user": user,
        "bundle": bundle_sha256,
        "nodes": [
            {
                "rank": each.rank,
                "host": each.host,
                "ip": each.ip,
                "root": each.layout.root,
                "cpus": each.cpus,
                "memory_gib": each.memory_gib,
                "gpus": [{**attrs.asdict(gpu), "name": accelerator_name(gpu.name, gpu.memory_gib)} for gpu in each.gpus],
            }
            for each in nodes
        ],
        "autostop": attrs.asdict(autostop) if autostop else None,
    }


def cluster_mark(
    nodes: Sequence[NodePlan], *, cluster: str, cluster_id: str, infra: str, owner: str, home: str, ray_port: int
) -> dict[str, object]:
    """The content of cluster.json: who holds this account, and who belongs to it."""
    return {
        "schema": 1,
        "cluster": cluster,
        "cluster_id": cluster_id,
        "infra": infra,
        "owner": owner,
        "home": home,
        "ray_port": ray_port,
        "members": [{"rank": node.rank, "host": node.host, "ip": node.ip, "root": node.layout.root} for node in nodes],
    }


def write_files(node: NodePlan, config: Mapping[str, object], mark: Mapping[str, object], bundle: str) -> Command:
    """One command that writes all small files, each beside and renamed. Prints "have" or "need" for the bundle.

    bundle: the agent bundle's absolute path there. Nothing here is secret (the words are seen in the process list).
    """
    layout = node.layout
    ports = {"ray_port": config["ray_port"], "ray_dashboard_port": config["dashboard_port"]}
    files = {
        layout.cluster_json: json.dumps(mark, indent=1),
        layout.agent_json: json.dumps(config),
        layout.ray_port_json: json.dumps(ports),
        layout.python_path: node.python + "\n",
        layout.ray_path: node.ray + "\n",
        f"{layout.temp_dir}/cluster.json": json.dumps(mark, indent=1),
    }
    words = [word for pair in files.items() for word in pair]
    return Command.sh(_WRITE, bundle, *words)
