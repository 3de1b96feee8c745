"""Records that tests put into stores, and hypothesis strategies for all that a record can be."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from skylib.models.cluster import AutostopRecord, ClusterRecord, ClusterStatus, NodeRecord
from skylib.models.frozen_map import FrozenMap
from skylib.models.job import FirstCause, JobRecord, JobStatus
from skylib.models.node import Gpu, HostAddress

__all__ = ["cluster_record", "cluster_records", "job_record", "job_records", "json_values", "node_record", "node_records"]


def node_record(rank: int = 0, **fields: Any) -> NodeRecord:
    values: dict[str, Any] = {
        "rank": rank,
        "host": f"host{rank}",
        "address": HostAddress(kind="ssh", host=f"192.0.2.{rank}", user="ann"),
        "internal_ip": f"10.0.0.{rank}",
        "root": "/home/ann",
        "temp_dir": "/tmp/ray_skypilot",
        "env": "/home/ann/skypilot-runtime",
        "python": "/home/ann/skypilot-runtime/bin/python",
        "cpus": 8,
        "memory_gib": 32.0,
        "gpus": (Gpu(index=0, name="A100", memory_gib=40.0),),
    }
    return NodeRecord(**{**values, **fields})


def cluster_record(name: str = "train", cluster_id: str | None = None, **fields: Any) -> ClusterRecord:
    values: dict[str, Any] = {
        "name": name,
        "cluster_id": cluster_id or f"{name}-1",
        "status": ClusterStatus.INIT,
        "status_since": 100.0,
        "infra": "ssh/lab",
        "num_nodes": 1,
        "launched_at": 100.0,
        "nodes": (node_record(),),
        "resources": {"cpus": "4+", "any_of": [{"infra": "ssh/lab"}, {"infra": "local"}]},
    }
    return ClusterRecord(**{**values, **fields})


def job_record(job_id: int = 1, status: JobStatus = JobStatus.RUNNING, **fields: Any) -> JobRecord:
    values: dict[str, Any] = {
        "cluster_name": "train",
        "job_id": job_id,
        "name": "echo",
        "status": status,
        "num_nodes": 1,
        "submitted_at": 200.0,
    }
    return JobRecord(**{**values, **fields})


_text = st.text(max_size=20)
_number = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | _number | _text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_text, inner, max_size=3),
    max_leaves=8,
)
_addresses = st.builds(
    HostAddress,
    kind=st.sampled_from(["ssh", "local"]),
    host=_text,
    user=st.none() | _text,
    port=st.none() | st.integers(1, 65535),
    identity_file=st.none() | _text,
    proxy_jump=st.none() | _text,
)
_gpus = st.builds(Gpu, index=st.integers(0, 15), name=_text, memory_gib=_number, uuid=_text)

node_records = st.builds(
    NodeRecord,
    rank=st.integers(0, 100),
    host=_text,
    address=_addresses,
    internal_ip=_text,
    root=_text,
    temp_dir=_text,
    env=_text,
    python=_text,
    cpus=st.integers(0, 1024),
    memory_gib=_number,
    gpus=st.lists(_gpus, max_size=3).map(tuple),
    price_per_hour=st.none() | _number,
    custom=st.dictionaries(_text, _number, max_size=2).map(FrozenMap),
    ray_node_id=_text,
)

cluster_records = st.builds(
    ClusterRecord,
    name=st.from_regex(r"[a-zA-Z][-_.a-zA-Z0-9]{0,20}[a-zA-Z0-9]", fullmatch=True),
    cluster_id=st.uuids().map(str),
    status=st.sampled_from(ClusterStatus),
    status_since=_number,
    infra=_text,
    num_nodes=st.integers(1, 100),
    launched_at=_number,
    nodes=st.lists(node_records, max_size=3).map(tuple),
    resources=st.dictionaries(_text, json_values, max_size=3),
    ray_port=st.integers(0, 65535),
    dashboard_port=st.integers(0, 65535),
    ray_version=_text,
    autostop=st.none() | st.builds(
        AutostopRecord,
        idle_minutes=st.integers(-1, 10**6),
        down=st.booleans(),
        wait_for=st.sampled_from(["jobs_and_ssh", "jobs", "none"]),
        hook=st.none() | _text,
        hook_timeout_s=st.none() | st.floats(1, 1e6),
    ),
    lease_s=st.none() | st.floats(10, 1e9),
    owner=_text,
    last_use=_text,
)

job_records = st.builds(
    JobRecord,
    cluster_name=_text,
    job_id=st.integers(1, 2**31),
    name=_text,
    status=st.sampled_from(JobStatus),
    num_nodes=st.integers(1, 100),
    submitted_at=_number,
    started_at=st.none() | _number,
    ended_at=st.none() | _number,
    exit_codes=st.lists(st.none() | st.integers(0, 255), max_size=4).map(tuple),
    cause=_text,
    waiting_for=_text,
    task_id=_text,
    user=_text,
    key=_text,
    log_dir=_text,
    resources=_text,
    signals=st.lists(st.none() | st.integers(1, 64), max_size=4).map(tuple),
    first_cause=st.none()
    | st.builds(
        FirstCause,
        rank=st.none() | st.integers(0, 100),
        node=_text,
        exit_code=st.none() | st.integers(0, 255),
        signal=st.none() | st.integers(1, 64),
        reason=st.sampled_from(["exit", "signal", "oom", "disk_full", "not_started", "lost", "timeout"]),
        last_lines=st.lists(_text, max_size=3).map(tuple),
    ),
    attempt=st.integers(0, 10),
)
