"""Which TCP ports our Ray opens on a machine: all fixed, none of them one that the user's own Ray wants by default.

Ports that Ray picks by itself come from the kernel's ephemeral range, in which 44217, 44227 and 52365 lie as well; so every
port is given, from between Ray's worker ports (10002 to 19999) and the ephemeral range (32768 up).
"""

from __future__ import annotations

from collections.abc import Collection

import attrs

from skylib.errors import InvalidSpecError, PreflightError
from skylib.runtime.layout import DASHBOARD_PORT, RAY_PORT

__all__ = ["FIXED_BASE", "MAX_NODES_ON_MACHINE", "RAY_DEFAULTS", "HeadPorts", "NodePorts", "free_base", "next_free"]

# `ray start` 2.9.3: GCS, dashboard, client server, dashboard agent, metrics of the autoscaler and of the dashboard.
RAY_DEFAULTS = frozenset({6379, 8265, 10001, 52365, 44217, 44227})
_RAY_WORKERS = range(10002, 20000)  # its --min-worker-port and --max-worker-port

FIXED_BASE = 20100
MAX_NODES_ON_MACHINE = 32
_PER_NODE = 8
_STRIDE = _PER_NODE * MAX_NODES_ON_MACHINE + 44
_BASES = range(FIXED_BASE, 24000 - _STRIDE + 1, _STRIDE)
_WORKERS = range(24000, 32000)
_OBJECT_MANAGER = 8076  # SkyPilot's


@attrs.frozen(kw_only=True)
class NodePorts:
    """What one Ray node listens on. worker_min to worker_max, both included, are for its worker processes."""

    object_manager: int
    node_manager: int
    agent_http: int
    agent_grpc: int
    runtime_env_agent: int
    metrics_export: int
    worker_min: int
    worker_max: int

    @classmethod
    def for_rank(cls, rank: int, base: int = FIXED_BASE, *, nodes_on_machine: int = MAX_NODES_ON_MACHINE) -> NodePorts:
        """Ports of the node that is number `rank` on its machine (0 on an SSH host, which carries one).

        Ranks of one machine need the same base and nodes_on_machine. Raises InvalidSpecError for more than 32 of them.
        """
        if not 0 <= rank < nodes_on_machine <= MAX_NODES_ON_MACHINE:
            raise InvalidSpecError(
                f"a machine carries at most {MAX_NODES_ON_MACHINE} nodes, got number {rank} of {nodes_on_machine}",
                field="num_nodes",
            )
        first = base + rank * _PER_NODE
        share = len(_WORKERS) // nodes_on_machine
        workers = _WORKERS.start + rank * share
        return cls(
            object_manager=first if rank or base != FIXED_BASE else _OBJECT_MANAGER,
            node_manager=first + 1,
            agent_http=first + 2,
            agent_grpc=first + 3,
            runtime_env_agent=first + 4,
            metrics_export=first + 5,
            worker_min=workers,
            worker_max=workers + share - 1,
        )

    def fixed(self) -> tuple[int, ...]:
        """The ports that must be free; of the worker ports a raylet skips those that are not."""
        return (
            self.object_manager,
            self.node_manager,
            self.agent_http,
            self.agent_grpc,
            self.runtime_env_agent,
            self.metrics_export,
        )


@attrs.frozen(kw_only=True)
class HeadPorts:
    """What a head listens on besides. ray and dashboard are written to ray_port.json and read from there ever after."""

    ray: int = RAY_PORT
    dashboard: int = DASHBOARD_PORT
    dashboard_grpc: int
    dashboard_metrics: int
    autoscaler_metrics: int
    client_server: int

    @classmethod
    def at(cls, base: int = FIXED_BASE, *, ray: int = RAY_PORT, dashboard: int = DASHBOARD_PORT) -> HeadPorts:
        first = base + _PER_NODE * MAX_NODES_ON_MACHINE
        return cls(
            ray=ray,
            dashboard=dashboard,
            dashboard_grpc=first,
            dashboard_metrics=first + 1,
            autoscaler_metrics=first + 2,
            client_server=first + 3,
        )

    def fixed(self) -> tuple[int, ...]:
        return (self.ray, self.dashboard, *self.inner())

    def inner(self) -> tuple[int, ...]:
        """Those that only this Ray itself needs to know."""
        return (self.dashboard_grpc, self.dashboard_metrics, self.autoscaler_metrics, self.client_server)


def next_free(wanted: int, taken: Collection[int]) -> int:
    """`wanted`, or the next port above that nobody listens on and that Ray does not want by default.

    For 6380 and 8266, which another user of the machine may hold. Raises PreflightError when there is none.
    """
    for port in range(wanted, 65536):
        if port not in taken and port not in RAY_DEFAULTS and port not in _RAY_WORKERS:
            return port
    raise PreflightError(f"no free port from {wanted} up", evidence=f"{len(taken)} ports are in use")


def free_base(taken: Collection[int], *, nodes_on_machine: int = 1) -> int:
    """The first base at which every fixed port, head's and nodes', of that many nodes on one machine is free.

    taken: what somebody listens on (NodeFacts.listening). ray and dashboard are not looked at: see next_free.
    Raises PreflightError when each base is taken.
    """
    busy = frozenset(taken)
    for base in _BASES:
        wanted = set(HeadPorts.at(base).inner())
        for rank in range(nodes_on_machine):
            wanted.update(NodePorts.for_rank(rank, base, nodes_on_machine=nodes_on_machine).fixed())
        if not wanted & busy:
            return base
    raise PreflightError(
        f"no free block of ports for Ray between {_BASES.start} and {_WORKERS.start}",
        evidence=", ".join(str(port) for port in sorted(busy) if _BASES.start <= port < _WORKERS.start),
        hint="end what listens there, or use another host",
    )
