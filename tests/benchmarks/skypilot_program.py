"""Run by the Python of SkyPilot's own environment: fills its store through its own functions, reads and writes it.

`python skypilot_program.py CLUSTERS NODES HISTORY`, with $HOME a folder of its own. Says one JSON line when it is ready;
then each line on stdin is a task ("read", "settle SECONDS"), answered by one JSON line. Not imported by any test.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import time
import uuid
from pathlib import Path

_begun = time.perf_counter()
import sky  # noqa: E402  # type: ignore
from sky import global_user_state as state  # noqa: E402  # type: ignore
from sky.backends import cloud_vm_ray_backend  # noqa: E402  # type: ignore
from sky.provision import common  # noqa: E402  # type: ignore
from sky.utils import status_lib  # noqa: E402  # type: ignore

_IMPORTED_S = time.perf_counter() - _begun


def _fill(clusters: int, nodes: int, history: int) -> None:
    resources = sky.Resources(infra="ssh/lab", cpus="4+")
    for number in range(clusters):
        name = f"c{number}"
        instances = {
            f"{name}-{rank}": [
                common.InstanceInfo(
                    instance_id=f"{name}-{rank}", internal_ip=f"10.0.{rank}.1", external_ip=f"192.0.2.{rank}", tags={}
                )
            ]
            for rank in range(nodes)
        }
        handle = cloud_vm_ray_backend.CloudVmRayResourceHandle(
            cluster_name=name,
            cluster_name_on_cloud=f"{name}-ann",
            cluster_yaml=None,
            launched_nodes=nodes,
            launched_resources=resources,
            stable_internal_external_ips=[(f"10.0.{rank}.1", f"192.0.2.{rank}") for rank in range(nodes)],
            stable_ssh_ports=[22] * nodes,
            cluster_info=common.ClusterInfo(
                instances=instances, head_instance_id=f"{name}-0", provider_name="ssh", ssh_user="ann"
            ),
        )
        state.add_or_update_cluster(name, handle, {resources}, ready=False)
        state.add_or_update_cluster(name, handle, {resources}, ready=True, is_launch=False)
        state.add_cluster_event(
            name, status_lib.ClusterStatus.UP, "all nodes are up", state.ClusterEventType.STATUS_CHANGE
        )
    # Lives that are over differ in their key alone: written one by one they would take a quarter of an hour.
    connection = sqlite3.connect(Path.home() / ".sky" / "state.db")
    columns = [row[1] for row in connection.execute("PRAGMA table_info(cluster_history)") if row[1] != "cluster_hash"]
    names = ", ".join(columns)
    row = connection.execute(f"SELECT {names} FROM cluster_history LIMIT 1").fetchone()
    connection.executemany(
        f"INSERT INTO cluster_history (cluster_hash, {names}) VALUES ({', '.join('?' * (len(columns) + 1))})",
        [(str(uuid.uuid4()), *row) for _ in range(history)],
    )
    connection.commit()
    connection.close()


def _read() -> dict[str, float]:
    begun = time.perf_counter()
    found = state.get_clusters()
    whole = time.perf_counter() - begun
    begun = time.perf_counter()
    state.get_clusters(summary_response=True)
    return {"clusters": len(found), "whole_s": whole, "summary_s": time.perf_counter() - begun}


def _settle(seconds: float) -> dict[str, float]:
    """A cluster's status and the event of it, again and again: as its refresh does."""
    count, until = 0, time.perf_counter() + seconds
    failed = 0
    while time.perf_counter() < until:
        status = (status_lib.ClusterStatus.STOPPED, status_lib.ClusterStatus.UP)[count % 2]
        try:
            state.set_cluster_status("c1", status)
            state.add_cluster_event("c1", status, f"change {count}", state.ClusterEventType.STATUS_CHANGE)
        except Exception as error:
            failed += 1
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        count += 1
    return {"changes": count - failed, "failed": failed}


def _main() -> None:
    clusters, nodes, history = (int(word) for word in sys.argv[1:4])
    done = Path.home() / "filled"
    if not done.exists():
        _fill(clusters, nodes, history)
        done.touch()
    begun = time.perf_counter()
    state.get_clusters()
    print(json.dumps({"imported_s": _IMPORTED_S, "first_s": time.perf_counter() - begun}), flush=True)
    for line in sys.stdin:
        word, *numbers = line.split()
        answer = _read() if word == "read" else _settle(float(numbers[0]))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _main()
