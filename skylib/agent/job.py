"""A job as the agent knows it: small, since there may be ten thousand."""

from __future__ import annotations

import json
import math
import re
import time
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from .config import AgentConfig, NodeConfig
from .protocol import TERMINAL
from .scheduler import Demand, Placement, Rank, parse_demand

__all__ = [
    "Job",
    "bundle_of",
    "demand_of",
    "describe_demand",
    "format_codes",
    "format_placement",
    "log_dir_name",
    "run_environment",
    "setup_environment",
    "task_id_of",
    "time_stamp",
]


class Job:
    """status, exit_codes, cause, ... are written to jobs.db before anyone is told of them."""

    __slots__ = (
        "attempt",
        "cause",
        "demand",
        "ended_at",
        "exit_codes",
        "first_cause",
        "job_id",
        "key",
        "launched",
        "log_dir",
        "name",
        "num_nodes",
        "outputs",
        "phase",
        "placement",
        "resources",
        "run_at",
        "signals",
        "started_at",
        "status",
        "submitted_at",
        "task_id",
        "user",
        "waiting_for",
    )

    def __init__(self, row: Mapping[str, Any], demand: Demand) -> None:
        self.job_id: int = row["job_id"]
        self.name: str = row["job_name"] or ""
        self.user: str = row["username"] or ""
        self.status: str = row["status"]
        self.submitted_at: float = row["submitted_at"]
        self.started_at: Optional[float] = row["start_at"]
        self.ended_at: Optional[float] = row["end_at"]
        self.resources: str = row["resources"] or ""
        self.num_nodes: int = row["num_nodes"]
        self.key: str = row["job_key"] or ""
        self.task_id: str = row["task_id"] or ""
        self.log_dir: str = row["log_dir"] or ""
        self.cause: str = row["cause"] or ""
        self.phase: str = row["phase"] or ""
        self.launched: bool = bool(row["launched"])
        self.exit_codes: List[Optional[int]] = parse_codes(row["exit_codes"])
        self.placement: Placement = parse_placement(row["placement"])
        details = json.loads(row.get("details") or "{}")
        self.signals: List[Optional[int]] = details.get("signals") or []
        if not self.exit_codes:  # as a text, the code of one rank that nobody knows is the same as none at all
            self.exit_codes = [None] * len(self.signals)
        self.first_cause: Optional[Dict[str, Any]] = details.get("first_cause")
        self.attempt: int = details.get("attempt") or 0
        self.run_at: Optional[float] = details.get("run_at")
        self.outputs: Optional[Dict[str, Any]] = details.get("outputs")
        self.demand = demand
        self.waiting_for = ""  # once it has left the queue, and until it begins

    @property
    def is_terminal(self) -> bool:
        return self.status in TERMINAL

    def details(self, **changed: Any) -> str:
        """The column `details` of jobs.db: what a job is known by beside its status and exit codes.

        run_at: when its attempt's run began, which is what its timeout counts from. changed: what is not in the job yet.
        """
        names = ("signals", "first_cause", "attempt", "run_at", "outputs")
        found = {name: getattr(self, name) for name in names}
        return json.dumps({**found, **changed})

    def show_outputs(self) -> Optional[Dict[str, Any]]:
        """What the task wants home, and on which nodes; None for nothing."""
        return {**self.outputs, "nodes": [rank.node for rank in self.placement]} if self.outputs else None

    def show(self, waiting_for: str = "") -> Dict[str, Any]:
        """The protocol's Job. waiting_for: while it is in the queue."""
        return {
            "job_id": self.job_id,
            "name": self.name,
            "status": self.status,
            "num_nodes": self.num_nodes,
            "submitted_at": self.submitted_at,
            "started_at": self.started_at,
            "ended_at": self.ended_at,
            "exit_codes": list(self.exit_codes),
            "cause": self.cause,
            "waiting_for": "" if self.is_terminal else waiting_for or self.waiting_for,
            "task_id": self.task_id,
            "user": self.user,
            "key": self.key,
            "log_dir": self.log_dir,
            "resources": self.resources,
            "signals": list(self.signals),
            "first_cause": self.first_cause,
            "attempt": self.attempt,
            "outputs": self.show_outputs(),
        }


def parse_codes(text: Optional[str]) -> List[Optional[int]]:
    return [int(code) if code else None for code in text.split(",")] if text else []


def format_codes(codes: Sequence[Optional[int]]) -> str:
    """Exit codes by rank as jobs.db keeps them: "0,,137", empty for a rank that has not ended."""
    return ",".join("" if code is None else str(code) for code in codes)


def parse_placement(text: Optional[str]) -> Placement:
    return tuple(Rank(node, tuple((index, share) for index, share in devices)) for node, devices in json.loads(text or "[]"))


def format_placement(placement: Placement) -> str:
    """As jobs.db keeps it."""
    return json.dumps([[rank.node, rank.devices] for rank in placement])


def demand_of(spec: Mapping[str, Any]) -> Demand:
    """What each rank of a JobSpec needs. Raises ValueError."""
    return parse_demand(spec.get("demand") or {})


def task_id_of(stamp: str, cluster: str, job_id: int) -> str:
    """SkyPilot's form. stamp: from `time_stamp`."""
    return f"sky-{stamp}_{cluster}_{job_id}"


def time_stamp(now: float) -> str:
    """SkyPilot's form of a time, local, to the microsecond."""
    whole = int(now)
    return time.strftime("%Y-%m-%d-%H-%M-%S", time.localtime(whole)) + f"-{int((now - whole) * 1e6):06d}"


def log_dir_name(job_id: int, name: str) -> str:
    """Name of the job's log directory on every node: whatever the job is called, one plain word."""
    return f"{job_id}-{re.sub(r'[^A-Za-z0-9._-]', '_', name)[:80] or '-'}"


def describe_demand(num_nodes: int, demand: Mapping[str, Any]) -> str:
    """As SkyPilot shows resources: "2x[CPU:0.5, A100:8]"."""
    parts = [f"CPU:{demand.get('CPU', 0.5):g}"]
    accelerators = demand.get("accelerators") or ({"GPU": demand["GPU"]} if demand.get("GPU") else {})
    parts += [f"{name}:{float(count):g}" for name, count in (*accelerators.items(), *(demand.get("custom") or {}).items())]
    return f"{num_nodes}x[{', '.join(parts)}]"


def _common(config: AgentConfig, job: Job, spec: Mapping[str, Any]) -> Dict[str, str]:
    info = {"cluster_name": config.cluster, "cloud": config.infra.partition("/")[0], "region": None, "zone": None}
    info.update({"region": config.infra.partition("/")[2] or None})
    info.update(spec.get("cluster_info") or {})
    return {
        "SKYPILOT_TASK_ID": job.task_id,
        "SKYPILOT_CLUSTER_INFO": json.dumps(info),
        "SKYPILOT_USER": job.user or config.user,
        "SKYPILOT_NUM_NODES": str(job.num_nodes),
    }


def setup_environment(
    config: AgentConfig,
    job: Job,
    spec: Mapping[str, Any],
    secrets: Mapping[str, str],
    nodes: Sequence[NodeConfig],
    rank: int,
) -> Dict[str, str]:
    """Variables of setup on nodes[rank]."""
    return {
        **{str(name): str(value) for name, value in (spec.get("envs") or {}).items()},
        **secrets,
        **_common(config, job, spec),
        "SKYPILOT_SETUP_NODE_IPS": "\n".join(node.ip for node in nodes),
        "SKYPILOT_SETUP_NODE_RANK": str(rank),
        "SKYPILOT_SETUP_NUM_GPUS_PER_NODE": str(job.demand.gpus_per_node),
    }


def run_environment(
    config: AgentConfig, job: Job, spec: Mapping[str, Any], secrets: Mapping[str, str], rank: int
) -> Dict[str, str]:
    """Variables of run in this rank of the job."""
    variables = {
        **{str(name): str(value) for name, value in (spec.get("envs") or {}).items()},
        **secrets,
        **_common(config, job, spec),
        "SKYPILOT_NODE_IPS": "\n".join(config.nodes[place.node].ip for place in job.placement),
        "SKYPILOT_NODE_RANK": str(rank),
        "SKYPILOT_NUM_GPUS_PER_NODE": str(job.demand.gpus_per_node),
        "SKYPILOT_INTERNAL_JOB_ID": str(job.job_id),
    }
    devices: Tuple[Tuple[int, float], ...] = job.placement[rank].devices
    if devices:
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(str(index) for index, _ in devices)
    return variables


def bundle_of(config: AgentConfig, node: int, demand: Demand, there: Mapping[str, float]) -> Dict[str, float]:
    """What Ray reserves for one rank, of the resources that its node has there."""
    models = {name.lower(): name for name in there}
    bundle = {f"skylib_rank_{node}": 0.001, "CPU": min(demand.cpus, there.get("CPU", 0.0))}
    gpus = sum(math.ceil(count * 1000 - 1e-6) / 1000 for _, count in demand.gpus)
    bundle["GPU"] = min(gpus, there.get("GPU", 0.0))
    for name, count in (*demand.gpus, *demand.custom):
        if name and name.lower() in models:
            bundle[models[name.lower()]] = min(count, there[models[name.lower()]])
    return {name: amount for name, amount in bundle.items() if amount > 0}
