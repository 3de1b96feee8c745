"""Clients that die anywhere, connections that are lost, hosts that reboot: what is left is always finished or undone."""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs
import pytest
from hypothesis import currently_in_test_context, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from skylib.errors import ClusterNotFound, ClusterNotUp, InvalidSpecError, NoCapacityError, NoOfferError, SkyError
from skylib.models.cluster import AutostopRecord, ClusterRecord, ClusterStatus
from skylib.models.resources import Resources
from skylib.models.task import Task
from skylib.ops import execute, launch, lifecycle, status
from skylib.ops.reconcile import reconcile
from skylib.paths import SkyHome
from skylib.session import Session
from skylib.state.sqlite import SqliteStore
from tests.doom import Doom, End, Killed, Point, Wires, doomed_store
from tests.scripted_node import ScriptedLab

MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
HOMES = ("x", "y")
HOSTS = ("h1", "h2", "h3", "h4")
_LOOK = ("bridge", "send hello", "send info", "send ready", "true", "cat")
_BRING_UP = (
    *("probe", "store begin_launch", "store claim_hosts", "store save_cluster", "claim", "put", "ray", "daemon", "bridge"),
    *("send hello", "send ready", "store settle", "store settle_intent"),
)
_ENDING = ("send cancel", "send queue", "send logs", "store save_jobs", "end", "store settle", "store settle_intent", "wake")
# What each verb does that others can see; it may end at any of these.
_WHATS = {
    "launch": ("store begin_intent", *_BRING_UP, "send submit", "release", "store remove_cluster"),
    "exec": ("store begin_intent", "bridge", "send hello", "send submit", "store settle_intent"),
    "stop": ("store begin_intent", *_ENDING),
    "start": ("store begin_intent", *_BRING_UP, "end", "cat"),
    "down": ("store begin_intent", *_ENDING, "release", "store remove_cluster"),
    "autostop": ("store begin_intent", "send autostop", "store settle", "store settle_intent"),
    "reconcile": (*_LOOK, *_ENDING, "release", "store remove_cluster", "send autostop"),
    "status": (*_LOOK, "store settle", "end", "release", "store remove_cluster", "store begin_intent"),
}
_PLACES = (("x", "a"), ("x", "a"), ("x", "b"), ("y", "a"))  # home, cluster

_homes = st.sampled_from(HOMES)
_places = st.sampled_from(_PLACES)
_hosts = st.sampled_from(HOSTS)
_scripts = st.sampled_from(["true", "sleep"])
_which = st.integers(0, 2)
_timers = st.sampled_from([None, (5, False), (5, True)])


def _points(verb: str) -> st.SearchStrategy[Point | None]:
    """Where the verb's client ends; None: it lives."""
    ends = [
        Point(what, number, end)
        for what in _WHATS[verb]
        for end in End
        for number in (1, 2)
        if what != "send logs" or "lost" not in end.value  # is waited out: 3 s
    ]
    return st.sampled_from([*[None] * (len(ends) // 3), *ends])


@attrs.define
class Caller:
    """A client of one home, until it dies."""

    session: Session
    doom: Doom

    @classmethod
    def of(cls, home: Path, lab: ScriptedLab) -> Caller:
        doom = Doom()
        store = doomed_store(SqliteStore(SkyHome(home)), doom)
        return cls(session=Session(home, transports=Wires(lab, doom), store=store), doom=doom)


@pytest.fixture(scope="module", autouse=True)
def quiet_deaths() -> Iterator[None]:
    """A thread of a client that has died says nothing."""
    before = threading.excepthook
    threading.excepthook = lambda args: None if args.exc_type is Killed else before(args)
    yield
    threading.excepthook = before


class CrashMachine(RuleBasedStateMachine):
    """Two homes of one pool of four hosts; one verb at a time, any of which may be its client's last."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory(dir=MEMORY)
        self.lab = ScriptedLab(len(HOSTS))
        self.callers: dict[str, Caller] = {}
        self.met = False
        for name in HOMES:
            self._make_home(Path(self.folder.name, name))

    def _make_home(self, home: Path) -> None:
        home.mkdir(mode=0o700)
        home.joinpath("ssh_node_pools.yaml").write_text(self.lab.pool_yaml())
        home.joinpath("config.yaml").write_text("provision:\n  timeout_s: 60\n")
        self.callers[home.name] = Caller.of(home, self.lab)

    @property
    def whole(self) -> bool:
        """Every host is reached."""
        return all(host.up for host in self.lab.hosts.values())

    def _call(self, home: str, point: Point | None, verb: str, act: object, *refusals: type[SkyError]) -> None:
        """One verb. When nothing goes wrong on its way, it works, or refuses as it may."""
        caller = self.callers[home]
        caller.doom.arm(point)
        try:
            act(caller.session)  # type: ignore[operator]
        except Killed:
            pass
        except SkyError as error:
            if self.whole and not caller.doom.met and not isinstance(error, refusals):
                raise
        self.met = caller.doom.met
        if caller.doom.met and point is not None and currently_in_test_context():
            event(f"{verb}: {point.end.value} {point.what}")
        caller.doom.arm(None)
        if caller.doom.dead:
            caller.session.close()
            self.callers[home] = Caller.of(Path(self.folder.name, home), self.lab)

    @initialize(nodes=st.integers(1, 2), run=_scripts, timer=_timers)
    def first(self, nodes: int, run: str, timer: tuple[int, bool] | None) -> None:
        """Something stands."""
        self.launch(_PLACES[0], nodes, run, timer, None)

    @rule(
        place=_places,
        nodes=st.integers(1, 2),
        run=_scripts,
        timer=_timers,
        point=_points("launch"),
    )
    def launch(
        self, place: tuple[str, str], nodes: int, run: str, timer: tuple[int, bool] | None, point: Point | None
    ) -> None:
        home, name = place
        task = Task(run=run, num_nodes=nodes, resources=Resources(infra="ssh/lab"))
        idle, down = timer or (None, False)
        options = launch.Options(idle_minutes=idle, down=down)
        refusals = (NoCapacityError, NoOfferError, InvalidSpecError, ClusterNotUp)
        self._call(home, point, "launch", lambda session: launch.launch(session, task, name, options), *refusals)

    @rule(which=_which, key=st.sampled_from([None, "k"]), point=_points("exec"))
    def exec_(self, which: int, key: str | None, point: Point | None) -> None:
        home, name = self._cluster(which)
        refusals = (ClusterNotFound, ClusterNotUp)
        if self._broken(home, name):
            refusals = (SkyError,)  # type: ignore[assignment]
        self._call(home, point, "exec", lambda session: execute.exec_(session, "true", name, key=key), *refusals)

    @rule(which=_which, point=_points("stop"))
    def stop(self, which: int, point: Point | None) -> None:
        home, name = self._cluster(which)
        self._call(home, point, "stop", lambda session: lifecycle.stop(session, name), ClusterNotFound)

    @rule(which=_which, point=_points("start"))
    def start_(self, which: int, point: Point | None) -> None:
        home, name = self._cluster(which, ClusterStatus.STOPPED)
        self._call(home, point, "start", lambda session: lifecycle.start(session, name), ClusterNotFound)

    @rule(which=_which, point=_points("down"))
    def down(self, which: int, point: Point | None) -> None:
        home, name = self._cluster(which)
        self._call(home, point, "down", lambda session: lifecycle.down(session, name), ClusterNotFound)

    @rule(which=_which, idle=st.sampled_from([5.0, -1.0]), down=st.booleans(), point=_points("autostop"))
    def autostop(self, which: int, idle: float, down: bool, point: Point | None) -> None:
        home, name = self._cluster(which)
        refusals = (SkyError,) if self._broken(home, name) else (ClusterNotFound, ClusterNotUp)
        timer = AutostopRecord(idle_minutes=idle, down=down) if idle >= 0 else None
        act = lambda session: lifecycle.autostop(session, name, timer)  # noqa: E731
        self._call(home, point, "autostop", act, *refusals)

    @rule(home=_homes, point=_points("reconcile"))
    def reconcile(self, home: str, point: Point | None) -> None:
        self._call(home, point, "reconcile", lambda session: reconcile(session))

    @rule(home=_homes, point=_points("status"))
    def refresh(self, home: str, point: Point | None) -> None:
        self._call(home, point, "status", lambda session: status.status(session, refresh_first=True))

    @rule(host=_hosts, what=st.sampled_from(["cut", "mend", "mend", "reboot"]))
    def happens(self, host: str, what: str) -> None:
        """To a host; what is mended is everything."""
        for each in self.lab.hosts.values() if what == "mend" else [self.lab.hosts[host]]:
            getattr(each, what)()

    @rule()
    def time_passes(self) -> None:
        for host in self.lab.hosts.values():
            if host.agent is not None:
                host.agent.idle()

    def _cluster(self, which: int, status: ClusterStatus | None = None) -> tuple[str, str]:
        """Home and name of one that exists, of one with that status if there is any; of none when none exists."""
        known = [(home, record) for home, caller in self.callers.items() for record in caller.session.store.clusters()]
        fitting = [(home, record.name) for home, record in known if status in (None, record.status)]
        found = fitting or [(home, record.name) for home, record in known]
        return found[which % len(found)] if found else _PLACES[0]

    def _broken(self, home: str, name: str) -> bool:
        """Whether the cluster is not what its record says."""
        record = self.callers[home].session.store.cluster(name)
        return record is not None and any(self._kinds(record, node.host) != ["agent", "ray"] for node in record.nodes)

    def _kinds(self, record: ClusterRecord, host: str) -> list[str]:
        return self.lab.hosts[host].kinds(record.cluster_id)

    @invariant()
    def no_host_serves_two(self) -> None:
        assert self.lab.wrong == []

    def teardown(self) -> None:
        try:
            self.happens(HOSTS[0], "mend")
            self._settle_all()
            self._judge()
            self._take_all_down()
        finally:
            for caller in self.callers.values():
                caller.session.close()
            shutil.rmtree(self.folder.name, ignore_errors=True)

    def _settle_all(self) -> None:
        for caller in self.callers.values():
            status.status(caller.session, refresh_first=True)
            reconcile(caller.session)

    def _judge(self) -> None:
        """Each record has its hosts claimed; what is UP is marked and runs there, what is STOPPED does not run; nothing else
        has anything anywhere.

        INIT is a launch or start that told its caller why it failed and could not take everything away, or a cluster
        whose host rebooted; what became of a job there is not known before it is started or taken down.
        """
        known: dict[str, ClusterRecord] = {}
        for caller in self.callers.values():
            store = caller.session.store
            records = store.clusters()
            known.update({record.cluster_id: record for record in records})
            wanted = {(record.infra, node.host): record.name for record in records for node in record.nodes}
            assert store.claims() == wanted
            broken = {record.name for record in records if record.status is ClusterStatus.INIT}
            assert [intent for intent in store.open_intents() if intent.cluster not in broken] == []
        for record in known.values():
            assert record.status in (ClusterStatus.UP, ClusterStatus.STOPPED, ClusterStatus.INIT)
            for node in record.nodes:
                mark = self.lab.hosts[node.host].mark()
                kinds = self._kinds(record, node.host)
                if record.status is ClusterStatus.UP:
                    assert kinds == ["agent", "ray"]
                    assert mark is not None
                    assert mark["cluster_id"] == record.cluster_id
                if record.status is ClusterStatus.STOPPED:
                    assert set(kinds) <= {"asleep"}  # woken to be read; it leaves by itself when nobody reads
        for host in self.lab.hosts.values():
            mark = host.mark()
            assert mark is None or mark["cluster_id"] in known
            assert host.serves() <= set(known)

    def _take_all_down(self) -> None:
        for caller in self.callers.values():
            for record in caller.session.store.clusters():
                lifecycle.down(caller.session, record.name)
            assert caller.session.store.claims() == {}
            assert caller.session.store.open_intents() == []
            for life in caller.session.store.history():
                assert [span for span in life.intervals if span.end is None] == []
        assert {name: host.left() for name, host in self.lab.hosts.items() if host.left()} == {}
        assert self.lab.wrong == []


def _acts(machine: CrashMachine, verb: str, point: Point | None) -> None:
    """The verb on cluster a of home x."""
    acts = {
        "launch": lambda: machine.launch(_PLACES[0], 2, "true", (5, False), point),
        "exec": lambda: machine.exec_(0, "k", point),
        "stop": lambda: machine.stop(0, point),
        "start": lambda: machine.start_(0, point),
        "down": lambda: machine.down(0, point),
        "autostop": lambda: machine.autostop(0, 5.0, True, point),
        "reconcile": lambda: machine.reconcile("x", point),
        "status": lambda: machine.refresh("x", point),
    }
    acts[verb]()


def _before(machine: CrashMachine, verb: str) -> None:
    """What the verb begins from: for reconcile a down that died in the middle, for status a cluster that gave itself up."""
    if verb == "launch":
        return
    machine.launch(_PLACES[0], 2, "true", (5, True), None)
    if verb == "start":
        machine.stop(0, None)
    elif verb == "reconcile":
        machine.down(0, Point("end", 1, End.KILLED_BEFORE))
    elif verb == "status":
        machine.time_passes()


@pytest.mark.parametrize("verb", _WHATS)
def test_every_single_crash(verb: str):
    """A verb whose client dies at any of its points, before or after the act: what follows works, and nothing is left."""
    draw = random.Random(verb)
    met = set()
    for what in _WHATS[verb]:
        for end in (End.KILLED_BEFORE, End.KILLED_AFTER):
            machine = CrashMachine()
            following = draw.choice(["launch", "down", "reconcile", "status", verb])
            print(f"{verb} {end.value} {what}, then {following}")  # the last one is shown with a failure
            _before(machine, verb)
            _acts(machine, verb, Point(what, 1, end))
            if machine.met:
                met.add(what)
            machine.happens(HOSTS[0], "mend")
            _acts(machine, following, None)
            machine.teardown()
    assert len(met) > len(_WHATS[verb]) / 3, met


TestCrashes = CrashMachine.TestCase
TestCrashes.settings = settings(max_examples=60, stateful_step_count=16, deadline=None)
