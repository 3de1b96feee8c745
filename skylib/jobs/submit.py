"""From a task to what the agent is asked to run (pure), and the asking."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import attrs

from skylib.agent.protocol import MAX_LINE_BYTES, OWN_KEY
from skylib.catalog.accelerators import accelerator_matches, accelerator_name
from skylib.errors import AgentReplyError, ClusterNotUp, InvalidSpecError
from skylib.jobs.columns import decode_jobs
from skylib.models.accelerators import Accelerator
from skylib.models.cluster import ClusterRecord
from skylib.models.job import JobRecord
from skylib.models.resources import Resources
from skylib.models.task import Task
from skylib.optimizer.fit import custom_name, fits_cluster
from skylib.runtime.agent_client import AgentClient

__all__ = ["Submitted", "demand_of", "job_spec", "key_for", "own_key", "setup_hash", "submit", "submit_many"]

LONGEST_KEY = 1000
_MARGIN_BYTES = 4096
DEFAULT_CPUS = 0.5  # SkyPilot's demand of a rank that names none


@attrs.frozen(kw_only=True)
class Submitted:
    """The agent's word that it has the job. adopted: the key was known; this is the job submitted with it before."""

    cluster_id: str
    job_id: int
    task_id: str
    adopted: bool = False


def own_key() -> str:
    """A key for a submission that the user gave none; never the same twice."""
    return f"{OWN_KEY}{uuid.uuid4().hex}"


def key_for(key: str | None) -> str:
    """The user's key as it is, or one of our own. Raises InvalidSpecError for what cannot be one."""
    if key is None:
        return own_key()
    unfit = not isinstance(key, str) or not key or key.startswith(OWN_KEY) or len(key) > LONGEST_KEY
    if unfit or any("\ud800" <= each <= "\udfff" for each in key):
        shown = f"{key!r:.80}" if isinstance(key, str) else type(key).__name__
        raise InvalidSpecError(
            f"a key is text of 1 to {LONGEST_KEY} characters that does not begin with {OWN_KEY!r}, not {shown}", field="key"
        )
    return key


def demand_of(resources: Resources, cluster: ClusterRecord, num_nodes: int = 1) -> dict[str, object]:
    """What one rank reserves on its node, by the first candidate that the cluster can serve.

    accelerators: by the name that the cluster's own devices have. Memory is at most what the smallest node has: a
    machine is sold with a little more than its kernel can give.
    """
    wanted = _candidate(resources, cluster, num_nodes)
    demand: dict[str, object] = {"CPU": wanted.cpus.value if wanted.cpus else DEFAULT_CPUS}
    if wanted.memory is not None and not wanted.memory.ratio:
        least = min((node.memory_gib for node in cluster.nodes if node.memory_gib), default=wanted.memory.value)
        demand["memory_gib"] = min(wanted.memory.value, least)
    accelerator = wanted.accelerator
    custom = [custom_name(node.custom, accelerator) for node in cluster.nodes] if accelerator is not None else []
    if accelerator is not None and any(custom):
        demand["custom"] = {next(name for name in custom if name): accelerator.count}
    elif accelerator is not None:
        demand["GPU"] = accelerator.count
        demand["accelerators"] = {_device_name(accelerator, cluster): accelerator.count}
    return demand


def _candidate(resources: Resources, cluster: ClusterRecord, num_nodes: int) -> Resources:
    """The first that the cluster can serve, else the first."""
    candidates = resources.candidates()
    if len(candidates) == 1:
        return candidates[0]
    return next((each for each in candidates if not fits_cluster(cluster, each, num_nodes)), candidates[0])


def _device_name(wanted: Accelerator, cluster: ClusterRecord) -> str:
    """What the cluster calls the devices that are meant; the wanted name itself when it has none of them."""
    for node in cluster.nodes:
        for gpu in node.gpus:
            if accelerator_matches(wanted, gpu):
                return accelerator_name(gpu.name, gpu.memory_gib)
    return wanted.name or str(wanted)


def setup_hash(task: Task, *, files_digest: str, runtime_digest: str) -> str:
    """Equal when running setup again would do the same: script, variables, files and environment are unchanged."""
    if not task.setup:
        return ""
    facts = {
        "setup": task.setup,
        "envs": dict(task.envs),
        "secrets": hashlib.sha256(repr(sorted(_revealed(task.secrets).items())).encode()).hexdigest(),
        "files": files_digest,
        "runtime": runtime_digest,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def job_spec(
    task: Task,
    cluster: ClusterRecord,
    *,
    user: str,
    key: str | None = None,
    setup: bool = True,
    setup_digest: str = "",
    skip_setup_if_done: bool = False,
    client: str = "",
) -> dict[str, object]:
    """The agent's JobSpec (agent/protocol.py). setup: False leaves it out, as `exec` does. client: whose its outputs are.

    Local directories of outputs are made absolute from the current directory.
    """
    cloud, _, region = cluster.infra.partition("/")
    recovery = _candidate(task.resources, cluster, task.num_nodes).job_recovery
    wanted = {pattern: os.path.abspath(os.path.expanduser(local)) for pattern, local in task.fetched_outputs.items()}
    return {
        "name": task.name or "",
        "run": task.run or "",
        "setup": (task.setup or "") if setup else "",
        "num_nodes": task.num_nodes,
        "demand": demand_of(task.resources, cluster, task.num_nodes),
        "envs": dict(task.envs),
        "secrets": _revealed(task.secrets),
        "key": key or own_key(),
        "submission": uuid.uuid4().hex,
        "setup_hash": setup_digest if setup else "",
        "skip_setup_if_done": skip_setup_if_done,
        "setup_all_nodes": setup,
        "user": user,
        "cluster_info": {"cluster_name": cluster.name, "cloud": cloud, "region": region or cloud, "zone": None},
        "timeout_s": task.timeout_s,
        "max_retries": recovery.max_restarts_on_errors if recovery else 0,
        "retry_exit_codes": list(recovery.recover_on_exit_codes) if recovery else [],
        **({"outputs": {"wanted": wanted, "client": client}} if wanted else {}),
    }


def submit(agent: AgentClient, spec: Mapping[str, object], cluster: ClusterRecord) -> Submitted:
    """Put the job into the queue. Raises InvalidSpecError when the cluster can never run it, ClusterNotUp when it stops."""
    try:
        answer: dict[str, Any] = agent.call("submit", repeatable=True, job=dict(spec))
    except AgentReplyError as error:
        _refuse(error, cluster, "this job", {"field": "resources"})
    return _submitted(answer, spec, cluster)


def submit_many(
    agent: AgentClient, specs: Sequence[Mapping[str, object]], cluster: ClusterRecord
) -> tuple[list[Submitted], list[JobRecord]]:
    """Put all into the queue in one round trip, or none; what became of each, and the records of the jobs.

    Raises InvalidSpecError with `index` when the cluster can never run one of them, ClusterNotUp when it stops.
    """
    size = len(json.dumps(specs))
    if size > MAX_LINE_BYTES - _MARGIN_BYTES:
        raise InvalidSpecError(
            f"{len(specs)} jobs of {size >> 20} MiB together are too large for one call",
            field="tasks",
            hint=f"submit them in parts of at most {MAX_LINE_BYTES >> 20} MiB, or put what they share into the workdir",
        )
    try:
        answer: dict[str, Any] = agent.call("submit_many", repeatable=True, jobs=[dict(spec) for spec in specs])
    except AgentReplyError as error:
        index = getattr(error, "index", None)
        facts = {} if index is None else {"field": f"tasks[{index}].resources", "index": index}
        _refuse(error, cluster, f"tasks[{index}]", facts)
    submitted = [_submitted(each, spec, cluster) for each, spec in zip(answer["jobs"], specs, strict=True)]
    return submitted, decode_jobs(cluster.name, answer) if "columns" in answer else []


def _refuse(error: AgentReplyError, cluster: ClusterRecord, what: str, facts: Mapping[str, object]) -> NoReturn:
    if error.kind == "impossible":
        words = f"cluster {cluster.name!r} can never run {what}: {error.message}"
        raise InvalidSpecError(words, cluster=cluster.name, **facts) from error
    if error.kind == "stopping":
        raise ClusterNotUp(
            f"cluster {cluster.name!r} is stopping",
            cluster=cluster.name,
            status="AUTOSTOPPING",
            hint=f"client.start({cluster.name!r}) when it has stopped",
        ) from error
    raise error


def _submitted(answer: Mapping[str, Any], spec: Mapping[str, object], cluster: ClusterRecord) -> Submitted:
    return Submitted(
        cluster_id=cluster.cluster_id,
        job_id=answer["job_id"],
        task_id=answer.get("task_id", ""),
        adopted=bool(answer.get("adopted")) and not str(spec.get("key") or "").startswith(OWN_KEY),
    )


def _revealed(secrets: Mapping[str, object]) -> dict[str, str]:
    return {name: value.reveal() if hasattr(value, "reveal") else str(value) for name, value in secrets.items()}
