"""The `ray start` command lines of a cluster's nodes: SkyPilot's flags, with every port of ours given. Pure.

What each setting is for (Ray 2.9.3):
--object-store-memory        small: nothing of a job passes through this Ray, and the user's own wants that memory
RAY_memory_monitor_refresh_ms=0  a job's processes are not Ray's: its memory monitor could only kill the standing actors
RAY_worker_niceness          standing actors begin with what each job's start needs: not behind the dashboard (default 15)
RAY_raylet_client_*          a raylet's own store is asked every 20 ms, not every second, for the same 10 s
RAY_enable_worker_prestart, RAY_prestart_worker_first_driver  one idle Python per CPU that nobody would use
RAY_health_check_*           the GCS gives up a silent node after 10 s, not after 20 to 60; a break of 5 s does no harm
SPT_NOENV                    processes that give themselves titles do not write them over what they inherited: the token
GRPC_VERBOSITY               a stranger who knocks at a port fills no disk: gRPC would write a line each time, without end
RAY_USE_TLS, RAY_TLS_*, RAY_AUTH_*  tls.py: who has no certificate of the cluster, or no token, is refused
SKYLIB_RAY_DOORS             door_guard.py, which the environment holds: Ray's HTTP servers answer this account alone
RAY_START_HOOK               start_hook.py, which the environment holds; it reads the SKYLIB_RAY_ variables
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import attrs

from skylib.agent.protocol import RAY_RANK_VARIABLE, TOKEN_VARIABLE
from skylib.runtime.layout import NodeLayout
from skylib.runtime.ports import HeadPorts, NodePorts
from skylib.runtime.tls import Seal
from skylib.transport.command import Command

__all__ = ["OBJECT_STORE_BYTES", "START_HOOK", "RayNode", "head_start", "rank_resource", "ray_resources", "worker_start"]

OBJECT_STORE_BYTES = 128 * 1024 * 1024
START_HOOK = "skylib_start_hook.trim"

_HEALTH_CHECKS = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1500",
    "RAY_health_check_failure_threshold": "4",
}

# A clean environment: the caller's RAY_*, PYTHONPATH, CUDA_VISIBLE_DEVICES and proxies (gRPC obeys those, even for
# addresses next door) are none of this Ray's business. "$@" begins with assignments, which `env` takes.
_CLEAN_START = """\
soft=$(ulimit -S -n); hard=$(ulimit -H -n)
if [ "$hard" = unlimited ] || [ "$hard" -gt 65536 ]; then hard=65536; fi
if [ "$soft" != unlimited ] && [ "$soft" -lt "$hard" ]; then ulimit -S -n "$hard"; fi
cd "$HOME" || cd /
exec env -i HOME="$HOME" USER="${USER:-}" LOGNAME="${LOGNAME:-}" SHELL="${SHELL:-/bin/sh}" LANG="${LANG:-C.UTF-8}" "$@"
"""
_SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"


@attrs.frozen(kw_only=True)
class RayNode:
    """One node of a cluster, as Ray is told of it.

    ip: internal address, which the other nodes reach. cpus, gpus: as probed. resources: custom ones besides the rank's,
    such as accelerators by name. seal: None for a Ray that anybody may speak to.
    """

    rank: int
    ip: str
    cpus: int
    gpus: int = 0
    resources: Mapping[str, float] = attrs.field(factory=dict)
    layout: NodeLayout
    ports: NodePorts
    seal: Seal | None = None


def rank_resource(rank: int) -> str:
    """The custom resource that exactly one node of a cluster has: what pins a standing actor to its rank."""
    return f"skylib_rank_{rank}"


def ray_resources(node: RayNode) -> dict[str, float]:
    """What `--resources` says, sorted by name."""
    return dict(sorted({**node.resources, rank_resource(node.rank): 1}.items()))


def head_start(node: RayNode, head: HeadPorts, *, cluster_id: str) -> Command:
    """`ray start --head`. Returns when the dashboard answers; it exits 0 even when the raylet dies at once."""
    flags = (
        "--head",
        f"--port={head.ray}",
        f"--dashboard-port={head.dashboard}",
        "--dashboard-host=127.0.0.1",
        f"--ray-client-server-port={head.client_server}",
        f"--temp-dir={node.layout.temp_dir}",
    )
    further = {
        "AUTOSCALER_METRIC_PORT": str(head.autoscaler_metrics),
        "DASHBOARD_METRIC_PORT": str(head.dashboard_metrics),
        "SKYLIB_RAY_DASHBOARD_GRPC_PORT": str(head.dashboard_grpc),
    }
    return _start(node, flags, {**_environment(node, cluster_id), **further})


def worker_start(node: RayNode, head_address: str, *, cluster_id: str) -> Command:
    """`ray start --address`. head_address: "<internal ip>:<port>". Started before its head, it waits for it.

    The temp dir is the head's: Ray tells the workers.
    """
    env = {**_environment(node, cluster_id), "SKYLIB_RAY_GCS_ADDRESS": head_address}
    return _start(node, (f"--address={head_address}",), env)


def _start(node: RayNode, own: tuple[str, ...], env: Mapping[str, str]) -> Command:
    ports = node.ports
    argv = (
        f"{node.layout.runtime_env}/bin/ray",
        "start",
        *own,
        "--disable-usage-stats",
        f"--node-ip-address={node.ip}",
        f"--num-cpus={node.cpus}",
        f"--num-gpus={node.gpus}",
        f"--resources={json.dumps(ray_resources(node), separators=(',', ':'))}",
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        f"--object-manager-port={ports.object_manager}",
        f"--node-manager-port={ports.node_manager}",
        f"--dashboard-agent-listen-port={ports.agent_http}",
        f"--dashboard-agent-grpc-port={ports.agent_grpc}",
        f"--runtime-env-agent-port={ports.runtime_env_agent}",
        f"--metrics-export-port={ports.metrics_export}",
        f"--min-worker-port={ports.worker_min}",
        f"--max-worker-port={ports.worker_max}",
    )
    assignments = tuple(f"{name}={value}" for name, value in env.items())
    return Command.sh(_CLEAN_START, *assignments, *argv)


def _environment(node: RayNode, cluster_id: str) -> dict[str, str]:
    return {
        "PATH": f"{node.layout.runtime_env}/bin:{_SYSTEM_PATH}",
        TOKEN_VARIABLE: cluster_id,
        RAY_RANK_VARIABLE: str(node.rank),
        "RAY_SCHEDULER_EVENTS": "0",
        "RAY_DEDUP_LOGS": "0",
        "RAY_worker_maximum_startup_concurrency": str(3 * node.cpus),
        "RAY_enable_worker_prestart": "0",
        "RAY_prestart_worker_first_driver": "0",
        "RAY_memory_monitor_refresh_ms": "0",
        "RAY_worker_niceness": "0",
        **_HEALTH_CHECKS,
        "RAY_raylet_client_connect_timeout_milliseconds": "20",
        "RAY_raylet_client_num_connect_attempts": "500",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
        "SPT_NOENV": "1",
        "GRPC_VERBOSITY": "NONE",
        "RAY_START_HOOK": START_HOOK,
        "SKYLIB_RAY_TEMP_DIR": node.layout.temp_dir,
        **(node.seal.environment(node.layout) if node.seal else {}),
    }
