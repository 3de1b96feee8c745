"""The small files that a node gets before Ray starts: SkyPilot's three, the cluster's mark, the agent's configuration."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from skylib import __version__
from skylib.agent.protocol import PROTOCOL
from skylib.catalog.accelerators import accelerator_name
from skylib.errors import BringUpError
from skylib.models.cluster import AutostopRecord
from skylib.models.frozen_map import FrozenMap
from skylib.models.mark import ClusterMark, MarkMember
from skylib.models.node import Gpu, HostAddress
from skylib.runtime.layout import NodeLayout
from skylib.transport.base import Completed
from skylib.transport.command import Command

__all__ = ["FOREIGN", "NOT_OURS", "REFUSALS", "NodePlan", "agent_config", "cluster_mark", "refusal", "write_files"]

FOREIGN = 83  # what the writing exits with when another cluster's mark stands; it is the line printed
REFUSALS = frozenset({"runtime.claim", "runtime.temp_dir"})  # steps of `refusal`: nothing of ours stands on that host then
NOT_OURS = 84  # when the temp dir belongs to somebody else; the line printed says so

# Runs in the node's private environment; stdin: {"root", "temp_dir", "id", "mark", "marks": [root's, temp dir's], "files",
# "bundle"}. The marks are the claim on the account: made by link(2), which one of two that come together wins, replaced
# only when they are this cluster's own, cannot be read, or (the temp dir's) when no root that they list has the same one.
# A claim that is refused leaves nothing behind. A temp dir that this cluster had before and has no more is removed.
# Prints "have" or "need" for the bundle.
_WRITE = r"""
import fcntl, json, os, shutil, stat, sys
os.umask(0o077)
given = json.load(sys.stdin.buffer)
made = []

def refuse(code, facts):
    for path in made:
        os.unlink(path)
    for folder in (given["root"] + "/.sky", given["root"], given["temp_dir"]):
        try:
            os.rmdir(folder)
        except OSError:
            pass
    print(json.dumps(facts))
    sys.exit(code)

def mark_at(path):
    try:
        with open(path, "rb") as file:
            found = json.load(file)
        return found if isinstance(found, dict) else {}
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}

def stands(mark):
    for member in mark.get("members") or ():
        there = mark_at("%s/.sky/cluster.json" % member.get("root"))
        if there and there.get("cluster_id") == mark.get("cluster_id"):
            return True
    return False

def beside(path, text):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    name = "%s.new%d" % (path, os.getpid())
    with open(name, "w", encoding="utf-8") as file:
        file.write(text)
    return name

def claim(path, in_temp):
    new = beside(path, given["mark"])
    folder = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks: link alone decides
        try:
            os.link(new, path)
            os.unlink(new)
            made.append(path)
            return
        except FileExistsError:
            pass
        except OSError:  # a file system without links: the lock alone decides
            if mark_at(path) is None:
                made.append(path)
        there = mark_at(path) or {}
        other = there.get("cluster_id")
        if other not in (None, given["id"]) and (not in_temp or stands(there)):
            os.unlink(new)
            refuse(83, {"path": path, "cluster": there.get("cluster"), "home": there.get("home")})
        os.replace(new, path)
    finally:
        os.close(folder)

os.makedirs(given["root"] + "/.sky", exist_ok=True)
temp = given["temp_dir"]
try:
    os.makedirs(temp, exist_ok=True)
except FileExistsError:
    pass
found = os.lstat(temp)
if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
    refuse(84, {"path": temp, "uid": found.st_uid, "directory": stat.S_ISDIR(found.st_mode)})
claim(given["marks"][0], False)
claim(given["marks"][1], True)
before = mark_at(given["root"] + "/.sky/agent.json") or {}
old = before.get("temp_dir")
if old and old != temp and before.get("cluster_id") == given["id"]:
    there = mark_at(old + "/cluster.json") or {}
    if there.get("cluster_id") == given["id"] and os.lstat(old).st_uid == os.getuid():
        shutil.rmtree(old, ignore_errors=True)
for path, text in given["files"].items():
    os.replace(beside(path, text), path)
bundle = given["bundle"]
folder, name = os.path.split(bundle)
os.makedirs(folder, exist_ok=True)
link = "%s/current.new%d" % (folder, os.getpid())
os.symlink(name, link)
os.replace(link, folder + "/current.pyz")
print("have" if os.path.exists(bundle) and os.path.getsize(bundle) else "need")
"""


@attrs.frozen(kw_only=True)
class NodePlan:
    """What bring-up knows of one node before it acts."""

    rank: int
    host: str
    ip: str
    layout: NodeLayout
    python: str
    ray: str
    cpus: int
    memory_gib: float
    gpus: tuple[Gpu, ...] = ()
    runtime_digest: str = ""
    address: HostAddress | None = None
    price_per_hour: float | None = None
    custom: FrozenMap[str, float] = attrs.field(factory=FrozenMap)


def agent_config(
    node: NodePlan,
    nodes: Sequence[NodePlan],
    *,
    cluster: str,
    cluster_id: str,
    ray_port: int,
    dashboard_port: int,
    infra: str,
    user: str,
    bundle_sha256: str,
    autostop: AutostopRecord | None,
    ray_start: Command | None = None,
    lease_s: float | None = None,
    node_lost_s: float | None = None,
) -> dict[str, object]:
    """The content of agent.json. ray_start: what starts this node's Ray, for its agent to repeat; None: never.

    `standing` is another one whenever the cluster is brought up: agents know a beginning from a restart of theirs by it.
    """
    return {
        "protocol": PROTOCOL,
        "cluster": cluster,
        "cluster_id": cluster_id,
        "rank": node.rank,
        "role": "head" if node.rank == 0 else "worker",
        "root": node.layout.root,
        "temp_dir": node.layout.temp_dir,
        "env": node.layout.runtime_env,
        "socket": node.layout.agent_socket,
        "ray_port": ray_port,
        "dashboard_port": dashboard_port,
        "head_ip": nodes[0].ip,
        "node_ip": node.ip,
        "infra": infra,
        "user": user,
        "bundle": bundle_sha256,
        "nodes": [
            {
                "rank": each.rank,
                "host": each.host,
                "ip": each.ip,
                "root": each.layout.root,
                "cpus": each.cpus,
                "memory_gib": each.memory_gib,
                "gpus": [{**attrs.asdict(gpu), "name": accelerator_name(gpu.name, gpu.memory_gib)} for gpu in each.gpus],
                "custom": dict(each.custom),
            }
            for each in nodes
        ],
        "autostop": attrs.asdict(autostop) if autostop else None,
        "lease_s": lease_s,
        "node_lost_s": node_lost_s,
        "standing": uuid.uuid4().hex,
        "ray_start": {"argv": list(ray_start.words()), "env": dict(ray_start.env)} if ray_start else None,
    }


def cluster_mark(
    node: NodePlan,
    nodes: Sequence[NodePlan],
    *,
    cluster: str,
    cluster_id: str,
    infra: str,
    owner: str,
    home: str,
    ray_port: int,
    dashboard_port: int = 0,
    ray_version: str = "",
    launched_at: float = 0.0,
    resources: Mapping[str, object] | None = None,
    autostop: AutostopRecord | None = None,
    lease_s: float | None = None,
) -> dict[str, object]:
    """The content of this node's cluster.json: who holds the account, who belongs to it, all that a record is made of."""
    return ClusterMark(
        name=cluster,
        cluster_id=cluster_id,
        infra=infra,
        owner=owner,
        home=home,
        rank=node.rank,
        launched_at=launched_at,
        resources=resources or {},
        autostop=autostop,
        lease_s=lease_s,
        members=tuple(_mark_member(each) for each in nodes),
        ray_port=ray_port,
        dashboard_port=dashboard_port,
        versions={"skylib": __version__, "protocol": str(PROTOCOL), "ray": ray_version},
    ).to_json()


def _mark_member(node: NodePlan) -> MarkMember:
    return MarkMember(
        rank=node.rank,
        host=node.host,
        ip=node.ip,
        root=node.layout.root,
        temp_dir=node.layout.temp_dir,
        env=node.layout.runtime_env,
        python=node.python,
        address=node.address,
        cpus=node.cpus,
        memory_gib=node.memory_gib,
        gpus=node.gpus,
        price_per_hour=node.price_per_hour,
        custom=node.custom,
        runtime_digest=node.runtime_digest,
    )


def write_files(
    node: NodePlan, config: Mapping[str, object], mark: Mapping[str, object], bundle: str
) -> tuple[Command, bytes]:
    """One command and its stdin: claims the account for the cluster, then writes all small files, each beside and renamed.

    Prints "have" or "need" for the bundle. Where another cluster holds the account it exits FOREIGN, where the temp dir
    is not the account's NOT_OURS; a line of JSON then says who, see `refusal`. bundle: its absolute path there.
    """
    layout = node.layout
    ports = {"ray_port": config["ray_port"], "ray_dashboard_port": config["dashboard_port"]}
    given = {
        "root": layout.root,
        "temp_dir": layout.temp_dir,
        "id": mark["cluster_id"],
        "mark": json.dumps(mark, indent=1),
        "marks": [layout.cluster_json, f"{layout.temp_dir}/cluster.json"],
        "files": {
            layout.agent_json: json.dumps(config),
            layout.ray_port_json: json.dumps(ports),
            layout.python_path: node.python + "\n",
            layout.ray_path: node.ray + "\n",
        },
        "bundle": bundle,
    }
    return Command.of(node.python, "-S", "-E", "-c", _WRITE), json.dumps(given).encode()


def refusal(done: Completed, *, cluster: str) -> BringUpError | None:
    """The error of a write that was refused; None when it was not."""
    if done.returncode not in (FOREIGN, NOT_OURS):
        return None
    said = done.stdout.decode(errors="replace").strip()
    try:
        found: dict[str, Any] = json.loads(said)
    except ValueError:
        found = {}
    path = str(found.get("path"))
    if done.returncode == NOT_OURS:
        what = f"belongs to uid {found.get('uid')}" if found.get("directory") else "is no directory"
        return BringUpError(
            f"Ray's temp dir {path} on {done.host} {what}, not to our account",
            cluster=cluster,
            host=done.host,
            step="runtime.temp_dir",
            evidence=said,
            hint=f"have {path} removed there, or use another host",
        )
    other, home = found.get("cluster"), found.get("home") or "unknown"
    return BringUpError(
        f"the account on {done.host} was taken by cluster {other!r} meanwhile",
        cluster=cluster,
        host=done.host,
        step="runtime.claim",
        evidence=said,
        hint=f"client.down({other!r}) frees it, from the home that has it ({home}), or from this one after "
        f"client.adopt({other!r})",
        other_cluster=other,
        other_home=home,
    )
