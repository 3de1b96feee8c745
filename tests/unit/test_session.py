"""The session: parts made late, a journal for each verb, a name that stays."""

from __future__ import annotations

import json
import multiprocessing
import threading
from pathlib import Path

import pytest

from skylib.errors import ClusterNotFound
from skylib.events import Event
from skylib.models.node import HostAddress
from skylib.runtime.layout import NodeLayout
from skylib.session import Session
from skylib.transport.command import Command
from skylib.transport.fanout import fanout


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


def test_closing_twice_and_using_again_is_fine(tmp_path: Path):
    """A closed session opens anew when it is used."""
    session = Session(tmp_path / "sky")
    assert session.store.clusters() == []
    session.close()
    session.close()
    assert session.store.clusters() == []


def test_what_a_dead_process_began_is_settled_by_the_next_holder_of_the_lock(tmp_path: Path):
    """An intent that nobody can be at any more is seen inside the lock, and is not open after it."""
    session = Session(tmp_path / "sky")
    session.store.begin_intent("launch", "train", {})
    with session.hold("train", "down"):
        assert [intent.operation for intent in session.store.open_intents("train")] == ["launch"]
    assert session.store.open_intents("train") == []


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
        with session._lock:
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


def test_the_time_for_an_answer_of_the_agent_is_the_configured_one(tmp_path: Path):
    """agent.call_timeout_s is what a call waits when it says nothing else."""
    session = Session(tmp_path / "sky", config={"agent": {"call_timeout_s": 0.2}})
    transport = session.transport(HostAddress(kind="local"))
    agent = session.new_agent("train", "id-1", transport, "/bin/true", NodeLayout(root=str(tmp_path)))
    assert agent.call_timeout_s == 0.2
