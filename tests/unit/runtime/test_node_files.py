"""The claim on an account and the small files of a node, written by a real Python."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from skylib.errors import BringUpError
from skylib.models.node import Gpu
from skylib.runtime.layout import NodeLayout
from skylib.runtime.node_files import FOREIGN, NOT_OURS, NodePlan, agent_config, cluster_mark, refusal, write_files
from skylib.transport.base import Completed
from skylib.transport.fanout import fanout
from skylib.transport.local import LocalTransport


def plan(root: Path, temp: Path, gpus: int = 0) -> NodePlan:
    return NodePlan(
        rank=0,
        host="h",
        ip="10.0.0.1",
        layout=NodeLayout(root=str(root), temp_dir=str(temp)),
        python=sys.executable,
        ray="/env/bin/ray",
        cpus=1,
        memory_gib=1.0,
        gpus=tuple(Gpu(index=each, name="NVIDIA H100 80GB HBM3", memory_gib=80.0, uuid="u" * 40) for each in range(gpus)),
    )


def write(node: NodePlan, cluster_id: str, nodes: int = 1) -> Completed:
    """As bring-up does, for a cluster called after its id."""
    all_nodes = [node] * nodes
    names = {"cluster": f"c-{cluster_id}", "cluster_id": cluster_id, "infra": "local"}
    config = agent_config(
        node, all_nodes, **names, ray_port=6380, dashboard_port=8266, user="me", bundle_sha256="ab", autostop=None
    )
    mark = cluster_mark(node, all_nodes, **names, owner="o", home=f"/homes/{cluster_id}", ray_port=6380)
    command, stdin = write_files(node, config, mark, f"{node.layout.agent_dir}/ab.pyz")
    return LocalTransport("h").run(command, stdin=stdin, timeout_s=60)


def holder(path: Path) -> str:
    return str(json.loads(path.read_text())["cluster_id"])


def entries(folder: Path) -> Iterator[str]:
    return (str(path.relative_to(folder)) for path in sorted(folder.rglob("*")))


def test_all_files_stand_and_the_bundle_is_asked_for(tmp_path: Path):
    """The first write leaves every small file, the link to the bundle, and says whether the bundle is missing."""
    node = plan(tmp_path / "root", tmp_path / "temp")
    assert write(node, "a").check().stdout == b"need\n"
    Path(node.layout.agent_dir, "ab.pyz").write_bytes(b"zip")
    assert write(node, "a").check().stdout == b"have\n"
    assert os.readlink(node.layout.agent_bundle) == "ab.pyz"
    assert json.loads(Path(node.layout.ray_port_json).read_text()) == {"ray_port": 6380, "ray_dashboard_port": 8266}
    assert Path(node.layout.python_path).read_text() == f"{sys.executable}\n"
    assert holder(Path(node.layout.cluster_json)) == holder(tmp_path / "temp" / "cluster.json") == "a"
    assert not [name for name in entries(tmp_path) if ".new" in name]
    assert Path(node.layout.agent_json).stat().st_mode & 0o777 == 0o600


def test_another_clusters_claim_is_refused_and_named(tmp_path: Path):
    """A second cluster on the account exits FOREIGN, changes nothing, and the error names the first one and its home."""
    node = plan(tmp_path / "root", tmp_path / "temp")
    write(node, "a").check()
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in entries(tmp_path) if (tmp_path / name).is_file()}
    done = write(node, "b")
    assert done.returncode == FOREIGN
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in before} == before
    error = refusal(done, cluster="c-b")
    assert isinstance(error, BringUpError)
    assert "c-a" in error.message
    assert "/homes/a" in (error.hint or "")
    assert error.step == "runtime.claim"


def test_one_of_many_that_come_together_wins(tmp_path: Path):
    """Of clusters that claim an account at the same moment exactly one gets it, and all files are that one's."""
    node = plan(tmp_path / "root", tmp_path / "temp")
    gate = threading.Barrier(6)

    def attempt(cluster_id: str) -> int | None:
        gate.wait(30)
        return write(node, cluster_id).returncode

    outcomes = fanout(attempt, [f"id{number}" for number in range(6)])
    won = [outcome.item for outcome in outcomes if outcome.get() == 0]
    assert len(won) == 1
    assert sorted({outcome.get() for outcome in outcomes}) == [0, FOREIGN]
    assert holder(Path(node.layout.cluster_json)) == won[0]
    assert holder(Path(node.layout.agent_json)) == won[0]


def test_a_local_cluster_of_another_home_holds_the_temp_dir(tmp_path: Path):
    """Where another root's cluster stands in the temp dir, the claim is refused and nothing is left of it."""
    write(plan(tmp_path / "one", tmp_path / "temp"), "a").check()
    assert write(plan(tmp_path / "two", tmp_path / "temp"), "b").returncode == FOREIGN
    assert not (tmp_path / "two").exists()
    assert holder(tmp_path / "temp" / "cluster.json") == "a"


def test_a_stale_mark_in_the_temp_dir_is_replaced(tmp_path: Path):
    """A mark whose roots have it no more holds nothing."""
    first = plan(tmp_path / "one", tmp_path / "temp")
    write(first, "a").check()
    Path(first.layout.cluster_json).unlink()
    write(plan(tmp_path / "one", tmp_path / "temp"), "b").check()
    assert holder(tmp_path / "temp" / "cluster.json") == "b"


def test_a_mark_that_cannot_be_read_is_replaced(tmp_path: Path):
    """A broken cluster.json names nobody."""
    node = plan(tmp_path / "root", tmp_path / "temp")
    Path(node.layout.sky).mkdir(parents=True)
    Path(node.layout.cluster_json).write_text('{"cluster_id": "x')
    write(node, "a").check()
    assert holder(Path(node.layout.cluster_json)) == "a"


@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_temp_dir_that_is_not_our_directory_is_refused(tmp_path: Path, kind: str):
    """A link or file where the temp dir should be is not followed, and the error says where it is."""
    temp = tmp_path / "temp"
    if kind == "link":
        (tmp_path / "elsewhere").mkdir()
        temp.symlink_to(tmp_path / "elsewhere")
    else:
        temp.write_text("")
    done = write(plan(tmp_path / "root", temp), "a")
    assert done.returncode == NOT_OURS
    error = refusal(done, cluster="c-a")
    assert error is not None
    assert str(temp) in error.message
    assert not (tmp_path / "root").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
def test_a_temp_dir_of_another_account_is_refused(tmp_path: Path):
    """A temp dir that somebody else made is not used; its owner is named."""
    temp = tmp_path / "temp"
    temp.mkdir()
    os.chown(temp, 4711, -1)
    error = refusal(write(plan(tmp_path / "root", temp), "a"), cluster="c-a")
    assert error is not None
    assert "4711" in error.message


def test_a_temp_dir_that_the_cluster_had_before_goes(tmp_path: Path):
    """Brought up again with another one, it leaves the first behind only where another cluster is in it by now."""
    first, taken = tmp_path / "first", tmp_path / "taken"
    for temp in (first, taken):
        write(plan(tmp_path / "root", temp), "a").check()
        (temp / "session").mkdir()
    assert not first.exists()
    (taken / "cluster.json").write_text(json.dumps({"cluster_id": "b"}))
    write(plan(tmp_path / "root", tmp_path / "third"), "a").check()
    assert (taken / "session").exists()


def test_many_nodes_with_many_devices_fit(tmp_path: Path):
    """300 nodes of 8 GPUs are more than one word of a command line may hold."""
    node = plan(tmp_path / "root", tmp_path / "temp", gpus=8)
    write(node, "a", nodes=300).check()
    assert Path(node.layout.agent_json).stat().st_size > 128 * 1024
