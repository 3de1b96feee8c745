"""Ends every process of this cluster on this node, with or without an agent. Never by a name."""

from __future__ import annotations

import glob
import json
import os
import sys
import time
from typing import List, Set, Tuple

from .cgroups import remove
from .config import AgentConfig, load_config
from .hold import wait_for_ends
from .identity import boot_id
from .processes import Ended, Process, ancestors, carrying, end, own, read, with_descendants
from .protocol import TOKEN_VARIABLE
from .sockets import listening_ports, ports_of
from .supervisor import ENDED, write_file
from .tree import left_behind, read_json, still_there

__all__ = ["end_cluster", "main"]

_AGENT_GRACE_S = 2.0
_RAY_GRACE_S = 0.4


def _roots(config: AgentConfig) -> Set[str]:
    """Of this node, and of those that share its machine."""
    return {config.root, *(node.root for node in config.nodes if node.ip == config.node_ip)}


def _task_ids(config: AgentConfig) -> Set[str]:
    """Jobs that ran on this machine, by the state that was kept of them."""
    found: Set[str] = set()
    for root in _roots(config):
        path = os.path.join(root, ".sky", "jobs")
        if os.path.isdir(path):
            found.update(os.listdir(path))
    return found


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


def _left_behind(config: AgentConfig) -> Set[Tuple[int, int]]:
    """(pid, start) of those that jobs on this machine left behind when they ended, whatever they have shed."""
    boot = boot_id()
    found: Set[Tuple[int, int]] = set()
    for root in _roots(config):
        for path in glob.glob(os.path.join(glob.escape(root), ".sky", "jobs", "*", "*", "left")):
            rank = os.path.dirname(path)
            if (read_json(os.path.join(rank, "pids")) or {}).get("boot") == boot:
                found |= left_behind(rank)
    return found


def _find(config: AgentConfig, spare: Set[int], left: Set[Tuple[int, int]], *, jobs_only: bool) -> List[Process]:
    processes = own()
    tasks = _task_ids(config)
    pids = {process.pid for process in processes.values() if _task_of(process.pid) in tasks} if tasks else set()
    pids |= still_there(processes, left)
    if not jobs_only:
        pids |= carrying(processes.values(), {TOKEN_VARIABLE: config.cluster_id})
    return [processes[pid] for pid in sorted(with_descendants(processes, pids) - spare)]


def _mark(config: AgentConfig) -> None:
    """Ranks that have not ended are about to be ended: an agent that comes later knows that it was not by themselves."""
    record = json.dumps({"lost": "the cluster was ended while it ran", "at": time.time()}).encode()
    for root in _roots(config):
        for path in glob.glob(os.path.join(glob.escape(root), ".sky", "jobs", "*", "*", "")):  # directories alone
            try:
                if not os.path.exists(os.path.join(path, "exit")):
                    write_file(os.path.join(path, ENDED), record)
            except OSError as exc:  # a full disk keeps no cluster from its end
                sys.stderr.write(f"{path}: {exc}\n")


def _agents(config: AgentConfig, spare: Set[int]) -> List[Process]:
    """The agents that hold the locks of this cluster's nodes on this machine, and their guardians."""
    found = []
    for root in _roots(config):
        try:
            with open(os.path.join(root, ".sky", "agent.lock"), "rb") as file:
                holder = json.loads(file.read().decode())
            known = [holder.get("guardian") or (0, 0), (holder["pid"], holder["start"])]
            if holder["cluster_id"] != config.cluster_id:
                continue
        except (OSError, ValueError, KeyError):
            continue
        for pid, start in known:  # the guardian first: it would begin another one
            process = read(int(pid))
            if process is not None and process.start == start and process.state not in "ZX" and process.pid not in spare:
                found.append(process)
    return found


def _remove_groups(config: AgentConfig) -> None:
    """Control groups that ranks had of their own."""
    for root in _roots(config):
        for path in glob.glob(os.path.join(glob.escape(root), ".sky", "jobs", "*", "*", "pids")):
            group = (read_json(path) or {}).get("cgroup")
            if group:
                remove(str(group))


def end_cluster(config: AgentConfig, *, grace_s: float, spare: Set[int]) -> Ended:
    """TERM, grace, KILL; verified. The agents first, so that nothing is begun anew; then jobs; then all the rest.

    Only jobs have something to lose and get the whole grace: Ray's GCS and monitor are deaf to TERM.
    """
    _mark(config)
    steps = [end(lambda: _agents(config, spare), grace_s=min(grace_s, _AGENT_GRACE_S))]
    left = _left_behind(config)
    steps.append(end(lambda: _find(config, spare, left, jobs_only=True), grace_s=grace_s))
    left = _left_behind(config)  # supervisors that ended just now have written theirs down
    steps.append(end(lambda: _find(config, spare, left, jobs_only=False), grace_s=min(grace_s, _RAY_GRACE_S)))
    _remove_groups(config)
    ended = {pid for step in steps for pid in step.ended}
    return Ended(sorted(ended), steps[-1].survivors)


def main(config_path: str, *, grace_s: float = 5.0, after_s: float = 0.0, detach: bool = False, cluster_id: str = "") -> int:
    """Prints {"ended": [pid...], "survivors": [pid...], "ports_closed": [port...]}; 1 when there are survivors.

    Detached, it prints nothing, returns at once and goes on by itself. cluster_id: the only one that may be ended; when
    the configuration is another cluster's, nothing is touched and {} is printed.
    """
    wait_for_ends(config_path)
    config = load_config(config_path)
    if cluster_id and config.cluster_id != cluster_id:
        sys.stdout.write("" if detach else "{}\n")
        return 0
    if detach:
        if os.fork():
            return 0
        os.setsid()
        if os.fork():
            os._exit(0)
    time.sleep(after_s)
    me = os.getpid()
    spare = ancestors(own(), me)
    ports = ports_of(process.pid for process in _find(config, spare, _left_behind(config), jobs_only=False))
    result = end_cluster(config, grace_s=grace_s, spare=spare)
    if not detach:
        closed = sorted(ports - set(listening_ports().values()))
        sys.stdout.write(json.dumps({**result._asdict(), "ports_closed": closed}) + "\n")
        sys.stdout.flush()
    return 1 if result.survivors else 0
