"""Verbs and what a dead process left behind, on hosts in memory."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import attrs
import pytest

from skylib.errors import ClusterNotFound, ClusterNotUp, JobNotFound, StateError
from skylib.events import Event, Phase, discard
from skylib.models.cluster import AutostopRecord, ClusterRecord, ClusterStatus
from skylib.models.job import JobStatus
from skylib.models.node import HostAddress
from skylib.models.receipts import Reconciled, Settled
from skylib.models.resources import Resources
from skylib.models.task import Task
from skylib.ops import execute, joblogs, launch, lifecycle, status
from skylib.ops.holding import hold
from skylib.ops.reconcile import reconcile
from skylib.ops.timer import set_lease
from skylib.paths import SkyHome
from skylib.session import Session
from skylib.state.base import StateStore
from skylib.state.sqlite import SqliteStore
from tests.doom import Doom, End, Killed, Point, Wires, doomed_store
from tests.processes import Child
from tests.scripted_node import ScriptedLab

NEW = "new-life"
TASK = Task(run="true", num_nodes=2, resources=Resources(infra="ssh/lab"))


@pytest.fixture
def lab() -> ScriptedLab:
    return ScriptedLab(2)


@pytest.fixture
def session(tmp_path: Path, lab: ScriptedLab) -> Iterator[Session]:
    made = open_session(tmp_path / "sky", lab)
    yield made
    made.close()


def open_session(
    home: Path, lab: ScriptedLab, events: Callable[[Event], None] | None = None, *, store: StateStore | None = None
) -> Session:
    home.mkdir(mode=0o700, exist_ok=True)
    home.joinpath("ssh_node_pools.yaml").write_text(lab.pool_yaml())
    home.joinpath("config.yaml").write_text("provision:\n  timeout_s: 5\nagent:\n  call_timeout_s: 2\n")
    return Session(home, transports=Wires(lab, Doom()), events=events, store=store)


def launch_it(session: Session, name: str = "c", nodes: int = 2) -> int:
    task = Task(run="true", num_nodes=nodes, resources=Resources(infra="ssh/lab"))
    return launch.launch(session, task, name, launch.Options())[1].job_id


def leave(session: Session, operation: str, record: ClusterRecord | None, name: str = "c", **details: object) -> int:
    """An intent as a process leaves it that was killed."""
    cluster_id = record.cluster_id if record is not None else NEW
    return session.store.begin_intent(operation, name, {"cluster_id": cluster_id, **details})


def forget_up(session: Session, record: ClusterRecord) -> None:
    """The record as a launch has it before its cluster is known to stand."""
    nodes = tuple(attrs.evolve(node, ray_node_id="", runtime_digest="") for node in record.nodes)
    half = attrs.evolve(record, status=ClusterStatus.INIT, nodes=nodes, ray_port=0, dashboard_port=0, ray_version="")
    session.store.save_cluster(half)


def only(found: list[Reconciled]) -> Reconciled:
    (one,) = found
    return one


def test_nothing_left_is_nothing_to_do(session: Session):
    """Without open intents there is an empty list, and no journal of it."""
    assert reconcile(session) == []
    assert not session.home.logs.exists()


def test_a_launch_whose_cluster_stands_is_finished_with_all_that_it_would_have_written(session: Session, lab: ScriptedLab):
    """Ports, versions and node ids are read from the nodes: the record is the launch's own, but for the times."""
    launch_it(session)
    whole = session.require("c")
    for node in whole.nodes:
        lab.hosts[node.host].files[f"{node.env}/.skylib-digest"] = f"{node.runtime_digest}\n".encode()
    forget_up(session, whole)
    leave(session, "launch", whole, new=True, key="k")
    done = only(reconcile(session))
    assert (done.done, done.status) == (Settled.FINISHED, ClusterStatus.UP)
    assert attrs.evolve(session.require("c"), status_since=whole.status_since) == whole
    assert session.store.open_intents() == []
    assert reconcile(session) == []


def test_a_launch_whose_cluster_does_not_stand_is_undone(session: Session, lab: ScriptedLab):
    """Processes, files, hosts and record go."""
    launch_it(session)
    record = session.require("c")
    forget_up(session, record)
    lab.hosts["h2"].reboot()
    leave(session, "launch", record, new=True)
    done = only(reconcile(session))
    assert (done.done, done.status) == (Settled.UNDONE, None)
    assert session.store.claims() == {}
    assert [host.left() for host in lab.hosts.values()] == [[], []]


@pytest.mark.parametrize(("host", "known"), [("h1", ClusterStatus.UNREACHABLE), ("h2", ClusterStatus.INIT)])
def test_a_launch_is_kept_while_a_host_is_not_reached(session: Session, lab: ScriptedLab, host: str, known: ClusterStatus):
    """Nothing is dropped; launch and start say what is the matter; when the host is back it is settled."""
    launch_it(session)
    record = session.require("c")
    forget_up(session, record)
    leave(session, "launch", record, new=True)
    lab.hosts[host].cut()
    done = only(reconcile(session))
    assert (done.done, done.status, done.blocks) == (Settled.KEPT, known, True)
    assert len(session.store.claims()) == 2
    for verb in (launch_it, lambda session: lifecycle.start(session, "c")):
        with pytest.raises(ClusterNotUp, match="a launch of cluster 'c' was not ended") as caught:
            verb(session)
        assert "purge=True" in str(caught.value.hint)
        assert caught.value.retryable
    lab.hosts[host].mend()
    assert only(reconcile(session)).done is Settled.FINISHED


def test_a_purge_forgets_a_cluster_that_cannot_be_settled(session: Session, lab: ScriptedLab):
    """down(purge=True) does not wait for hosts that are gone, and what was left open is over with it."""
    launch_it(session)
    record = session.require("c")
    forget_up(session, record)
    leave(session, "launch", record, new=True)
    lab.hosts["h2"].cut()
    lifecycle.down(session, "c", purge=True)
    assert session.store.clusters() == []
    assert session.store.open_intents() == []


def test_a_launch_that_died_before_its_record_is_only_settled(session: Session):
    """An intent without a record means that nothing was made."""
    leave(session, "launch", None, new=True)
    assert only(reconcile(session)).done is Settled.UNDONE
    assert session.store.open_intents() == []


def test_a_stop_that_was_begun_is_finished(session: Session, lab: ScriptedLab):
    """Every process ends, the hosts stay held."""
    launch_it(session)
    record = session.require("c")
    leave(session, "stop", record, was="UP")
    done = only(reconcile(session))
    assert (done.done, done.status) == (Settled.FINISHED, ClusterStatus.STOPPED)
    assert lab.hosts["h1"].processes == {}
    assert len(session.store.claims()) == 2


def test_a_node_that_is_not_ready_to_be_cleaned_is_tried_once_more(tmp_path: Path, lab: ScriptedLab):
    """What a dead client had begun on a node may go on for a while: one act that fails there is no end of it."""

    def sink(event: Event) -> None:
        if (event.step, event.phase) == ("teardown.end", Phase.STARTED) and not hindered:
            hindered.append(True)
            lab.hosts["h2"].cut()
        if event.step == "reconcile.again":
            lab.hosts["h2"].mend()

    hindered = [True]
    session = open_session(tmp_path / "sky", lab, sink)
    launch_it(session)
    leave(session, "down", session.require("c"), was="UP")
    hindered.clear()
    done = only(reconcile(session))
    assert (done.done, done.status) == (Settled.FINISHED, None)
    assert (session.store.claims(), session.store.open_intents()) == ({}, [])
    session.close()


def test_a_start_that_does_not_stand_is_ended_everywhere_and_stopped(session: Session, lab: ScriptedLab):
    """What came up of it serves nobody; its files and hosts are kept."""
    launch_it(session)
    record = session.store.settle("c", ClusterStatus.INIT, at=session.clock())
    lab.hosts["h2"].reboot()
    leave(session, "start", record, anew=True)
    done = only(reconcile(session))
    assert (done.done, done.status) == (Settled.UNDONE, ClusterStatus.STOPPED)
    assert lab.hosts["h1"].processes == {}
    assert lifecycle.start(session, "c").status is ClusterStatus.UP


def test_a_down_that_was_begun_is_finished_by_the_next_verb(session: Session):
    """Whoever asks for the cluster next finds it gone, is told why, and a launch makes a new one."""
    launch_it(session)
    first = session.require("c")
    leave(session, "down", first, was="UP")
    with pytest.raises(ClusterNotFound, match="a down that was not ended"):
        lifecycle.stop(session, "c")
    assert session.store.claims() == {}
    launch_it(session)
    assert session.require("c").cluster_id != first.cluster_id


def test_a_timer_that_was_begun_is_set(session: Session):
    """The agent and the store have it."""
    launch_it(session)
    record = session.require("c")
    leave(session, "autostop", record, timer={"idle_minutes": 7, "down": True})
    assert only(reconcile(session)).done is Settled.FINISHED
    timer = session.require("c").autostop
    assert timer is not None
    assert (timer.idle_minutes, timer.down) == (7, True)


def test_a_new_timer_replaces_one_that_was_begun(session: Session):
    """What could not be settled before does not come back after it."""
    launch_it(session)
    leave(session, "autostop", session.require("c"), timer={"idle_minutes": 7, "down": True})
    lifecycle.autostop(session, "c", AutostopRecord(idle_minutes=60))
    assert reconcile(session) == []
    timer = session.require("c").autostop
    assert timer is not None
    assert timer.idle_minutes == 60


@pytest.mark.parametrize("end", [End.KILLED_BEFORE, End.KILLED_AFTER])
@pytest.mark.parametrize("what", ["send lease", "store settle"])
def test_a_lease_that_was_begun_is_set(tmp_path: Path, lab: ScriptedLab, session: Session, what: str, end: End):
    """Whose client died while it gave a standing cluster a lease: nodes and store both have it after that."""
    launch_it(session)
    doom = Doom()
    store = doomed_store(SqliteStore(SkyHome(tmp_path / "sky")), doom)
    doomed = Session(tmp_path / "sky", transports=Wires(lab, doom), store=store)
    options = launch.Options(lease_s=7200.0)
    doom.arm(Point(what, 1 if what == "send lease" else 2, end))  # the first one says that the cluster is UP
    with pytest.raises(Killed):
        launch.launch(doomed, TASK, "c", options)
    doomed.close()
    told = [each for each in reconcile(session) if each.operation == "lease"]
    assert [each.done for each in told] == [Settled.FINISHED]
    assert session.require("c").lease_s == 7200.0
    assert session.agent(session.require("c")).call("info")["lease_s"] == 7200.0


def test_a_new_lease_replaces_one_that_was_begun(session: Session):
    """What could not be settled before does not come back after it."""
    launch_it(session)
    leave(session, "lease", session.require("c"), lease_s=7200.0)
    with hold(session, "c", "launch", discard):
        leave(session, "lease", session.require("c"), lease_s=3600.0)
        set_lease(session, session.require("c"), 60.0)
    assert reconcile(session) == []
    assert session.require("c").lease_s == 60.0


@pytest.mark.parametrize("key", ["mine", "nobodys"])
def test_a_submission_that_died_is_told_by_its_key(session: Session, key: str):
    """Whether the job was queued, and as which, is what the agent says of its key."""
    launch_it(session)
    record = session.require("c")
    job_id = execute.exec_(session, "true", "c", key="mine").job_id
    leave(session, "exec", record, key=key, process="elsewhere 0 1")
    session.clock = lambda: 4e9  # a process that cannot be looked at is dead after a while
    done = only(reconcile(session))
    assert (done.done, done.job_id) == (Settled.NOTED, job_id if key == "mine" else None)
    assert "not" not in done.why or key == "nobodys"


def test_a_job_that_cannot_be_asked_for_holds_up_nothing(session: Session, lab: ScriptedLab):
    """A dead exec waits for an agent that answers; start goes on without."""
    launch_it(session)
    record = session.require("c")
    for host in lab.hosts.values():
        host.reboot()
    leave(session, "cancel", record, job_ids=[1], process="elsewhere 0 1")
    session.clock = lambda: 4e9
    assert only(reconcile(session)).done is Settled.KEPT
    assert lifecycle.start(session, "c").status is ClusterStatus.UP
    assert only(reconcile(session)).done is Settled.NOTED


def test_a_cluster_that_an_operation_is_on_is_told_as_busy(session: Session, lab: ScriptedLab):
    """reconcile() waits for nobody, and leaves living operations alone."""
    home = session.home.root

    def stop_slowly(child: Child) -> None:
        other = open_session(home, lab)
        with other.hold("c", "stop"), other.intent("stop", "c"):
            child.say(b"h")
            child.wait_for_go()

    child = Child(stop_slowly)
    child.heard()
    done = only(reconcile(session))
    child.go()
    child.ended()
    assert (done.done, done.operation) == (Settled.BUSY, "stop")
    assert f"pid {child.pid}" in done.why
    assert reconcile(session) == []


def test_only_the_clusters_that_are_named_are_settled(session: Session):
    """names limits it; a cluster that has nothing left is no error."""
    launch_it(session)
    for name in ("a", "b"):
        leave(session, "launch", None, name, new=True)
    assert only(reconcile(session, ["b", "c"])).cluster == "b"
    assert [intent.cluster for intent in session.store.open_intents()] == ["a"]


def test_many_at_once_settle_each_intent_once(tmp_path: Path, lab: ScriptedLab):
    """Several processes' worth of sessions reconcile the same clusters: one does it, the others are told it is busy."""
    sessions = [open_session(tmp_path / "sky", lab) for _ in range(4)]
    for name in ("a", "b", "c"):
        leave(sessions[0], "launch", None, name, new=True)
    found: list[Reconciled] = []
    threads = [threading.Thread(target=lambda each=each: found.extend(reconcile(each))) for each in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    settled = [each.cluster for each in found if each.done is Settled.UNDONE]
    assert sorted(settled) == ["a", "b", "c"]


def test_status_settles_what_is_left_when_it_asks_the_nodes_and_only_then(session: Session):
    """Plain status is what is written; refresh finishes what a dead process began."""
    launch_it(session)
    leave(session, "stop", session.require("c"), was="UP")
    assert status.status(session)[0].status is ClusterStatus.UP
    assert session.store.open_intents() != []
    assert status.status(session, refresh_first=True)[0].status is ClusterStatus.STOPPED


def interrupting(*steps: str) -> Callable[[Event], None]:
    """A sink in which the user presses Ctrl-C when each step begins, once."""
    due = set(steps)

    def sink(event: Event) -> None:
        if event.phase.value == "started" and event.step in due:
            due.remove(event.step)
            raise KeyboardInterrupt

    return sink


def test_a_launch_that_undid_itself_leaves_nothing_to_settle(tmp_path: Path, lab: ScriptedLab):
    """Ctrl-C once: when it leaves the verb all is taken away, and said to be."""
    session = open_session(tmp_path / "sky", lab, interrupting("runtime.ready"))
    with pytest.raises(KeyboardInterrupt):
        launch_it(session)
    assert (session.store.clusters(), session.store.open_intents()) == ([], [])
    assert [host.left() for host in lab.hosts.values()] == [[], []]


@pytest.mark.parametrize("following", ["reconcile", "launch"])
def test_a_launch_whose_undo_was_interrupted_is_undone_by_the_next(tmp_path: Path, lab: ScriptedLab, following: str):
    """Ctrl-C twice, in a process that lives on: what Ray and claims are left go with its next verb."""
    session = open_session(tmp_path / "sky", lab, interrupting("runtime.ready", "provision.undo"))
    with pytest.raises(KeyboardInterrupt):
        launch_it(session)
    half = session.require("c")
    assert lab.hosts["h1"].processes != {}
    lab.hosts["h2"].reboot()
    if following == "launch":
        launch_it(session)
        assert session.require("c").cluster_id != half.cluster_id
        assert lab.hosts["h1"].kinds(half.cluster_id) == []
        return
    assert only(reconcile(session)).done is Settled.UNDONE
    assert (session.store.clusters(), session.store.claims(), session.store.open_intents()) == ([], {}, [])
    assert [host.left() for host in lab.hosts.values()] == [[], []]


class FullDisk:
    """A store of which some methods find the disk full."""

    def __init__(self, store: StateStore) -> None:
        self._store = store
        self.fails: set[str] = set()

    def __getattr__(self, name: str) -> object:
        if name in self.fails:
            raise StateError("the disk is full")
        return getattr(self._store, name)


def test_a_launch_whose_undo_cannot_be_written_is_undone_by_the_next(tmp_path: Path, lab: ScriptedLab):
    """The disk is full when the cluster stands: the intent is open until that is settled."""
    store = FullDisk(SqliteStore(SkyHome(tmp_path / "sky")))
    session = open_session(tmp_path / "sky", lab, store=cast(StateStore, store))
    store.fails = {"settle", "remove_cluster"}
    with pytest.raises(StateError, match="the disk is full"):
        launch_it(session)
    assert len(session.store.claims()) == 2
    store.fails.clear()
    assert only(reconcile(session)).done is Settled.UNDONE
    assert (session.store.clusters(), session.store.claims(), session.store.open_intents()) == ([], {}, [])


@pytest.mark.parametrize("verb", ["stop", "down"])
def test_a_stop_that_was_interrupted_is_finished_by_the_next_verb(tmp_path: Path, lab: ScriptedLab, verb: str):
    """Ctrl-C between two nodes: no job is queued onto what is left of the cluster."""
    session = open_session(tmp_path / "sky", lab, interrupting("teardown.end"))
    launch_it(session)
    with pytest.raises(KeyboardInterrupt):
        getattr(lifecycle, verb)(session, "c")
    with pytest.raises(ClusterNotUp if verb == "stop" else ClusterNotFound):
        execute.exec_(session, "true", "c")
    assert session.store.open_intents() == []
    assert lab.hosts["h1"].processes == {}


def test_a_job_waits_until_what_a_dead_process_had_begun_is_over(session: Session, lab: ScriptedLab):
    """exec and cancel settle a killed stop first, though they work without the cluster's lock."""
    for verb in (lambda: execute.exec_(session, "true", "c"), lambda: execute.cancel(session, "c", all_jobs=True)):
        launch_it(session)
        leave(session, "stop", session.require("c"), was="UP")
        with pytest.raises(ClusterNotUp, match="STOPPED"):
            verb()
        assert lab.hosts["h1"].kinds(session.require("c").cluster_id) == []


def test_a_job_of_a_cluster_that_a_dead_down_takes_away_has_ended(session: Session):
    """cancel by a handle finds nothing to do."""
    launch_it(session)
    record = session.require("c")
    leave(session, "down", record, was="UP")
    assert execute.cancel(session, "c", [1], cluster_id=record.cluster_id) == []
    assert session.store.clusters() == []


def test_a_job_does_not_wait_for_an_operation_under_way(session: Session, lab: ScriptedLab):
    """Who holds the cluster, and lives, settles what was left; exec goes on beside it."""
    launch_it(session)
    home = session.home.root

    def deliver_slowly(child: Child) -> None:
        other = open_session(home, lab)
        with other.hold("c", "launch"), other.intent("launch", "c", cluster_id="x"):
            child.say(b"h")
            child.wait_for_go()

    child = Child(deliver_slowly)
    child.heard()
    assert execute.exec_(session, "true", "c").job_id == 2
    child.go()
    child.ended()


@pytest.mark.parametrize("verb", ["stop", "down", "reconcile"])
@pytest.mark.parametrize("known", [ClusterStatus.UNREACHABLE, ClusterStatus.INIT])
def test_jobs_of_a_cluster_that_answers_after_all_are_cancelled(session: Session, verb: str, known: ClusterStatus):
    """Whatever the record said: what runs ends as cancelled, and the cluster was in use until now."""
    task = Task(run="sleep", num_nodes=2, resources=Resources(infra="ssh/lab"))
    launch.launch(session, task, "c", launch.Options())
    record = session.store.settle("c", known, at=session.clock())
    began = session.clock()
    session.clock = lambda: began + 1000
    if verb == "reconcile":
        leave(session, "stop", record, was=known.value)
        reconcile(session)
    else:
        getattr(lifecycle, verb)(session, "c")
    (job,) = session.store.jobs("c")
    assert job.status is JobStatus.CANCELLED
    (life,) = session.store.history(name="c")
    if known is ClusterStatus.UNREACHABLE:
        assert life.intervals[-1].end == began + 1000


@pytest.mark.parametrize("verb", ["stop", "down", "release", "release, told"])
def test_a_cluster_that_had_stopped_by_itself_was_in_use_until_then(session: Session, lab: ScriptedLab, verb: str):
    """Who ends it later counts no hour in which nothing ran: the head says when, or the intent of who had asked it."""
    task = Task(run="true", num_nodes=2, resources=Resources(infra="ssh/lab"))
    launch.launch(session, task, "c", launch.Options(idle_minutes=5, down=True))
    record, head = session.require("c"), lab.hosts["h1"].agent
    assert head is not None
    head.idle()
    stopped = json.loads(lab.hosts["h1"].files[f"{record.head.root}/.sky/stopped.json"])["at"]
    session.clock = lambda: stopped + 1000
    if verb.startswith("release"):
        told = {"used_until": stopped + 500} if "told" in verb else {}
        leave(session, "release", record, was="UP", **told)
        assert only(reconcile(session)).done is Settled.FINISHED
    else:
        getattr(lifecycle, verb)(session, "c")
    (life,) = session.store.history(name="c")
    assert life.intervals[-1].end == (stopped + 500 if "told" in verb else stopped)


@pytest.mark.parametrize("stopped_before", [False, True])
def test_a_start_anew_counts_the_use_until_the_nodes_said(session: Session, lab: ScriptedLab, stopped_before: bool):
    """Of a cluster called UNREACHABLE: until now when its agent answers, else until it had stopped by itself."""
    task = Task(run="true", num_nodes=2, resources=Resources(infra="ssh/lab"))
    launch.launch(session, task, "c", launch.Options(idle_minutes=5))
    record, head = session.store.settle("c", ClusterStatus.UNREACHABLE, at=session.clock()), lab.hosts["h1"].agent
    until = session.clock() + 1000
    if stopped_before:
        assert head is not None
        head.idle()
        until = json.loads(lab.hosts["h1"].files[f"{record.head.root}/.sky/stopped.json"])["at"]
    else:
        lab.hosts["h2"].reboot()
        session.clock = lambda: until
    assert lifecycle.start(session, "c").status is ClusterStatus.UP
    (life,) = session.store.history(name="c")
    assert life.intervals[0].end == until


def test_an_adoption_that_was_cut_short_is_forgotten_and_can_be_repeated(session: Session, lab: ScriptedLab):
    """Record, claims and history go, its nodes go on; whoever asks next is told to adopt it again."""
    launch_it(session)
    whole = session.require("c")
    session.store.forget_cluster("c", whole.cluster_id)
    session.store.begin_launch(whole)
    session.store.claim_hosts(whole.infra, [node.host for node in whole.nodes], "c", whole.cluster_id, 1.0)
    leave(session, "adopt", whole)
    with pytest.raises(ClusterNotFound, match="adopt that was not ended") as caught:
        lifecycle.stop(session, "c")
    assert "client.adopt('c')" in str(caught.value.hint)
    assert (session.store.clusters(), session.store.claims(), session.store.history()) == ([], {}, [])
    assert lab.hosts["h1"].kinds(whole.cluster_id) == ["agent", "ray"]
    session.store.begin_launch(whole)
    assert session.require("c").cluster_id == whole.cluster_id


def test_nothing_is_said_of_a_cluster_that_is_local_to_another_machine(session: Session):
    """What its owner's machine died in is kept, and the cluster is not called UNREACHABLE from here."""
    launch_it(session)
    record = session.require("c")
    there = tuple(attrs.evolve(node, address=HostAddress(kind="local", host="elsewhere")) for node in record.nodes)
    record = attrs.evolve(record, nodes=there)
    session.store.save_cluster(record)
    leave(session, "stop", record, was="UP")
    here = Session(session.home.root)
    done = only(reconcile(here))
    here.close()
    assert (done.done, done.status) == (Settled.KEPT, ClusterStatus.UP)
    assert session.require("c") == record


@pytest.mark.parametrize("verb", ["launch", "adopt"])
def test_verbs_that_need_no_cluster_do_not_mind_that_a_dead_launch_left_none(session: Session, verb: str):
    """A launch that was killed before it had a record is settled on the way."""
    leave(session, "launch", None, new=True)
    with hold(session, "c", verb, discard):
        assert session.left_intents("c") == []


def test_reads_do_not_wait_for_a_launch(tmp_path: Path, lab: ScriptedLab):
    """While a launch holds the cluster, status, queue and logs answer at once, at whatever step it is."""
    reader = open_session(tmp_path / "sky", lab)
    seen: list[tuple[str, ClusterStatus]] = []

    def look(event: Event) -> None:
        if event.step in ("runtime.environment", "runtime.ready") and event.phase.value == "started":
            asking = threading.Thread(target=ask, args=(event.step,))
            asking.start()
            asking.join(20)

    def ask(step: str) -> None:
        (record,) = status.status(reader, ["c"])
        assert execute.queue(reader, "c") == []
        with pytest.raises(JobNotFound):
            joblogs.tail_logs(reader, "c")
        seen.append((step, record.status))

    launch_it(open_session(tmp_path / "sky", lab, look))
    assert dict(seen) == {"runtime.environment": ClusterStatus.INIT, "runtime.ready": ClusterStatus.INIT}


def test_an_outcome_shows_itself_in_one_line(session: Session):
    """Cluster, operation, who began it and when, what was done, why, and the status now."""
    leave(session, "launch", None, new=True)
    shown = repr(only(reconcile(session)))
    assert shown.startswith(f"<Reconciled 'c': launch by pid {os.getpid()} on ")
    assert "undone, now gone: nothing is left" in shown
    assert "\n" not in shown
