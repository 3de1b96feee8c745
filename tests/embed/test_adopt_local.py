"""discover and adopt of a cluster on this machine: no root, no SSH."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import skylib
from skylib.models.discovered import ClusterHealth, MemberState
from skylib.session import Session
from tests.runtime_fixture import shared_wheels

TEMP_DIR = Path("/tmp/ray_skypilot")
TASK = skylib.Task(run="echo $SKYPILOT_NODE_RANK", num_nodes=2, resources=skylib.Resources(infra="local"))


@pytest.fixture
def homes(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Two homes of this account, one of which may have a `local` cluster at a time on this machine."""
    made = []
    for name in ("one", "two"):
        runtime = tmp_path / name / "runtime"
        runtime.mkdir(mode=0o700, parents=True)
        (tmp_path / name).chmod(0o700)
        (runtime / "wheels").symlink_to(shared_wheels())
        made.append(tmp_path / name)
    with Path(f"/tmp/skylib-tests-local-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield made[0], made[1]
        with skylib.Client(made[1]) as client:
            for found in client.discover("local"):
                client.adopt(found.name, cluster_id=found.cluster_id, hosts="local")
                client.down(found.name, purge=True)


def running(cluster_id: str) -> list[int]:
    """Processes of this machine that carry the cluster's id."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and f"SKYLIB_CLUSTER_ID={cluster_id}".encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_another_home_takes_up_a_local_cluster(homes: tuple[Path, Path]) -> None:
    """Its state is lost, its files are not: jobs, logs and a new job from the other home, and nothing is left."""
    one, two = homes
    with skylib.Client(one) as client:
        client.launch(TASK, "here").wait(timeout_s=60)
    for path in one.glob("state.db*"):
        path.unlink()
    with skylib.Client(two) as client:
        (found,) = client.discover("local")
        assert (found.name, found.infra, found.health) == ("here", "local", ClusterHealth.UP)
        record = client.adopt("here")
        assert (record.status, record.num_nodes) == (skylib.ClusterStatus.UP, 2)
        assert sorted(line.text for line in client.tail_logs("here", 1)) == ["0", "1"]
        client.exec(TASK, "here").wait(timeout_s=60)
        assert client.down("here").clean
        assert client.discover("local") == []
    assert running(record.cluster_id) == []
    assert not TEMP_DIR.exists()
    assert not (one / "local" / "here").exists()


def test_a_cluster_that_was_thought_gone_is_taken_up_again(homes: tuple[Path, Path]) -> None:
    """Its life ended since nothing of it was found, though it runs: adopt has it back. One taken down stays so."""
    one, _ = homes
    with skylib.Client(one) as client:
        client.launch(TASK, "here").wait(timeout_s=60)
        (record,) = client.status("here")
        with closing(Session(one)) as session:
            session.store.remove_cluster("here", at=time.time(), cluster_id=record.cluster_id, reason="nowhere")
        assert client.status() == []
        assert client.adopt("here").status is skylib.ClusterStatus.UP
        (life,) = client.cost_report()
        assert life.ended_at is None
        assert len(client.queue("here")) == 1
        assert client.down("here").clean
        assert client.discover("local") == []
    assert running(record.cluster_id) == []


def test_a_local_cluster_whose_home_is_gone_is_ended(homes: tuple[Path, Path]) -> None:
    """Files, environment and state are deleted while it runs: it is still found, taken up, and taken down whole."""
    one, two = homes
    with skylib.Client(one) as client:
        client.launch(TASK, "here").wait(timeout_s=60)
    shutil.rmtree(one)
    with skylib.Client(two) as client:
        (found,) = client.discover("local")
        assert {member.state for member in found.members} == {MemberState.LOST}
        assert found.health is ClusterHealth.NOT_WHOLE
        assert running(found.cluster_id) != []
        assert client.adopt("here").status is skylib.ClusterStatus.INIT
        assert client.down("here").clean
        assert client.discover("local") == []
    assert running(found.cluster_id) == []
    assert not TEMP_DIR.exists()
