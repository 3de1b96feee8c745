"""Nodes of a cluster whose state was rebuilt elsewhere: they are told which home has it from now on, and given back the
files that they have lost.
"""

from __future__ import annotations

import json

from skylib.models.cluster import ClusterRecord, NodeRecord
from skylib.runtime.agent_bundle import build_bundle
from skylib.runtime.node_files import NodePlan, agent_config, cluster_mark, refusal, write_files
from skylib.runtime.teardown import layout_of
from skylib.transport.base import Transport
from skylib.transport.command import Command

__all__ = ["change_owner", "restore_files"]

TIMEOUT_S = 30.0

# Runs in the node's private environment; stdin: {"id", "paths", "changes"}. Under the lock that claims take, each mark is
# written beside and renamed, if it still is that cluster's. Prints how many are as wanted now.
_CHANGE = r"""
import fcntl, json, os, sys
os.umask(0o077)
given = json.load(sys.stdin.buffer)
done = 0
for path in given["paths"]:
    try:
        folder = os.open(os.path.dirname(path), os.O_RDONLY)
    except OSError:
        continue
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks
        try:
            with open(path, "rb") as file:
                mark = json.load(file)
        except (OSError, ValueError):
            continue
        if not isinstance(mark, dict) or mark.get("cluster_id") != given["id"]:
            continue
        if any(mark.get(name) != value for name, value in given["changes"].items()):
            beside = "%s.new%d" % (path, os.getpid())
            try:
                with open(beside, "w", encoding="utf-8") as file:
                    file.write(json.dumps({**mark, **given["changes"]}, indent=1))
                os.replace(beside, path)
            except OSError:
                os.unlink(beside)
                raise
        done += 1
    finally:
        os.close(folder)
print(done)
"""


def change_owner(transport: Transport, node: NodeRecord, cluster_id: str, *, owner: str, home: str) -> bool:
    """Whether the node's cluster.json, if it still is that cluster's, names this owner now; the temp dir's with it.

    Raises TransportError; CommandError when it cannot be written.
    """
    layout = layout_of(node)
    given = {
        "id": cluster_id,
        "paths": [layout.cluster_json, f"{layout.temp_dir}/cluster.json"],
        "changes": {"owner": owner, "home": home},
    }
    command = Command.of(node.python, "-S", "-E", "-c", _CHANGE)
    done = transport.run(command, stdin=json.dumps(given).encode(), timeout_s=TIMEOUT_S).check()
    return done.stdout.strip() not in (b"", b"0")


def restore_files(transport: Transport, node: NodeRecord, record: ClusterRecord, *, home: str, user: str) -> None:
    """Claim the account again, with the files that `down` and `start` need; what jobs wrote stays lost.

    Raises BringUpError when another cluster has the account by now; TransportError, StagingError.
    """
    bundle = build_bundle()
    plans = [_plan(each) for each in record.nodes]
    config = agent_config(
        plans[node.rank],
        plans,
        cluster=record.name,
        cluster_id=record.cluster_id,
        infra=record.infra,
        ray_port=record.ray_port,
        dashboard_port=record.dashboard_port,
        user=user,
        bundle_sha256=bundle.sha256,
        autostop=record.autostop,
        ray_start=None,
        lease_s=record.lease_s,
    )
    mark = cluster_mark(
        plans[node.rank],
        plans,
        cluster=record.name,
        cluster_id=record.cluster_id,
        infra=record.infra,
        owner=record.owner,
        home=home,
        ray_port=record.ray_port,
        dashboard_port=record.dashboard_port,
        ray_version=record.ray_version,
        launched_at=record.launched_at,
        resources=record.resources,
        autostop=record.autostop,
        lease_s=record.lease_s,
    )
    target = f"{layout_of(node).agent_dir}/{bundle.sha256}.pyz"
    command, stdin = write_files(plans[node.rank], config, mark, target)
    answer = transport.run(command, stdin=stdin, timeout_s=TIMEOUT_S)
    refused = refusal(answer, cluster=record.name)
    if refused is not None:
        raise refused
    if answer.check().stdout.strip() != b"have":
        transport.put(bundle.data, target)


def _plan(node: NodeRecord) -> NodePlan:
    layout = layout_of(node)
    return NodePlan(
        rank=node.rank,
        host=node.host,
        ip=node.internal_ip,
        layout=layout,
        python=node.python,
        ray=f"{layout.runtime_env}/bin/ray",
        cpus=node.cpus,
        memory_gib=node.memory_gib,
        gpus=node.gpus,
        runtime_digest=node.runtime_digest,
        address=node.address,
        price_per_hour=node.price_per_hour,
        custom=node.custom,
    )
