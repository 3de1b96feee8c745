"""The agent's configuration: agent.json, written by the client at bring-up on every node."""

from __future__ import annotations

import json
import os
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

__all__ = ["AgentConfig", "NodeConfig", "RayStart", "load_config", "tls_environment"]

_TO_SPEAK_TO_RAY = ("RAY_USE_TLS", "RAY_TLS_", "RAY_AUTH_", "SKYLIB_RAY_TLS_", "SKYLIB_RAY_DOORS")


class RayStart(NamedTuple):
    """The whole command that starts this node's Ray, as bring-up runs it. env: added to the environment."""

    argv: Tuple[str, ...]
    env: Dict[str, str]


class NodeConfig(NamedTuple):
    """One node of the cluster. gpus: model name of each device, in index order. custom: other countable resources."""

    rank: int
    host: str
    ip: str
    root: str
    cpus: float
    memory_gib: float
    gpus: Tuple[str, ...]
    custom: Dict[str, float]

    @property
    def label(self) -> str:
        """What logs call the node, as SkyPilot does."""
        return "head" if self.rank == 0 else f"worker{self.rank}"


class AgentConfig(NamedTuple):
    """path: the file that this was read from. autostop: as the verb of that name has it, or None. standing: which of the
    cluster's beginnings this is; an agent that is begun anew finds the same. lease_s: None for no lease.

    ray_start: None where the agent is not to keep Ray. node_lost_s: for how long Ray may be without a node before its
    ranks are lost; None for what presence.py thinks right.
    """

    path: str
    cluster: str
    cluster_id: str
    rank: int
    role: str
    root: str
    temp_dir: str
    env: str
    socket: str
    ray_port: int
    head_ip: str
    node_ip: str
    infra: str
    user: str
    bundle: str
    nodes: Tuple[NodeConfig, ...]
    autostop: Optional[Dict[str, Any]]
    ray_start: Optional[RayStart] = None
    node_lost_s: Optional[float] = None
    standing: str = ""
    lease_s: Optional[float] = None

    @property
    def sky(self) -> str:
        return os.path.join(self.root, ".sky")

    @property
    def jobs_state(self) -> str:
        """Private state of the ranks that this node ran: <task id>/<phase>-<rank>/."""
        return os.path.join(self.sky, "jobs")

    @property
    def secrets(self) -> str:
        """Secrets of jobs that have not ended, one 0600 file a job, on the head."""
        return os.path.join(self.sky, "secrets")

    @property
    def tls(self) -> str:
        """Certificates of this node's Ray; see certs.py."""
        return os.path.join(self.sky, "tls")

    @property
    def logs(self) -> str:
        return os.path.join(self.root, "sky_logs")

    @property
    def log_file(self) -> str:
        return os.path.join(self.sky, "agent.log")

    def bundle_of(self, node: NodeConfig) -> str:
        """Where that node keeps the agent's bundle."""
        return os.path.join(node.root, ".sky", "agent", f"{self.bundle}.pyz")

    def config_of(self, node: NodeConfig) -> str:
        return os.path.join(node.root, ".sky", "agent.json")

    @property
    def me(self) -> NodeConfig:
        return self.nodes[self.rank]


def _node(data: Mapping[str, Any]) -> NodeConfig:
    gpus: List[str] = [str(gpu["name"]) for gpu in sorted(data.get("gpus") or [], key=lambda gpu: int(gpu["index"]))]
    return NodeConfig(
        rank=int(data["rank"]),
        host=str(data.get("host") or data["ip"]),
        ip=str(data["ip"]),
        root=str(data["root"]),
        cpus=float(data.get("cpus") or 1),
        memory_gib=float(data.get("memory_gib") or 0),
        gpus=tuple(gpus),
        custom={str(name): float(count) for name, count in (data.get("custom") or {}).items()},
    )


def _ray_start(data: Optional[Mapping[str, Any]]) -> Optional[RayStart]:
    if not data:
        return None
    env = {str(name): str(value) for name, value in (data.get("env") or {}).items()}
    return RayStart(tuple(str(word) for word in data["argv"]), env)


def load_config(path: str) -> AgentConfig:
    """Raises OSError when the file cannot be read, ValueError or KeyError when it is not a configuration."""
    with open(path, "rb") as file:
        data = json.loads(file.read().decode())
    nodes = tuple(sorted((_node(node) for node in data["nodes"]), key=lambda node: node.rank))
    if [node.rank for node in nodes] != list(range(len(nodes))):
        raise ValueError(f"{path}: ranks of nodes are not 0..{len(nodes) - 1}")
    return AgentConfig(
        path=os.path.abspath(path),
        cluster=str(data["cluster"]),
        cluster_id=str(data["cluster_id"]),
        rank=int(data["rank"]),
        role=str(data["role"]),
        root=str(data["root"]),
        temp_dir=str(data.get("temp_dir") or ""),
        env=str(data.get("env") or ""),
        socket=str(data["socket"]),
        ray_port=int(data["ray_port"]),
        head_ip=str(data["head_ip"]),
        node_ip=str(data.get("node_ip") or data["head_ip"]),
        infra=str(data.get("infra") or ""),
        user=str(data.get("user") or ""),
        bundle=str(data.get("bundle") or ""),
        nodes=nodes,
        autostop=data.get("autostop"),
        ray_start=_ray_start(data.get("ray_start")),
        node_lost_s=float(data["node_lost_s"]) if data.get("node_lost_s") else None,
        standing=str(data.get("standing") or ""),
        lease_s=float(data["lease_s"]) if data.get("lease_s") else None,
    )


def tls_environment(config: AgentConfig) -> Dict[str, str]:
    """What a process needs in its environment to speak to this node's Ray as one of the cluster; empty where Ray asks
    for nothing. SKYLIB_RAY_TLS_STAMP: of the bring-up whose certificates are to be waited for.
    """
    if config.ray_start is not None:
        words = (word.partition("=") for word in config.ray_start.argv)
        given = {**config.ray_start.env, **{name: value for name, equals, value in words if equals}}
        return {name: value for name, value in given.items() if name.startswith(_TO_SPEAK_TO_RAY)}
    names = {"SERVER_CERT": "node.crt", "SERVER_KEY": "node.key", "CA_CERT": "ca.crt"}
    paths = {f"RAY_TLS_{name}": os.path.join(config.tls, file) for name, file in names.items()}
    if not all(os.path.exists(path) for path in paths.values()):
        return {}
    return {"RAY_USE_TLS": "1", "SKYLIB_RAY_DOORS": "guarded", **paths}
