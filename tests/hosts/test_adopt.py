"""State that is lost is rebuilt from the nodes: discover and adopt on real hosts."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import skylib
from skylib.errors import ClusterBusy, ClusterNotFound, ConnectError, InvalidSpecError, NoCapacityError
from skylib.events import Event
from skylib.models.discovered import ClusterHealth, MemberState
from skylib.models.receipts import Settled
from tests.lab import Lab, eventually, make_lab, texts
from tests.testbed import Host, pool_yaml

UP = skylib.ClusterStatus.UP


@pytest.fixture
def other(warm_hosts: list[Host], wheels: Path, tmp_path: Path) -> Iterator[Lab]:
    """Another home that knows the same hosts and has no state; after the test whatever stands anywhere is taken down."""
    made = make_lab(tmp_path / "other" / "sky", warm_hosts, wheels=wheels)
    yield made
    made.pool(pool_yaml(warm_hosts))
    for record in made.client.status():
        made.client.down(record.name, purge=True)
    for found in made.client.discover("ssh/lab"):
        made.client.adopt(found.name, cluster_id=found.cluster_id)
        made.client.down(found.name, purge=True)
    made.client.close()


DIES = """
import os, signal, sys
import skylib

home, step, phase, verb = sys.argv[1:5]

def sink(event):
    if (event.step, event.phase.value) == (step, phase):
        os.kill(os.getpid(), signal.SIGKILL)

client = skylib.Client(home, events=sink)
if verb == "launch":
    client.launch(skylib.Task(run="true", num_nodes=2, resources=skylib.Resources(infra="ssh/lab")), "c")
else:
    client.adopt("c")
"""


def die(lab: Lab, step: str, phase: str, verb: str = "launch") -> subprocess.CompletedProcess[str]:
    """A launch of two nodes, or an adoption, whose process is killed at that step."""
    argv = [sys.executable, "-c", DIES, str(lab.home), step, phase, verb]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=120, check=False)


def lose(lab: Lab) -> None:
    """The home is gone, but for what its owner wrote into it by hand."""
    lab.client.close()
    shutil.rmtree(lab.home)


def test_a_cluster_whose_home_is_gone_goes_on_elsewhere(lab: Lab, other: Lab):
    """A job that runs is waited for by the home that adopted its cluster; logs, exec and down work there."""
    first = lab.client.launch(lab.task("echo early", num_nodes=2), "train")
    first.wait(timeout_s=60)
    job = lab.client.exec(lab.task("sleep 3; echo late $SKYPILOT_NODE_RANK", num_nodes=2), "train")
    before = lab.client.status("train")[0]
    lose(lab)

    eventually(lambda: list(other.client.discover("ssh/lab")[0].job_ids) == [1, 2], what="both jobs in the mark")
    (found,) = other.client.discover()
    assert (found.name, found.cluster_id, found.known) == ("train", before.cluster_id, False)
    assert (found.health, found.infra, found.home) == (ClusterHealth.UP, "ssh/lab", str(lab.home))
    assert (found.missing, dict(found.problems)) == ((), {})

    record = other.client.adopt("train")
    assert record.status is UP
    assert record.launched_at == before.launched_at
    assert [node.address for node in record.nodes] == [node.address for node in before.nodes]
    assert [(node.host, node.root, node.cpus, node.gpus) for node in record.nodes] == [
        (node.host, node.root, node.cpus, node.gpus) for node in before.nodes
    ]
    assert {each.job_id for each in other.client.queue("train")} == {1, 2}
    again = other.client.job("train", job.id)
    assert again.wait(timeout_s=60).status is skylib.JobStatus.SUCCEEDED
    assert sorted(texts(list(again.logs()))) == ["late 0", "late 1"]
    assert texts(list(other.client.tail_logs("train", first.id))).count("early") == 2
    other.client.exec("true", "train").wait(timeout_s=60)
    assert other.client.down("train").clean
    other.assert_nothing_left()


def test_a_cluster_with_a_host_that_is_cut_off_is_adopted_whole(
    make_warm_host: Callable[..., Host], wheels: Path, tmp_path: Path
):
    """The other member names it: it is held, the cluster is UNREACHABLE, and all is well once the host is back."""
    hosts = [make_warm_host(), make_warm_host()]
    first = make_lab(tmp_path / "sky", hosts, wheels=wheels)
    first.client.launch(first.task("true", num_nodes=2), "train").wait(timeout_s=60)
    lose(first)
    second = make_lab(tmp_path / "other", hosts, wheels=wheels, config={"ssh": {"connect_timeout_s": 2}})
    hosts[1].cut()
    (found,) = second.client.discover("ssh/lab")
    assert found.missing == (hosts[1].ip,)
    assert found.members[1].state is MemberState.SILENT
    assert hosts[1].ip in found.problems
    assert found.members[1].node.root == "/home/sky"

    assert second.client.adopt("train").status is skylib.ClusterStatus.UNREACHABLE
    with pytest.raises(NoCapacityError, match="train"):
        second.client.launch(second.task("true"), "more")
    hosts[1].restore()
    eventually(lambda: second.client.status("train", refresh=True)[0].status is UP, what="the cluster is whole again")
    second.client.exec(second.task("true", num_nodes=2), "train").wait(timeout_s=60)
    second.client.down("train")
    second.assert_nothing_left()
    second.client.close()


def test_a_cluster_whose_head_is_cut_off_is_adopted_too(
    make_warm_host: Callable[..., Host], wheels: Path, tmp_path: Path
):
    """A worker alone names all members; the jobs come when the head is back."""
    hosts = [make_warm_host(), make_warm_host()]
    first = make_lab(tmp_path / "sky", hosts, wheels=wheels)
    first.client.launch(first.task("true", num_nodes=2), "train").wait(timeout_s=60)
    head = first.client.status("train")[0].head.host
    lose(first)
    cut = next(host for host in hosts if host.ip == head)
    second = make_lab(tmp_path / "other", hosts, wheels=wheels, config={"ssh": {"connect_timeout_s": 2}})
    cut.cut()
    (found,) = second.client.discover("ssh")
    assert (found.health, found.missing) == (ClusterHealth.CANNOT_TELL, (head,))
    assert second.client.adopt("train").status is skylib.ClusterStatus.UNREACHABLE
    cut.restore()
    eventually(lambda: second.client.status("train", refresh=True)[0].status is UP, what="the cluster is whole again")
    assert [each.job_id for each in second.client.queue("train")] == [1]
    second.client.down("train")
    second.assert_nothing_left()
    second.client.close()


def test_a_stopped_cluster_is_adopted_as_such(lab: Lab, other: Lab):
    """Its jobs and their logs are known where it was adopted; start brings it up there, down leaves nothing."""
    lab.client.launch(lab.task("echo before", num_nodes=2), "train").wait(timeout_s=60)
    lab.client.stop("train")
    lose(lab)
    (found,) = other.client.discover()
    assert (found.stopped, found.health, list(found.job_ids)) == (True, ClusterHealth.NOT_WHOLE, [1])
    assert other.client.adopt("train").status is skylib.ClusterStatus.STOPPED
    assert [(each.job_id, each.status.value) for each in other.client.queue("train")] == [(1, "SUCCEEDED")]
    assert texts(list(other.client.tail_logs("train", 1))) == ["before", "before"]
    assert other.client.start("train").status is UP
    other.client.exec("true", "train").wait(timeout_s=60)
    other.client.down("train")
    other.assert_nothing_left()


@pytest.mark.parametrize(
    ("step", "phase"),
    [pytest.param("runtime.files", "finished", marks=pytest.mark.slow), ("runtime.ready", "started")],
)
def test_a_launch_that_died_half_way_is_adopted_and_taken_down(lab: Lab, other: Lab, step: str, phase: str):
    """Files, or Ray beginning, are all there is: another home finds them by the marks and leaves nothing."""
    died = die(lab, step, phase)
    assert died.returncode == -signal.SIGKILL
    lose(lab)
    (found,) = other.client.discover()
    assert found.name == "c"
    record = other.client.adopt("c")
    assert record.status in (skylib.ClusterStatus.INIT, UP)
    assert other.client.down("c").clean
    other.assert_nothing_left()


def test_a_launch_that_died_half_way_is_started(lab: Lab, other: Lab):
    """start brings up what a launch that died had begun, on the hosts that it had chosen."""
    die(lab, "runtime.files", "finished")
    lose(lab)
    record = other.client.adopt("c")
    assert other.client.start("c").status is UP
    other.client.exec(other.task("true", num_nodes=record.num_nodes), "c").wait(timeout_s=60)
    other.client.down("c")
    other.assert_nothing_left()


def test_names_that_clash(lab: Lab, other: Lab, tmp_path: Path, wheels: Path):
    """A name that is another cluster's here is refused; of two clusters of a name the id says which."""
    lab.client.launch(lab.task("true"), "train").wait(timeout_s=60)
    other.client.launch(other.task("true"), "train").wait(timeout_s=60)
    ids = {made.client.status("train")[0].cluster_id for made in (lab, other)}
    theirs = lab.client.status("train")[0].cluster_id

    assert {each.cluster_id: each.known for each in other.client.discover()} == {
        each: each != theirs for each in ids
    }
    with pytest.raises(InvalidSpecError) as two:
        other.client.adopt("train")
    assert all(each in two.value.message for each in ids)
    with pytest.raises(ClusterBusy, match=r"this home has another cluster 'train'"):
        other.client.adopt("train", cluster_id=theirs)

    third = make_lab(tmp_path / "third", lab.hosts, wheels=wheels)
    assert third.client.adopt("train", cluster_id=theirs).cluster_id == theirs
    again = third.client.adopt("train", cluster_id=theirs)
    assert (again.cluster_id, again.status) == (theirs, UP)
    with pytest.raises(ClusterNotFound, match="no-such") as none:
        third.client.adopt("no-such")
    assert "train" in none.value.known
    third.client.down("train")
    third.client.close()


def test_the_old_home_is_told_where_its_cluster_is(lab: Lab, other: Lab):
    """Who meets the mark after an adoption is sent to the home that adopted; a status there says that it is gone later."""
    lab.client.launch(lab.task("true", num_nodes=3), "train").wait(timeout_s=60)
    other.client.adopt("train")
    lab.client.status("train")
    old = skylib.Client(lab.home.parent / "old")
    (lab.home.parent / "old").mkdir(mode=0o700)
    shutil.copy(lab.home / "ssh_node_pools.yaml", lab.home.parent / "old")
    with pytest.raises(NoCapacityError) as full:
        old.launch(lab.task("true"), "mine")
    assert str(other.home) in str(full.value)
    assert "'train'" in str(full.value)
    old.close()
    other.client.down("train")
    assert lab.client.status(refresh=True) == []
    lab.assert_nothing_left()


def test_hosts_that_are_in_no_pool_are_reached_as_the_mark_says(lab: Lab, other: Lab):
    """A home that knows one host of three adopts the whole cluster."""
    lab.client.launch(lab.task("true", num_nodes=3), "train").wait(timeout_s=60)
    lose(lab)
    other.pool(pool_yaml(lab.hosts[1:2], name="mine"))
    (found,) = other.client.discover([lab.hosts[1].ip])
    assert (found.infra, len(found.missing)) == ("ssh/mine", 2)
    record = other.client.adopt("train")
    assert (record.status, record.infra) == (UP, "ssh/mine")
    assert {node.address.host for node in record.nodes} == {host.ip for host in lab.hosts}
    assert {node.address.user for node in record.nodes} == {"sky"}
    other.client.exec(other.task("true", num_nodes=3, resources=skylib.Resources()), "train").wait(timeout_s=60)
    other.client.down("train")
    other.assert_nothing_left()


def _files(lab: Lab) -> list[list[str]]:
    """By host: every file in .sky with its time and size. Not the job queue's: agents write to it."""
    listing = "cd /home/sky/.sky && find . -printf '%p %T@ %s\\n' | sort"
    texts = [host.sh(listing).stdout for host in lab.hosts]
    return [[line for line in text.splitlines() if "jobs.db" not in line] for text in texts]


def test_looking_changes_nothing_and_rubbish_is_a_problem(lab: Lab, other: Lab):
    """A broken cluster.json on one host is that host's problem; files on hosts stay as they are."""
    lab.client.launch(lab.task("true", num_nodes=2), "train").wait(timeout_s=60)
    third = lab.hosts[2]
    third.write_file("/home/sky/.sky/cluster.json", b'{"schema": 2, "name": [')
    try:
        eventually(lambda: list(other.client.discover()[0].job_ids) == [1], what="the job's id in the mark")
        eventually(lambda: _files(lab) == (other.client.discover(), _files(lab))[1], what="a look that changes nothing")
        (found,) = other.client.discover()
        assert found.health is ClusterHealth.UP
        with pytest.raises(ClusterNotFound) as none:
            other.client.adopt("train", hosts=[third.ip])
        assert "no JSON" in str(none.value)
    finally:
        third.sh("rm -f ~/.sky/cluster.json", check=True)
    lab.client.down("train")
    lab.assert_nothing_left()


@pytest.mark.parametrize(
    ("step", "phase"),
    [
        pytest.param("adopt.claim", "started", marks=pytest.mark.slow),
        ("adopt.claim", "finished"),
        pytest.param("adopt.marks", "started", marks=pytest.mark.slow),
    ],
)
def test_an_adoption_that_died_is_done_again(lab: Lab, other: Lab, step: str, phase: str):
    """kill -9 of the adopter: the same call again has the whole cluster, its hosts held, its jobs known."""
    lab.client.launch(lab.task("true", num_nodes=2), "c").wait(timeout_s=60)
    lose(lab)
    assert die(other, step, phase, "adopt").returncode == -signal.SIGKILL
    record = other.client.adopt("c")
    assert record.status is UP
    assert [each.job_id for each in other.client.queue("c")] == [1]
    with pytest.raises(NoCapacityError, match="'c'"):
        other.client.launch(other.task("true", num_nodes=2), "more")
    other.client.exec("true", "c").wait(timeout_s=60)
    other.client.down("c")
    other.assert_nothing_left()


@pytest.mark.parametrize(
    "step",
    [
        pytest.param("adopt.files", marks=pytest.mark.slow),
        pytest.param("adopt.jobs", marks=pytest.mark.slow),
        "adopt.marks",
    ],
)
def test_an_adoption_that_died_is_forgotten_by_whoever_comes_first(lab: Lab, other: Lab, step: str):
    """reconcile() says so, touches no node, and the cluster is adopted as if nobody had tried."""
    lab.client.launch(lab.task("true", num_nodes=2), "c").wait(timeout_s=60)
    lose(lab)
    assert die(other, step, "started", "adopt").returncode == -signal.SIGKILL
    (done,) = other.client.reconcile()
    assert (done.operation, done.done, done.status) == ("adopt", Settled.UNDONE, None)
    assert "adopt it again" in done.why
    assert other.client.status() == []
    (found,) = other.client.discover("ssh/lab")
    assert (found.health, found.known) == (ClusterHealth.UP, False)
    assert other.client.adopt("c").status is UP
    assert [each.job_id for each in other.client.queue("c")] == [1]
    other.client.down("c")
    other.assert_nothing_left()


def test_an_adoption_that_was_interrupted_leaves_nothing(lab: Lab, other: Lab):
    """Ctrl-C in the middle: the home is as it was, and the same call again works."""
    lab.client.launch(lab.task("true", num_nodes=2), "c").wait(timeout_s=60)
    lose(lab)

    def interrupted(event: Event) -> None:
        if event.step == "adopt.jobs":
            raise KeyboardInterrupt

    with skylib.Client(other.home, events=interrupted) as client, pytest.raises(KeyboardInterrupt):
        client.adopt("c")
    assert (other.client.status(), other.client.reconcile()[0].done) == ([], Settled.NOTED)
    assert other.client.adopt("c").status is UP
    other.client.down("c")
    other.assert_nothing_left()


def test_a_hosts_files_that_are_gone_are_given_back(lab: Lab, other: Lab):
    """Somebody deleted ~/.sky on the head of a cluster that runs: it is found by Ray's temp dir, and down is clean."""
    lab.client.launch(lab.task("true", num_nodes=2), "train").wait(timeout_s=60)
    head = next(host for host in lab.hosts if host.ip == lab.client.status("train")[0].head.host)
    lose(lab)
    head.sh("rm -rf ~/.sky", check=True)
    (found,) = other.client.discover()
    assert [member.state for member in found.members] == [MemberState.LOST, MemberState.ANSWERED]
    assert other.client.adopt("train").status is skylib.ClusterStatus.INIT
    assert other.client.start("train").status is UP
    other.client.exec(other.task("true", num_nodes=2), "train").wait(timeout_s=60)
    assert other.client.down("train").clean
    other.assert_nothing_left()


def test_the_mark_follows_the_timer(lab: Lab, other: Lab):
    """A timer that was changed is the adopted cluster's, and a start by the adopter writes its own mark."""
    lab.client.launch(lab.task("true"), "train").wait(timeout_s=60)
    lab.client.autostop("train", 45, down=True)
    lab.client.stop("train")
    lose(lab)
    record = other.client.adopt("train")
    assert record.autostop is not None
    assert (record.autostop.idle_minutes, record.autostop.down) == (45, True)
    other.client.start("train")
    (found,) = other.client.discover()
    assert (found.home, found.known, found.autostop) == (str(other.home), True, record.autostop)
    other.client.down("train")
    other.assert_nothing_left()


def test_what_was_given_up_here_is_not_adopted_again(make_warm_host: Callable[..., Host], wheels: Path, tmp_path: Path):
    """A cluster that is known is returned though no host answers; one that this home purged is cleaned by a purge."""
    host = make_warm_host()
    made = make_lab(tmp_path / "sky", [host], wheels=wheels, config={"ssh": {"connect_timeout_s": 2}})
    made.client.launch(made.task("true"), "train").wait(timeout_s=60)
    host.cut()
    with pytest.raises(ConnectError, match="did not answer"):
        made.client.discover("ssh/lab")
    assert made.client.adopt("train", hosts="ssh/lab").status is skylib.ClusterStatus.UNREACHABLE
    made.client.down("train", purge=True)
    host.restore()
    with pytest.raises(ClusterBusy, match="down before") as over:
        made.client.adopt("train")
    assert "purge=True" in str(over.value)
    made.client.down("train", purge=True)
    assert made.client.discover("ssh/lab") == []
    made.assert_nothing_left()
    made.client.close()
