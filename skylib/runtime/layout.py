"""Names, ports and paths of what stands on a node. SkyPilot's values, where it has them (they are part of the contract)."""

from __future__ import annotations

import attrs

__all__ = [
    "DASHBOARD_PORT",
    "ENV_NAME",
    "MAX_SOCKET_PATH",
    "RAY_PORT",
    "SKY_REMOTE_RAY_VERSION",
    "TEMP_DIR",
    "NodeLayout",
]

RAY_PORT = 6380
DASHBOARD_PORT = 8266
TEMP_DIR = "/tmp/ray_skypilot"
SKY_REMOTE_RAY_VERSION = "2.9.3"
ENV_NAME = "skypilot-runtime"
MAX_SOCKET_PATH = 100  # bytes; Linux allows 107 in sun_path


@attrs.frozen(kw_only=True)
class NodeLayout:
    """Absolute paths on one node. root: the account's home; for a `local` node a directory under the client's home.

    temp_dir: Ray's, /tmp/ray_skypilot or /tmp/ray_skypilot_<uid>; a second local node on the same machine has its own root
    and shares the temp_dir.
    env: the private environment, <home>/skypilot-runtime.
    """

    root: str
    temp_dir: str = TEMP_DIR
    env: str = ""

    @property
    def sky(self) -> str:
        return f"{self.root}/.sky"

    @property
    def ray_port_json(self) -> str:
        return f"{self.sky}/ray_port.json"

    @property
    def python_path(self) -> str:
        return f"{self.sky}/python_path"

    @property
    def ray_path(self) -> str:
        return f"{self.sky}/ray_path"

    @property
    def cluster_json(self) -> str:
        return f"{self.sky}/cluster.json"

    @property
    def agent_json(self) -> str:
        """The agent's configuration (agent/protocol.py, AgentConfig)."""
        return f"{self.sky}/agent.json"

    @property
    def tls_dir(self) -> str:
        """Certificates of this node's Ray, its private key among them (agent/certs.py)."""
        return f"{self.sky}/tls"

    @property
    def agent_dir(self) -> str:
        """Holds the agent's bundles, <sha256>.pyz."""
        return f"{self.sky}/agent"

    @property
    def agent_bundle(self) -> str:
        """A link to the bundle that the agent runs from."""
        return f"{self.agent_dir}/current.pyz"

    @property
    def jobs_db(self) -> str:
        return f"{self.sky}/jobs.db"

    @property
    def agent_socket(self) -> str:
        """<root>/.sky/agent.sock; under the temp dir when that is too long for a socket."""
        direct = f"{self.sky}/agent.sock"
        if len(direct.encode()) <= MAX_SOCKET_PATH:
            return direct
        from_root = format(hash_name(self.root), "x")
        return f"{self.temp_dir}/agent-{from_root}.sock"

    @property
    def workdir(self) -> str:
        return f"{self.root}/sky_workdir"

    @property
    def job_logs(self) -> str:
        return f"{self.root}/sky_logs"

    @property
    def runtime_env(self) -> str:
        return self.env or f"{self.root}/{ENV_NAME}"


def hash_name(text: str) -> int:
    """A stable 48-bit number of a text (FNV-1a), the same in every process."""
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return value >> 16
