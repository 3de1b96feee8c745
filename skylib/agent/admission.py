"""What becomes of a JobSpec that is submitted: checked, and turned into a row of jobs.db. Pure."""

from __future__ import annotations

import json
from typing import Any, Dict, Mapping, Tuple

from .config import AgentConfig
from .job import demand_of, describe_demand, time_stamp
from .refused import Refused
from .scheduler import Demand, impossible

__all__ = ["Admission"]

_UNSET: Dict[str, Any] = {
    "start_at": None,
    "end_at": None,
    "log_dir": "",
    "exit_codes": "",
    "task_id": "",
    "cause": "",
    "placement": "",
    "phase": "",
    "launched": 0,
    "details": "",
}


class Admission:
    """The rows of one request. Jobs that ask for the same share what was found out about it: there may be thousands."""

    def __init__(self, config: AgentConfig, now: float) -> None:
        self._config = config
        self._now = now
        self._stamp = time_stamp(now)
        self._known: Dict[Tuple[int, str], Tuple[Demand, str, str]] = {}

    def row(self, spec: Mapping[str, Any]) -> Tuple[Dict[str, Any], Demand]:
        """Columns of the new job, and what each of its ranks needs. Raises Refused "invalid", "impossible"."""
        if not isinstance(spec, dict):
            raise Refused("invalid", "a job is a mapping")
        secrets = spec.get("secrets") or {}
        if not isinstance(secrets, dict):
            raise Refused("invalid", "secrets is not a mapping")
        num_nodes = _whole(spec.get("num_nodes") or 1, "num_nodes")
        demand, why, resources = self._demand(num_nodes, spec)
        if why:
            raise Refused("impossible", why)
        return {
            **_UNSET,
            "job_name": str(spec.get("name") or ""),
            "username": str(spec.get("user") or self._config.user),
            "submitted_at": self._now,
            "status": "PENDING",
            "run_timestamp": self._stamp,
            "resources": resources,
            "details": json.dumps({"outputs": _outputs(spec)}) if spec.get("outputs") else "",
            "num_nodes": num_nodes,
            "job_key": spec.get("key") or None,
            "spec": json.dumps({**_checked(spec), "has_secrets": bool(secrets)}),
        }, demand

    def _demand(self, num_nodes: int, spec: Mapping[str, Any]) -> Tuple[Demand, str, str]:
        """(demand, why the cluster can never give it, how it is shown)."""
        wanted = spec.get("demand") or {}
        known = (num_nodes, repr(wanted))
        if known not in self._known:
            try:
                demand = demand_of(spec)
                shown = describe_demand(num_nodes, wanted)
            except (ValueError, TypeError, AttributeError) as exc:
                raise Refused("invalid", f"demand: {exc}") from exc
            self._known[known] = (demand, impossible(self._config.nodes, num_nodes, demand), shown)
        return self._known[known]


def _whole(value: Any, name: str) -> int:
    try:
        return int(value)
    except (TypeError, ValueError) as exc:
        raise Refused("invalid", f"{name}: {exc}") from exc


def _outputs(spec: Mapping[str, Any]) -> Dict[str, Any]:
    outputs = spec["outputs"]
    wanted = outputs.get("wanted") if isinstance(outputs, dict) else None
    if not isinstance(wanted, dict) or not all(isinstance(local, str) for local in wanted.values()):
        raise Refused("invalid", "outputs is no mapping with patterns and directories")
    return {"wanted": wanted, "client": str(outputs.get("client") or "")}


def _checked(spec: Mapping[str, Any]) -> Dict[str, Any]:
    """The specification as it is kept: without secrets, and with nothing that fails when the job is to start."""
    kept = {name: value for name, value in spec.items() if name not in ("secrets", "outputs")}
    timeout_s = spec.get("timeout_s")
    if timeout_s is not None and not (isinstance(timeout_s, (int, float)) and 0 < timeout_s < float("inf")):
        raise Refused("invalid", f"timeout_s is {timeout_s!r}, not a number of seconds")
    retries = _whole(spec.get("max_retries") or 0, "max_retries")
    if retries < 0:
        raise Refused("invalid", f"max_retries is {retries}")
    codes = spec.get("retry_exit_codes") or []
    if not isinstance(codes, list) or not all(isinstance(code, int) for code in codes):
        raise Refused("invalid", "retry_exit_codes is not a list of numbers")
    return kept
