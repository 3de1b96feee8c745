"""The session: parts made late, a journal for each verb, a name that stays."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import threading
from pathlib import Path

import pytest

from skylib.client import Client
from skylib.errors import ClusterNotFound, ConfigError, InvalidSpecError, StateError
from skylib.events import Event
from skylib.models.node import HostAddress
from skylib.models.task import Task
from skylib.runtime.layout import NodeLayout
from skylib.session import Session
from skylib.transport.command import Command
from skylib.transport.fanout import fanout
from tests.processes import Child
from tests.records import cluster_record, node_record


def test_each_verb_has_a_journal_of_its_own(tmp_path: Path):
    """An operation's events stand as JSON lines in one file under logs/, the failing step with its error and seconds."""
    session = Session(tmp_path / "sky")
    with pytest.raises(ClusterNotFound), session.operation("down", "train"):
        session.require("train")
    (path,) = (tmp_path / "sky" / "logs").iterdir()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["step"], line["phase"]) for line in lines] == [("down", "started"), ("down", "failed")]
    assert lines[-1]["seconds"] >= 0
    assert "ClusterNotFound" in lines[-1]["facts"]["error"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_callers_sink_sees_the_same_events(tmp_path: Path):
    """events= gets each Event as a value while the verb runs."""
    seen: list[Event] = []
    session = Session(tmp_path / "sky", events=seen.append)
    with session.operation("check"):
        assert [event.step for event in seen] == ["check"]
    assert [event.phase.value for event in seen] == ["started", "finished"]


def test_the_client_hash_is_made_once_per_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two sessions of a home share the hash; another home has another; $SKYPILOT_USER_ID has its way."""
    first, again, other = (Session(tmp_path / name).user_hash for name in ("a", "a", "b"))
    assert first == again
    assert first != other
    assert len(first) == 8
    monkeypatch.setenv("SKYPILOT_USER_ID", "deadbeef")
    assert Session(tmp_path / "a").user_hash == "deadbeef"


def test_an_unknown_cluster_is_told_with_those_that_exist(tmp_path: Path):
    """ClusterNotFound carries the known names."""
    with pytest.raises(ClusterNotFound) as caught:
        Session(tmp_path / "sky").require("nobody")
    assert caught.value.known == ()


def test_nodes_that_are_local_to_another_machine_cannot_be_reached_from_here(tmp_path: Path):
    """Hosts of SSH can, and this machine, by whichever name; a cluster without nodes is nowhere else."""
    session = Session(tmp_path / "sky")
    for kind, host, expected in [("ssh", "far", True), ("local", "localhost", True), ("local", session.machine, True)]:
        node = node_record(address=HostAddress(kind=kind, host=host))
        assert session.can_reach(cluster_record(nodes=(node,))) is expected
    elsewhere = node_record(address=HostAddress(kind="local", host="another"))
    assert not session.can_reach(cluster_record(nodes=(elsewhere,)))
    assert session.can_reach(cluster_record(nodes=()))


def test_closing_twice_and_using_again_is_fine(tmp_path: Path):
    """A closed session opens anew when it is used."""
    session = Session(tmp_path / "sky")
    assert session.store.clusters() == []
    session.close()
    session.close()
    assert session.store.clusters() == []


def test_an_intent_is_open_while_it_is_acted_on_and_settled_after(tmp_path: Path):
    """Inside the block it stands in the store with its details; after it, it is done."""
    session = Session(tmp_path / "sky")
    with session.intent("stop", "train", cluster_id="id-1"):
        (intent,) = session.store.open_intents("train")
        assert (intent.operation, intent.details["cluster_id"]) == ("stop", "id-1")
    assert session.store.open_intents() == []


def test_an_operation_that_failed_has_told_its_caller_and_leaves_no_intent(tmp_path: Path):
    """An exception settles the intent: who raised it has cleaned up."""
    session = Session(tmp_path / "sky")
    with pytest.raises(ClusterNotFound), session.intent("stop", "train"):
        raise ClusterNotFound("no")
    assert session.store.open_intents() == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), StateError("the disk is full")], ids=repr)
def test_an_operation_that_was_stopped_short_leaves_its_intent_to_the_next(tmp_path: Path, error: BaseException):
    """Nobody finished or undid it: it is open, and left to this session, too."""
    session = Session(tmp_path / "sky")
    with pytest.raises(type(error)), session.intent("stop", "train"):
        raise error
    assert [each.operation for each in session.left_intents("train")] == ["stop"]


def test_an_operation_that_has_undone_itself_settles_its_intent(tmp_path: Path):
    """Ctrl-C or not: what the operation says itself is what came of it."""
    session = Session(tmp_path / "sky")

    def launch() -> None:
        with session.intent("launch", "train") as intent:
            session.settle_intent(intent, "undone")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launch()
    assert session.store.open_intents() == []


@pytest.mark.parametrize("operation", ["exec", "cancel"])
def test_what_the_agent_does_in_one_step_is_never_stopped_short(tmp_path: Path, operation: str):
    """Ctrl-C leaves nothing of a submission to finish or undo."""
    session = Session(tmp_path / "sky")
    with pytest.raises(KeyboardInterrupt), session.intent(operation, "train"):
        raise KeyboardInterrupt
    assert session.store.open_intents() == []


def test_an_operation_that_told_nobody_leaves_its_intent_to_the_next(tmp_path: Path):
    """After an error that the caller names the intent stays open, and is nobody's."""
    session = Session(tmp_path / "sky")
    with pytest.raises(TimeoutError), session.intent("release", "train", (TimeoutError,)):
        raise TimeoutError
    assert [each.operation for each in session.left_intents("train")] == ["release"]


def test_a_session_does_not_take_its_own_intents_for_left_ones(tmp_path: Path):
    """What this session is at is not left; what another began under the lock is, to whoever holds the lock now."""
    session, other = Session(tmp_path / "sky"), Session(tmp_path / "sky")
    with session.intent("stop", "train"):
        assert session.left_intents("train") == []
        assert [each.operation for each in other.left_intents("train")] == ["stop"]


def test_an_intent_without_the_lock_is_left_when_its_process_is_gone(tmp_path: Path):
    """exec works without the lock: while its process lives nobody else takes its intent, afterwards anybody does."""
    session, other = Session(tmp_path / "sky"), Session(tmp_path / "sky")
    with session.intent("exec", "train"):
        assert other.left_intents("train") == []
    child = multiprocessing.get_context("fork").Process(target=_die_in_exec, args=(tmp_path / "sky",))
    child.start()
    child.join(20)
    assert [each.operation for each in session.left_intents("train")] == ["exec"]


def test_a_child_forked_within_an_operation_does_not_settle_its_intent(tmp_path: Path):
    """The child leaves the block, and the parent's intent is still open."""
    session = Session(tmp_path / "sky")
    operation = session.intent("stop", "train")
    operation.__enter__()
    pid = os.fork()
    if not pid:
        operation.__exit__(None, None, None)
        os._exit(0)
    os.waitpid(pid, 0)
    assert [each.cluster for each in session.store.open_intents()] == ["train"]
    operation.__exit__(None, None, None)
    assert session.store.open_intents() == []


def _die_in_exec(home: Path) -> None:
    with Session(home).intent("exec", "train"):
        os._exit(0)


def test_each_remote_command_is_in_its_operations_journal(tmp_path: Path):
    """Command (masked), exit code, seconds and bytes stand in the journal, those of worker threads included."""
    session = Session(tmp_path / "sky")
    transport = session.transport(HostAddress(kind="local"))
    command = Command.sh("printf hello; exit 3", env={"TOKEN": "hush"}, masked_env=frozenset({"TOKEN"}))
    with session.operation("status"):
        fanout(lambda number: transport.run(command), range(2))
    transport.run(command)
    (path,) = (tmp_path / "sky" / "logs").iterdir()
    runs = [line for line in map(json.loads, path.read_text().splitlines()) if line["step"] == "transport.run"]
    assert len(runs) == 2
    assert [(run["facts"]["returncode"], run["facts"]["stdout_bytes"]) for run in runs] == [(3, 5)] * 2
    assert all(run["seconds"] > 0 and run["facts"]["host"] == "localhost" for run in runs)
    assert "printf hello" in path.read_text()
    assert "hush" not in path.read_text()


def test_a_child_forked_while_the_session_is_locked_can_use_it(tmp_path: Path):
    """A child forked while another thread makes a part of the session does not wait for that thread."""
    session = Session(tmp_path / "sky")
    held, goes_on = threading.Event(), threading.Event()

    def hold() -> None:
        with session._parts.lock:
            held.set()
            goes_on.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(20)
    child = multiprocessing.get_context("fork").Process(target=lambda: session.config)
    child.start()
    child.join(20)
    stuck = child.is_alive()
    child.kill()
    child.join()
    goes_on.set()
    thread.join()
    assert not stuck
    assert child.exitcode == 0


def _task(text: str) -> Task:
    return Task.from_yaml_str(f"run: x\nconfig:\n{text}", file="task.yaml")


def test_a_tasks_settings_are_those_of_its_own_view(tmp_path: Path):
    """The view has the task's values with file and line; the session it comes from keeps its own."""
    session = Session(tmp_path / "sky", config={"provision": {"timeout_s": 5}})
    view = session.tuned(_task("  provision: {timeout_s: 7}\n  runtime:\n    python: '3.9'\n"))
    assert (view.config.provision.timeout_s, view.config.runtime.python) == (7.0, "3.9")
    assert (session.config.provision.timeout_s, session.config.runtime.python) == (5.0, "")
    explained = view.config.explain("provision.timeout_s")
    assert str(explained.origin) == "task.yaml, line 3"
    assert [str(each.origin) for each in explained.hides] == ["Client(config=...)"]
    assert str(view.config.explain("runtime.python").origin) == "task.yaml, line 5"
    inline = session.tuned(Task(run="x", config={"locks": {"timeout_s": 1}}))
    assert str(inline.config.explain("locks.timeout_s").origin) == "Task(config=...)"


def test_a_tuned_view_shares_everything_else(tmp_path: Path):
    """Store, locks, transports and the channels to agents; a task without settings has no view of its own."""
    session = Session(tmp_path / "sky")
    assert session.tuned(Task(run="x")) is session
    assert session.tuned(Task(run="x", config={"provision": None})).config == session.config
    view = session.tuned(_task("  provision: {timeout_s: 7}\n"))
    transport, layout = view.transport(HostAddress(kind="local")), NodeLayout(root=str(tmp_path))
    agent = view.new_agent("train", "id-1", transport, "/bin/true", layout)
    assert session.new_agent("train", "id-1", transport, "/bin/true", layout) is agent
    assert (view.store, view.locks, view.transports) == (session.store, session.locks, session.transports)
    with view.intent("launch", "train"):
        assert session.left_intents("train") == []
    patient = session.tuned(_task("  agent: {call_timeout_s: 0.5}\n"))
    assert patient.new_agent("train", "id-1", transport, "/bin/true", layout).call_timeout_s == 0.5
    assert agent.call_timeout_s == 60.0


def test_a_forked_child_can_use_a_view_whose_session_was_locked(tmp_path: Path):
    """Session and view share one lock, and a child has a new one in both."""
    session = Session(tmp_path / "sky")
    view = session.tuned(_task("  provision: {timeout_s: 7}\n"))
    with session._parts.lock:
        child = Child(lambda child: [view.locks, session.locks, view.store.clusters()].clear())
        assert child.ended(timeout_s=20) == 0


@pytest.mark.parametrize(
    ("text", "line", "key", "words"),
    [
        ("  ssh:\n    parallel: 3\n", 4, "ssh.parallel", "set it in config.yaml"),
        ("  logs: {keep: 3}\n", 3, "logs.keep", "a task may have provision.timeout_s"),
        ("  provision:\n    timeout: 3\n", 4, "provision.timeout", "nearest valid one is 'provision.timeout_s'"),
        ("  kubernetes: {pod_config: {}}\n", 3, "kubernetes", "unknown key 'kubernetes'"),
        ("  provision: {timeout_s: 0}\n", 3, "provision.timeout_s", "at least 1"),
        ("  provision: [1]\n", 3, "provision", "a map of settings, not a list"),
        ("  runtime: {python: 3.9}\n", 3, "runtime.python", "text, not 3.9"),
        ("  db: postgresql://h/x\n", 3, "db", "cannot be set here"),
    ],
)
def test_what_a_task_cannot_set_is_refused_with_its_place(tmp_path: Path, text: str, line: int, key: str, words: str):
    """File, line and key, as for every other layer; and what to do about our keys that a task cannot have."""
    with pytest.raises(ConfigError) as caught:
        Session(tmp_path / "sky").tuned(_task(text))
    assert (caught.value.file, caught.value.line, caught.value.key) == ("task.yaml", line, key)
    assert words in str(caught.value)


@pytest.mark.parametrize("verb", ["launch", "plan", "exec"])
def test_every_verb_that_takes_a_task_looks_at_its_settings_first(tmp_path: Path, verb: str):
    """Nothing is begun with a task whose config is wrong."""
    client = Client(tmp_path / "sky")
    task = Task(run="x", config={"ssh": {"parallel": 3}})
    with pytest.raises(ConfigError, match="holds for all tasks of a home"):
        getattr(client, verb)(task, "train")
    assert client.status() == []


def test_new_connections_follow_settings_that_were_changed(tmp_path: Path):
    """A host that is known already is reached as the client is set now."""
    client = Client(tmp_path / "sky")
    transport = client._session.transport(HostAddress(kind="ssh", host="10.0.0.1"))
    client.config.set("ssh.connect_timeout_s", 3)
    assert transport.settings.connect_timeout_s == 3.0
    other = client._session.transport(HostAddress(kind="ssh", host="10.0.0.2"))
    assert other.settings.connect_timeout_s == 3.0


def test_the_time_for_an_answer_of_the_agent_is_the_configured_one(tmp_path: Path):
    """agent.call_timeout_s is what a call waits when it says nothing else."""
    session = Session(tmp_path / "sky", config={"agent": {"call_timeout_s": 0.2}})
    transport = session.transport(HostAddress(kind="local"))
    agent = session.new_agent("train", "id-1", transport, "/bin/true", NodeLayout(root=str(tmp_path)))
    assert agent.call_timeout_s == 0.2


@pytest.mark.parametrize("home", ["", "a\0b", 5, b"x"], ids=repr)
def test_a_home_that_is_no_path_is_refused_at_once(home: object):
    """An empty one would be the current directory."""
    with pytest.raises(InvalidSpecError, match="home is the path"):
        Client(home)  # type: ignore[arg-type]


def test_a_project_is_never_made_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A client of the current directory leaves the modes of what is there alone."""
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "train.py").touch()
    (tmp_path / "work").chmod(0o755)
    monkeypatch.chdir(tmp_path / "work")
    for verb in (Client(".").status, Client(".").check):
        with pytest.raises(StateError, match="holds other things"):
            verb()
    assert (tmp_path / "work").stat().st_mode & 0o777 == 0o755
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["train.py"]


@pytest.mark.parametrize("config", [5, "db", [], ["db"]], ids=repr)
def test_settings_that_are_no_map_are_refused_at_once(tmp_path: Path, config: object):
    """Naming where they were given."""
    with pytest.raises(ConfigError, match=r"Client\(config=...\): expected a map"):
        Client(tmp_path / "sky", config=config)  # type: ignore[arg-type]


def test_what_cannot_be_called_takes_no_events(tmp_path: Path):
    """Not only when the first one comes."""
    with pytest.raises(InvalidSpecError, match="events"):
        Client(tmp_path / "sky", events=5)  # type: ignore[arg-type]


def test_a_client_is_not_pickled(tmp_path: Path):
    """The error says what is."""
    with pytest.raises(TypeError, match="job.to_json"):
        pickle.dumps(Client(tmp_path / "sky"))
