"""What status(refresh=True) makes of what hosts answer; hosts are scripted, everything else is real."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from skylib.errors import AgentError, ClusterBusy, ClusterNotUp, ConnectError
from skylib.models.cluster import ClusterRecord, ClusterStatus
from skylib.models.node import HostAddress
from skylib.models.resources import Resources
from skylib.models.task import Task
from skylib.ops import execute, launch, lifecycle, status
from skylib.session import Session
from skylib.transport.base import Completed
from skylib.transport.command import Command
from skylib.transport.scripted import Rule
from tests.doom import Doom, Wires
from tests.records import cluster_record, node_record
from tests.scripted_node import ScriptedHost, ScriptedLab, kind_of

UP, INIT, STOPPED = ClusterStatus.UP, ClusterStatus.INIT, ClusterStatus.STOPPED
UNREACHABLE, AUTOSTOPPING = ClusterStatus.UNREACHABLE, ClusterStatus.AUTOSTOPPING


class Clock:
    """Goes on by itself, and can be moved."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@attrs.frozen(kw_only=True)
class Place:
    """A home on three scripted hosts."""

    lab: ScriptedLab
    session: Session
    clock: Clock

    def launch(self, name: str = "a", nodes: int = 2, **options: object) -> ClusterRecord:
        task = Task(run="true", num_nodes=nodes, resources=Resources(infra="ssh/lab"))
        launch.launch(self.session, task, name, launch.Options(**options))  # type: ignore[arg-type]
        return self.session.require(name)

    def hosts(self, record: ClusterRecord) -> list[ScriptedHost]:
        """Of a cluster, by rank."""
        return [self.lab.hosts[node.host] for node in record.nodes]

    def refresh(self, timeout_s: float = 30.0) -> dict[str, ClusterStatus]:
        records = status.status(self.session, refresh_first=True, timeout_s=timeout_s)
        return {record.name: record.status for record in records}

    @property
    def held(self) -> set[str]:
        return {host for _, host in self.session.store.claims()}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    lab = ScriptedLab(3)
    home = tmp_path / "sky"
    home.mkdir(mode=0o700)
    home.joinpath("ssh_node_pools.yaml").write_text(lab.pool_yaml())
    home.joinpath("config.yaml").write_text("provision:\n  timeout_s: 2\nagent:\n  call_timeout_s: 2\n")
    clock = Clock()
    session = Session(home, transports=Wires(lab, Doom()), clock=clock)
    yield Place(lab=lab, session=session, clock=clock)
    session.close()


def _wipe(host: ScriptedHost) -> None:
    """Somebody removed everything and ended all processes."""
    with host.lab.changed:
        host.kill(list(host.processes.values()))
        host.files.clear()


def test_a_host_that_is_cut_off_makes_the_cluster_unreachable_since_then(place: Place) -> None:
    """Nothing is dropped, the time it began stays, its usage goes on, and it is UP again when it answers."""
    place.launch()
    head = place.hosts(place.session.require("a"))[0]
    head.cut()
    assert place.refresh() == {"a": UNREACHABLE}
    since = place.session.require("a").status_since
    place.clock.ahead += 100
    assert place.refresh() == {"a": UNREACHABLE}
    assert place.session.require("a").status_since == since
    assert len(place.held) == 2
    head.mend()
    assert place.refresh() == {"a": UP}
    assert [span.end for span in place.session.store.history()[0].intervals] == [None]


def test_a_worker_that_is_cut_off_makes_it_init(place: Place) -> None:
    """The head answers, a rank is missing."""
    record = place.launch()
    place.hosts(record)[1].cut()
    assert place.refresh() == {"a": INIT}
    assert len(place.held) == 2


def test_a_wiped_cluster_is_gone(place: Place) -> None:
    """Every host was reached and has nothing: it is history, its hosts are free, the event says why, the usage ended."""
    record = place.launch()
    for host in place.hosts(record):
        _wipe(host)
    assert place.refresh() == {}
    store = place.session.store
    assert place.held == set()
    assert [life.ended_at is not None for life in store.history()] == [True]
    last = store.events("a")[-1]
    assert (last.kind, last.details["from"], last.details["to"]) == ("status", "UP", None)
    assert "every host was reached" in str(last.details["reason"])
    assert [span.end is None for span in store.history()[0].intervals] == [False]


def test_a_wiped_host_and_one_that_is_cut_off_are_a_doubt(place: Place) -> None:
    """The head has nothing any more, but the worker cannot be asked: nothing is dropped until it can."""
    head, worker = place.hosts(place.launch())
    _wipe(head)
    worker.cut()
    assert place.refresh() == {"a": UNREACHABLE}
    assert len(place.held) == 2
    worker.mend()
    assert place.refresh() == {"a": INIT}
    _wipe(worker)
    assert place.refresh() == {}


def test_accounts_of_another_cluster_have_nothing_of_this_one(place: Place) -> None:
    """A mark that names another cluster is no mark of ours; one that cannot be read is a doubt."""
    hosts = place.hosts(place.launch())
    for host in hosts:
        _wipe(host)
        host.files[host.layout.cluster_json] = b'{"cluster_id": "another"'
    assert place.refresh() == {"a": UNREACHABLE}
    for host in hosts:
        host.files[host.layout.cluster_json] += b"}"
    assert place.refresh() == {}


def test_a_process_that_is_left_keeps_the_record(place: Place) -> None:
    """The files are gone, a process of the cluster is not: that is a broken cluster."""
    hosts = place.hosts(place.launch())
    for host in hosts:
        with place.lab.changed:
            host.files.clear()
            host.kill([each for each in host.processes.values() if each.kind == "agent"])
    assert place.refresh() == {"a": INIT}


def test_a_probe_that_fails_oddly_is_a_doubt(place: Place) -> None:
    """A host that answers with an error has not said that it has nothing."""
    hosts = place.hosts(place.launch())
    for host in hosts:
        _wipe(host)
    odd = Completed(returncode=3, stdout=b"", stderr=b"no /proc here")
    hosts[1].transport.rules.insert(0, Rule(lambda command: kind_of(command) == "trace", odd))
    assert place.refresh() == {"a": UNREACHABLE}


def test_gone_is_asked_twice(place: Place) -> None:
    """Between the look and the lock something came back: it stays."""
    hosts = place.hosts(place.launch())
    for host in hosts:
        _wipe(host)
    asked: list[Command] = []

    def answer(call: object) -> bytes:
        asked.append(call.command)  # type: ignore[attr-defined]
        return b"root yes\nprocesses %d\nmark none\n" % (len(asked) > 1)

    hosts[1].transport.rules.insert(0, Rule(lambda command: kind_of(command) == "trace", answer))
    assert place.refresh() == {"a": UP}
    assert len(asked) == 2


def test_it_stopped_by_itself_at_the_time_the_node_says(place: Place) -> None:
    """STOPPED since then, and in use until then."""
    place.launch(idle_minutes=5)
    head = place.hosts(place.session.require("a"))[0]
    assert head.agent is not None
    head.agent.idle()
    stopped = json.loads(head.files[f"{head.layout.sky}/stopped.json"])["at"]
    place.clock.ahead += 1000
    assert place.refresh() == {"a": STOPPED}
    assert place.session.require("a").status_since == stopped
    assert [span.end for span in place.session.store.history()[0].intervals] == [stopped]
    assert len(place.held) == 2


def test_it_stopped_by_itself_and_is_released(place: Place) -> None:
    """With down the hosts are free, and it was in use until the node stopped it, not until somebody looked."""
    place.launch(idle_minutes=5, down=True)
    head = place.hosts(place.session.require("a"))[0]
    assert head.agent is not None
    head.agent.idle()
    stopped = json.loads(head.files[f"{head.layout.sky}/stopped.json"])["at"]
    place.clock.ahead += 1000
    assert place.refresh() == {}
    assert place.held == set()
    assert [span.end for span in place.session.store.history()[0].intervals] == [stopped]
    assert place.session.store.open_intents() == []


def test_a_release_that_is_not_clean_is_gone_on_with(place: Place) -> None:
    """A worker is cut off: nothing is dropped, the intent says until when it was in use, and the next refresh ends it."""
    place.launch(idle_minutes=5, down=True)
    head, worker = place.hosts(place.session.require("a"))
    assert head.agent is not None
    head.agent.idle()
    stopped = json.loads(head.files[f"{head.layout.sky}/stopped.json"])["at"]
    worker.cut()
    place.clock.ahead += 1000
    assert place.refresh() == {"a": AUTOSTOPPING}
    (intent,) = place.session.left_intents("a")
    assert (intent.operation, intent.details["used_until"]) == ("release", stopped)
    assert len(place.held) == 2
    worker.mend()
    assert place.refresh() == {}
    assert [span.end for span in place.session.store.history()[0].intervals] == [stopped]
    assert place.session.store.open_intents() == []


def test_what_stopped_while_it_could_not_be_reached_stopped_then(place: Place) -> None:
    """UNREACHABLE, later found stopped: in use until the node says, though the doubt began before."""
    place.launch(idle_minutes=5)
    head = place.hosts(place.session.require("a"))[0]
    head.cut()
    assert place.refresh() == {"a": UNREACHABLE}
    since = place.session.require("a").status_since
    head.mend()
    assert head.agent is not None
    head.agent.idle()
    stopped = json.loads(head.files[f"{head.layout.sky}/stopped.json"])["at"]
    place.clock.ahead += 1000
    assert place.refresh()["a"] is STOPPED
    assert [span.end for span in place.session.store.history()[0].intervals] == [stopped]
    assert stopped >= since


def test_a_cluster_that_an_operation_is_on_is_left_alone(place: Place) -> None:
    """However it looks: the operation knows better. A read does not wait for it."""
    record = place.launch()
    for host in place.hosts(record):
        _wipe(host)
    entered, leave = threading.Event(), threading.Event()

    def operate() -> None:
        with place.session.hold("a", "launch"):
            entered.set()
            leave.wait(30)

    thread = threading.Thread(target=operate)
    thread.start()
    try:
        assert entered.wait(10)
        with pytest.raises(ClusterBusy), place.session.hold("a", "down", 0.0):
            pass
        assert place.refresh() == {"a": UP}
    finally:
        leave.set()
        thread.join()
    assert place.refresh() == {}


def test_what_a_dead_process_began_is_settled_before_anything_else(place: Place) -> None:
    """A stop whose process died: left as it was, but for a doubt, while a host is cut off; done when it can be."""
    record = place.launch()
    head, worker = place.hosts(record)
    place.session.store.begin_intent("stop", "a", {"cluster_id": record.cluster_id})
    worker.cut()
    assert place.refresh() == {"a": UP}
    head.cut()
    assert place.refresh() == {"a": UNREACHABLE}
    head.mend()
    worker.mend()
    assert place.refresh() == {"a": STOPPED}
    assert place.session.store.open_intents() == []


def test_verbs_that_reach_an_unreachable_cluster_work(place: Place) -> None:
    """queue, exec and cancel ask it again; exec makes it UP. One that cannot be reached refuses, and stays."""
    record = place.launch()
    head = place.hosts(record)[0]
    head.cut()
    assert place.refresh() == {"a": UNREACHABLE}
    with pytest.raises(ClusterNotUp) as caught:
        execute.exec_(place.session, "true", "a")
    assert caught.value.status is UNREACHABLE
    head.mend()
    assert [job.job_id for job in execute.queue(place.session, "a")] == [1]
    assert place.session.require("a").status is UNREACHABLE
    assert execute.exec_(place.session, "true", "a").job_id == 2
    assert place.session.require("a").status is UP


def _forget_up(place: Place, record: ClusterRecord, status: ClusterStatus = INIT) -> None:
    """The record as a launch has it before its cluster is known to stand; the worker's agent is not there yet."""
    nodes = tuple(attrs.evolve(node, ray_node_id="", runtime_digest="") for node in record.nodes)
    half = attrs.evolve(record, status=status, nodes=nodes, ray_port=0, dashboard_port=0, ray_version="")
    place.session.store.save_cluster(half)
    for node in record.nodes:
        digest = f"{node.runtime_digest}\n".encode()
        place.lab.hosts[node.host].files[f"{node.env}/.skylib-digest"] = digest
    worker = place.hosts(record)[1]
    with place.lab.changed:
        worker.kill([each for each in worker.processes.values() if each.kind == "agent"])


def test_a_half_made_cluster_that_is_seen_whole_is_completed(place: Place) -> None:
    """All that its launch would have written down is known then, and an agent runs on every node."""
    whole = place.launch()
    _forget_up(place, whole)
    assert place.refresh() == {"a": UP}
    assert attrs.evolve(place.session.require("a"), status_since=whole.status_since) == whole
    assert [host.kinds(whole.cluster_id) for host in place.hosts(whole)] == [["agent", "ray"]] * 2


@pytest.mark.parametrize("known", [INIT, UNREACHABLE])
def test_a_half_made_cluster_that_cannot_be_completed_is_init(place: Place, known: ClusterStatus) -> None:
    """Ray has all nodes, but a node's files do not tell its ports: exec refuses, and a refresh goes on once they do."""
    record = place.launch()
    _forget_up(place, record, known)
    worker = place.hosts(record)[1]
    ports = worker.files.pop(worker.layout.ray_port_json)
    with pytest.raises(ClusterNotUp) as caught:
        execute.exec_(place.session, "true", "a")
    assert caught.value.status is INIT
    assert place.refresh() == {"a": INIT}
    assert place.session.require("a").ray_port == 0
    worker.files[worker.layout.ray_port_json] = ports
    assert place.refresh() == {"a": UP}
    assert place.session.require("a").ray_port == record.ray_port


def test_exec_completes_a_half_made_cluster_that_is_back(place: Place) -> None:
    """It was UNREACHABLE, answers again, and takes the job as any other."""
    whole = place.launch()
    _forget_up(place, whole, UNREACHABLE)
    assert execute.exec_(place.session, "true", "a").job_id == 2
    assert place.session.require("a").ray_port == whole.ray_port
    assert place.hosts(whole)[1].kinds(whole.cluster_id) == ["agent", "ray"]


def test_exec_refuses_a_cluster_that_is_stopped_while_it_looks(place: Place) -> None:
    """What it found of an UNREACHABLE cluster is not what the cluster is by now."""
    record = place.launch()
    store = place.session.store
    doubtful = store.settle("a", UNREACHABLE, at=place.clock(), cluster_id=record.cluster_id)
    head = place.hosts(record)[0]

    def stop(command: Command) -> bool:
        """Somebody stops it the moment that its head is asked."""
        if store.cluster("a") == doubtful:
            store.settle("a", STOPPED, at=place.clock(), cluster_id=record.cluster_id)
        return False

    place.session.forget_agent(record.cluster_id)
    head.transport.rules.insert(0, Rule(stop, b""))
    with pytest.raises(ClusterNotUp) as caught:
        execute.exec_(place.session, "true", "a")
    assert caught.value.status is STOPPED


def test_an_unreachable_cluster_that_is_purged_was_in_use_until_the_doubt(place: Place) -> None:
    """What nobody saw is not counted."""
    place.launch()
    head = place.hosts(place.session.require("a"))[0]
    head.cut()
    place.refresh()
    since = place.session.require("a").status_since
    place.clock.ahead += 1000
    lifecycle.down(place.session, "a", purge=True)
    assert [span.end for span in place.session.store.history()[0].intervals] == [since]


def _hang(host: ScriptedHost, kind: str, until: threading.Event) -> None:
    """From now on that command does not answer before `until`."""

    def wait(call: object) -> bytes:
        until.wait(60)
        raise ConnectError("nobody listens any more")

    def talk(channel: object) -> int:
        until.wait(60)
        return 1

    rule = Rule(lambda command: kind_of(command) == kind, wait, talk=talk if kind == "bridge" else None)
    host.transport.rules.insert(0, rule)


def test_a_host_that_does_not_answer_delays_no_other_and_not_beyond_the_bound(place: Place) -> None:
    """Two clusters: the dead one is UNREACHABLE after timeout_s, the other is as it is."""
    dead = place.launch("dead", nodes=1)
    place.launch("living", nodes=1)
    until = threading.Event()
    place.session.forget_agent(dead.cluster_id)
    _hang(place.hosts(dead)[0], "bridge", until)
    began = time.monotonic()
    try:
        found = place.refresh(timeout_s=1.0)
        took = time.monotonic() - began
    finally:
        until.set()
    assert found == {"dead": UNREACHABLE, "living": UP}
    assert 1.0 <= took < 10


def test_what_is_late_writes_nothing(place: Place) -> None:
    """Logs that come home too slowly: the verb returns, and what goes on finds that it may not write any more."""
    place.launch(idle_minutes=5, down=True)
    head = place.hosts(place.session.require("a"))[0]
    assert head.agent is not None
    head.agent.idle()
    until = threading.Event()
    _hang(head, "end", until)
    assert place.refresh(timeout_s=1.0) == {"a": AUTOSTOPPING}
    changes = _everything(place.session)
    until.set()
    _wait_for_threads()
    assert _everything(place.session) == changes
    assert len(place.held) == 2
    assert [intent.operation for intent in place.session.left_intents()] == ["release"]
    del head.transport.rules[0]
    lifecycle.down(place.session, "a")
    assert place.refresh() == {}


def test_a_thread_that_is_late_begins_nothing_more(place: Place) -> None:
    """The head's channel breaks long after the verb has returned: no host is asked anything then."""
    record = place.launch()
    place.session.forget_agent(record.cluster_id)
    head = place.hosts(record)[0]
    until = threading.Event()
    _hang(head, "bridge", until)
    assert place.refresh(timeout_s=0.5) == {"a": UNREACHABLE}
    place.session.close()
    calls = [len(host.transport.calls) for host in place.lab.hosts.values()]
    until.set()
    _wait_for_threads()
    assert [len(host.transport.calls) for host in place.lab.hosts.values()] == calls


def _everything(session: Session) -> tuple[object, ...]:
    store = session.store
    return store.clusters(), store.claims(), store.events("a"), store.history(), store.open_intents()


def _wait_for_threads() -> None:
    deadline = time.monotonic() + 30
    while any(thread.name.startswith("skylib-fanout") for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_stopped_clusters_and_those_without_nodes_are_not_asked(place: Place) -> None:
    """Nobody is there to ask."""
    place.launch()
    lifecycle.stop(place.session, "a")
    place.session.store.begin_launch(cluster_record("b", nodes=()))
    calls = [len(host.transport.calls) for host in place.lab.hosts.values()]
    assert place.refresh() == {"a": STOPPED, "b": INIT}
    assert [len(host.transport.calls) for host in place.lab.hosts.values()] == calls


def test_a_hundred_dead_hosts_hold_up_no_living_one(tmp_path: Path) -> None:
    """Of 140 clusters 100 hang: the others' answers come within the bound, in the order that was asked for."""
    until = threading.Event()

    class Wire:
        """Hangs, or is not there at all."""

        def __init__(self, host: str) -> None:
            self.host = host

        def run(self, command: Command, **options: object) -> Completed:
            assert not self.host.startswith("dead") or until.wait(60)
            return Completed(returncode=0, stdout=b"root yes\nprocesses 0\nmark none\n", stderr=b"")

        def open(self, command: Command) -> object:
            assert not self.host.startswith("dead") or until.wait(60)
            raise AgentError("no agent")

        def close(self) -> None:
            pass

    class Wires:
        def get(self, address: HostAddress) -> Wire:
            return Wire(address.host)

        def close(self) -> None:
            pass

    session = Session(tmp_path / "sky", transports=Wires())  # type: ignore[arg-type]
    names = [f"dead{number}" for number in range(100)] + [f"gone{number}" for number in range(40)]
    for number, name in enumerate(names):
        node = node_record(address=HostAddress(kind="ssh", host=name))
        record = cluster_record(name, nodes=(node,), launched_at=1000.0 - number)
        session.store.begin_launch(attrs.evolve(record, status=INIT))
    try:
        found = status.status(session, refresh_first=True, timeout_s=8.0)
    finally:
        until.set()
    assert [record.name for record in found] == names[:100]
    assert {record.status for record in found} == {UNREACHABLE}
    _wait_for_threads()
    session.close()


def test_the_waiting_ends_whatever_there_is(place: Place) -> None:
    """With no time at all nothing is asked for long, and nothing is dropped."""
    place.launch()
    assert place.refresh(timeout_s=0.001)["a"] in (UP, UNREACHABLE)
    assert place.refresh() == {"a": UP}
