"""Ends every process of this cluster on this node, with or without an agent. Never by a name."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import List, Set

from .config import AgentConfig, load_config
from .processes import Ended, Process, ancestors, carrying, end, own, with_descendants
from .protocol import TOKEN_VARIABLE

__all__ = ["cluster_processes", "end_cluster", "main"]


def _task_ids(config: AgentConfig) -> Set[str]:
    """Jobs that ran on this node, by the state that was kept of them."""
    found: Set[str] = set()
    for root in {config.root, *(node.root for node in config.nodes if node.ip == config.node_ip)}:
        path = os.path.join(root, ".sky", "jobs")
        if os.path.isdir(path):
            found.update(os.listdir(path))
    return found


def cluster_processes(config: AgentConfig, spare: Set[int]) -> List[Process]:
    """What runs of this cluster here, without `spare`: what carries its token or a job's name, and all below that."""
    processes = own()
    values = list(processes.values())
    pids = carrying(values, {TOKEN_VARIABLE: config.cluster_id})
    tasks = _task_ids(config)
    if tasks:
        pids |= {process.pid for process in values if _task_of(process.pid) in tasks}
    pids = with_descendants(processes, pids) - spare
    return [processes[pid] for pid in sorted(pids)]


def _task_of(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            entries = file.read().split(b"\0")
    except OSError:
        return ""
    for entry in entries:
        if entry.startswith(b"SKYPILOT_TASK_ID="):
            return entry.partition(b"=")[2].decode("utf-8", "replace")
    return ""


def end_cluster(config: AgentConfig, *, grace_s: float, spare: Set[int]) -> Ended:
    """TERM, grace, KILL; verified."""
    return end(lambda: cluster_processes(config, spare), grace_s=grace_s)


def main(config_path: str, *, grace_s: float = 5.0, after_s: float = 0.0, detach: bool = False) -> int:
    """Prints {"ended": [pid...], "survivors": [pid...]}; detached, it returns at once and goes on by itself."""
    config = load_config(config_path)
    if detach:
        if os.fork():
            return 0
        os.setsid()
        if os.fork():
            os._exit(0)
    time.sleep(after_s)
    me = os.getpid()
    spare = ancestors(own(), me)
    result = end_cluster(config, grace_s=grace_s, spare=spare)
    if not detach:
        sys.stdout.write(json.dumps({"ended": result.ended, "survivors": result.survivors}) + "\n")
        sys.stdout.flush()
    return 1 if result.survivors else 0
