"""What an agent promises over its own end and a new beginning, and of its channel."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from skylib.agent.node import NodeService
from skylib.agent.processes import carrying, is_alive, own, read
from tests.ray.agent_harness import (
    AgentSaid,
    Client,
    InProcessAgent,
    NodeFolders,
    connect,
    end_everything,
    run_daemon,
    until,
)

SETTING = {"wait_for": "jobs_and_ssh", "hook": None, "hook_timeout_s": None}
SLOW = "for i in $(seq 60); do echo $SKYPILOT_NODE_RANK $i; sleep 0.02; done"


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[InProcessAgent]:
    agent = InProcessAgent(NodeFolders(tmp_path, count=2))
    agent.begin()
    yield agent
    agent.close()


def again(agent: InProcessAgent) -> Client:
    agent.stop()
    agent.begin()
    return connect(agent)


def test_a_running_job_goes_on_without_its_agent(agent: InProcessAgent) -> None:
    """Nothing of its log is lost or doubled, and its end is known."""
    client = connect(agent)
    job_id = client.submit(SLOW, num_nodes=2)
    until(lambda: len(client.log(job_id, follow=False)) > 5)
    client = again(agent)
    until(lambda: len(client.log(job_id, follow=False)) > 30)
    client = again(agent)
    assert client.job(job_id)["status"] == "RUNNING"
    assert client.done(job_id)["status"] == "SUCCEEDED"
    lines = [item["text"] for item in client.log(job_id)]
    for rank in (0, 1):
        assert [line for line in lines if line.startswith(f"{rank} ")] == [f"{rank} {i}" for i in range(1, 61)]


def test_an_agent_that_leaves_takes_nothing_from_a_running_job(agent: InProcessAgent) -> None:
    """Its reservation in Ray stays, and so does its script, which a slow login shell has yet to open."""
    client = connect(agent)
    job_id = client.submit("until [ -e go ]; do sleep 0.01; done", num_nodes=2)
    task, ranks = client.when(job_id, "RUNNING")["task_id"], agent.ranks
    scripts = [Path(config.jobs_state, task, f"run-{rank}", "script") for rank, config in enumerate(agent.configs)]
    until(lambda: all(script.exists() for script in scripts))
    agent.stop()
    assert list(ranks.reserved) == [task]
    assert all(script.exists() for script in scripts)


def test_a_job_that_ends_while_no_agent_looks_is_seen_afterwards(agent: InProcessAgent) -> None:
    """Its exit code was written down by its supervisor."""
    client = connect(agent)
    job_id = client.submit("echo a; until [ -e go ]; do sleep 0.01; done; echo b; exit 9")
    until(lambda: client.log(job_id, follow=False))
    task = client.job(job_id)["task_id"]
    agent.stop()
    Path(agent.head.root, "sky_workdir", "go").touch()
    until(lambda: not carrying(own().values(), {"SKYPILOT_TASK_ID": task}))
    agent.begin()
    client = connect(agent)
    job = client.done(job_id)
    assert (job["status"], job["exit_codes"]) == ("FAILED", [9])
    assert client.text(job_id) == "a\nb\n"


def test_queued_jobs_stay_queued_with_their_secrets(agent: InProcessAgent) -> None:
    """In order, and what they need is still there when their turn comes."""
    client = connect(agent)
    holder = client.submit("until [ -e go ]; do sleep 0.01; done", num_nodes=2, demand={"CPU": 4})
    queued = [client.submit("echo $S $E", secrets={"S": f"s{i}"}, envs={"E": "e"}, num_nodes=2) for i in range(3)]
    client.when(holder, "RUNNING")
    client = again(agent)
    assert [client.job(job_id)["status"] for job_id in queued] == ["PENDING"] * 3
    for root in (config.root for config in agent.configs):
        until(lambda root=root: Path(root, "sky_workdir").is_dir())  # type: ignore[misc]
        Path(root, "sky_workdir", "go").touch()
    assert [client.done(job_id)["status"] for job_id in queued] == ["SUCCEEDED"] * 3
    assert [set(client.text(job_id).split("\n")) for job_id in queued] == [{f"s{i} e", ""} for i in range(3)]


def test_a_setup_goes_on_and_run_follows(agent: InProcessAgent) -> None:
    """An agent that comes back during setup sees it through once, and starts run."""
    client = connect(agent)
    job_id = client.submit("echo run", setup="echo setup; until [ -e go ]; do sleep 0.01; done", setup_all_nodes=True)
    until(lambda: len(client.log(job_id, follow=False)) == 2)
    client = again(agent)
    assert client.job(job_id)["status"] == "SETTING_UP"
    for config in agent.configs:
        Path(config.root, "sky_workdir", "go").touch()
    assert client.done(job_id)["status"] == "SUCCEEDED"
    assert [item["text"] for item in client.log(job_id)] == ["setup", "setup", "run"]


def test_a_rank_that_cannot_be_found_fails_its_job(agent: InProcessAgent) -> None:
    """Its state is gone: nobody can say how it ended, and it is not run twice."""
    client = connect(agent)
    job_id = client.submit("echo up; sleep 94")
    until(lambda: client.log(job_id, follow=False))
    job = client.job(job_id)
    agent.stop()
    for path in sorted(Path(agent.head.jobs_state, job["task_id"]).rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    agent.begin()
    client = connect(agent)
    job = client.done(job_id)
    assert job["status"] == "FAILED_DRIVER"
    assert "rank 0 (host0) was lost: it was never started, or its files are gone" in job["cause"]


def test_ended_jobs_and_their_logs_stay(agent: InProcessAgent) -> None:
    """History is in the folder, and so are numbers."""
    client = connect(agent)
    before = [client.done(client.submit(f"echo {i}; exit {i}")) for i in range(3)]
    client = again(agent)
    assert client.call("queue", all=True)["jobs"] == before
    assert client.text(before[1]["job_id"]) == "1\n"
    assert client.submit("true") == before[-1]["job_id"] + 1


def test_a_node_service_that_is_new_goes_on(agent: InProcessAgent) -> None:
    """A standing actor may be restarted under a job; the head tells the new one what to look after."""
    client = connect(agent)
    job_id = client.submit(SLOW, num_nodes=2)
    until(lambda: len(client.log(job_id, follow=False)) > 5)
    agent.ranks.reset(1)
    assert client.done(job_id)["status"] == "SUCCEEDED"
    assert len(client.log(job_id)) == 120


def test_another_protocol_is_refused(agent: InProcessAgent) -> None:
    """Both versions are named, and the channel ends."""
    client = Client(agent.head.socket, protocol=99)
    assert client.hello["error"]["kind"] == "version"
    assert (client.hello["error"]["ours"], client.hello["error"]["theirs"]) == (1, 99)
    with pytest.raises(EOFError):
        client.line()


def test_the_handshake_says_who_answers(agent: InProcessAgent) -> None:
    """Cluster, its id, the bundle and the role."""
    hello = Client(agent.head.socket).hello["hello"]
    assert hello == {
        "protocol": 1,
        "bundle": agent.head.bundle,
        "cluster": "train",
        "cluster_id": agent.head.cluster_id,
        "role": "head",
    }
    assert os.stat(agent.head.socket).st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ({"id": 1, "verb": "no such"}, "unknown_verb"),
        ({"id": 1, "verb": "submit", "args": {}}, "invalid"),
        ({"id": 1, "verb": "submit", "args": {"job": {"run": "true", "num_nodes": "many"}}}, "invalid"),
        ({"id": 1, "verb": "submit", "args": {"job": {"run": "true", "demand": {"CPU": -1}}}}, "invalid"),
        ({"id": 1, "verb": "autostop", "args": {"idle_minutes": "soon"}}, "invalid"),
        ({"id": 1, "verb": "job", "args": {"job_id": 77}}, "not_found"),
        ({"id": 1, "verb": "logs", "args": {"job_id": None}}, "not_found"),
        ({"no": "request"}, "invalid"),
        ([1, 2], "invalid"),
    ],
)
def test_a_bad_request_ends_nothing(agent: InProcessAgent, message: Any, kind: str) -> None:
    """It is answered with an error, and the channel goes on."""
    client = connect(agent)
    client.raw(message)
    assert client.line()["error"]["kind"] == kind
    assert client.call("info")["active_jobs"] == 0


def test_requests_are_answered_in_any_order(agent: InProcessAgent) -> None:
    """A wait and a followed log do not hold up a question on the same channel; a stream can be ended early."""
    client = connect(agent)
    job_id = client.submit("echo up; sleep 95")
    waiting = client.send("wait", job_id=job_id, timeout_s=None)
    log = client.send("logs", job_id=job_id, follow=True)
    asked = client.send("info")
    seen = [client.line(), client.line()]
    assert {message["id"] for message in seen} == {log, asked}
    client.raw({"id": log, "cancel": True})
    assert client.line() == {"id": log, "ok": {}}
    other = connect(agent)
    other.call("cancel", job_ids=[job_id])
    final = client.line()
    assert (final["id"], final["ok"]["job"]["status"]) == (waiting, "CANCELLED")


def test_a_closed_channel_ends_no_job(agent: InProcessAgent) -> None:
    """Followers may go as they like."""
    client = connect(agent)
    job_id = client.submit("echo up; sleep 0.3; echo still here")
    assert next(client.stream("logs", job_id=job_id))["text"] == "up"
    client.close()
    assert connect(agent).text(job_id) == "up\nstill here\n"


def test_wait_answers_at_its_timeout(agent: InProcessAgent) -> None:
    """With the job as it is then."""
    client = connect(agent)
    job_id = client.submit("sleep 96")
    began = time.monotonic()
    assert client.call("wait", job_id=job_id, timeout_s=0.3)["job"]["status"] == "RUNNING"
    assert 0.25 < time.monotonic() - began < 20


def test_not_ready_names_what_is_missing(agent: InProcessAgent) -> None:
    """At the timeout, with the ranks that are not there."""
    client = connect(agent)
    agent.cut(1)
    with pytest.raises(AgentSaid) as caught:
        client.call("ready", timeout_s=0.2)
    assert caught.value.kind == "not_ready"
    assert caught.value.error["missing_ranks"] == [1]


def test_an_idle_cluster_stops_by_itself(tmp_path: Path) -> None:
    """Not while a job runs; then everything of it ends, and the reason is written down."""
    agent = InProcessAgent(NodeFolders(tmp_path, count=2))
    agent.begin()
    client = connect(agent)
    client.call("autostop", idle_minutes=0.01, down=True)
    job_id = client.submit("sleep 97 & sleep 1.2")
    task = client.job(job_id)["task_id"]
    assert client.call("info")["autostop"] == {**SETTING, "idle_minutes": 0.01, "down": True}
    assert client.done(job_id)["status"] == "SUCCEEDED"
    stopped = Path(agent.head.sky, "stopped.json")
    assert not stopped.exists()
    until(stopped.exists)
    record = until(lambda: (said := json.loads(stopped.read_text()))["stopping"] is False and said)
    assert (record["reason"], record["down"], record["cluster_id"]) == ("autostop", True, agent.head.cluster_id)
    assert not carrying(own().values(), {"SKYPILOT_TASK_ID": task})
    until(lambda: not os.path.exists(agent.head.socket))
    agent.close()


def test_a_stop_is_written_down_before_it_is_made(agent: InProcessAgent) -> None:
    """An agent that dies on the way leaves the record, with the cluster's id and that the end was begun."""
    client = connect(agent)
    deaf = "(trap '' TERM; touch deaf; while :; do sleep 1; done) & until [ -e deaf ]; do sleep 0.01; done"
    job = client.done(client.submit(deaf))
    client.call("autostop", idle_minutes=0.001, down=True)
    stopped = Path(agent.head.sky, "stopped.json")
    until(stopped.exists)
    assert carrying(own().values(), {"SKYPILOT_TASK_ID": job["task_id"]})
    record = json.loads(stopped.read_text())
    assert (record["cluster_id"], record["down"], record["stopping"]) == (agent.head.cluster_id, True, True)
    until(lambda: not os.path.exists(agent.head.socket))


def test_a_stop_that_cannot_be_written_down_waits(agent: InProcessAgent, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is ended until the record is there; jobs are still accepted."""
    client = connect(agent)
    stopped = Path(agent.head.sky, "stopped.json")
    stopped.mkdir()
    client.call("autostop", idle_minutes=0.001)
    until(lambda: "in the daemon's timer" in caplog.text)
    assert client.call("info")["stopping"] is False
    assert client.done(client.submit("true"))["status"] == "SUCCEEDED"
    stopped.rmdir()
    until(lambda: not os.path.exists(agent.head.socket))
    assert json.loads(stopped.read_text())["stopping"] is False


def test_autostop_is_remembered_and_can_be_taken_back(agent: InProcessAgent) -> None:
    """Over a restart; a negative number turns it off."""
    client = connect(agent)
    client.call("autostop", idle_minutes=30)
    client = again(agent)
    assert client.call("info")["autostop"] == {**SETTING, "idle_minutes": 30.0, "down": False}
    client.call("autostop", idle_minutes=-1)
    client = again(agent)
    assert client.call("info")["autostop"] is None


def test_stop_nodes_ends_jobs_and_refuses_new_ones(agent: InProcessAgent) -> None:
    """The receipt names every rank; what jobs left behind is ended too."""
    client = connect(agent)
    left = client.submit("sleep 98 & true")
    client.done(left)
    running = client.submit("echo up; sleep 99", num_nodes=2)
    until(lambda: len(client.log(running, follow=False)) == 2)
    tasks = [client.job(job_id)["task_id"] for job_id in (left, running)]
    other = connect(agent)
    number = client.send("stop_nodes", release=True)
    until(lambda: other.call("info")["stopping"])
    with pytest.raises(AgentSaid, match="stopped"):
        other.submit("true")
    ranks = client.line()
    assert ranks["id"] == number
    assert [(entry["rank"], entry["survivors"], entry["error"]) for entry in ranks["ok"]["ranks"]] == [
        (0, [], None),
        (1, [], None),
    ]
    assert ranks["ok"]["ranks"][0]["ended"]
    for task in tasks:
        assert not carrying(own().values(), {"SKYPILOT_TASK_ID": task})
    until(lambda: not os.path.exists(agent.head.socket))


def test_a_node_can_be_asked_to_end_itself(tmp_path: Path) -> None:
    """It says what there is, and a moment later all of it is gone; the cluster's other nodes are not asked."""
    folders = NodeFolders(tmp_path, count=1)
    config = folders.write()[0]
    environ = {**os.environ, "SKYLIB_CLUSTER_ID": folders.cluster_id}
    made = contextlib.closing(NodeService(config.path, config.bundle_of(config.me)))
    with subprocess.Popen(["sleep", "60"], env=environ) as process, made as service:
        assert service.end_node(0.05, 1.0) == [process.pid]
        assert process.wait(10) == -15


def test_a_new_beginning_forgets_the_stop(agent: InProcessAgent) -> None:
    """The record that an autostop left behind is for those who find nobody; an agent that runs is not stopped."""
    agent.stop()
    stopped = Path(agent.head.sky, "stopped.json")
    stopped.write_text("{}")
    agent.begin()
    assert not stopped.exists()


def test_an_agent_whose_guardian_dies_has_another_one_take_its_place(tmp_path: Path) -> None:
    """kill -9 of the guardian alone: soon an agent with a guardian of its own serves, which is begun anew when it dies."""
    config = NodeFolders(tmp_path, count=2).write()[1]
    lock = Path(config.sky, "agent.lock")

    def guarded() -> dict[str, Any] | None:
        text = lock.read_text()
        holder: dict[str, Any] = json.loads(text) if text else {}
        whole = holder.get("listens") and holder["guardian"]
        return holder if whole and is_alive(*holder["guardian"]) and is_alive(holder["pid"], holder["start"]) else None

    def kill(pid: int, start: int) -> None:
        os.kill(pid, signal.SIGKILL)
        until(lambda: not is_alive(pid, start))

    run_daemon(sys.executable, config)
    try:
        first: dict[str, Any] = until(guarded, timeout_s=60)
        kill(*first["guardian"])
        second: dict[str, Any] = until(guarded, timeout_s=60)
        assert second["pid"] != first["pid"]
        until(lambda: not is_alive(first["pid"], first["start"]), timeout_s=60)
        kill(second["pid"], second["start"])
        third: dict[str, Any] = until(guarded, timeout_s=60)
        assert third["guardian"] == second["guardian"]
        Client(config.socket).close()
    finally:
        end_everything([config])


def test_an_agent_that_is_begun_during_an_end_stays(tmp_path: Path) -> None:
    """An end whose client was killed goes on; who wakes the agent meanwhile, to bring logs home, finds one that lives on."""
    config = NodeFolders(tmp_path, count=2).write()[1]
    ended = tmp_path / "ended"
    end = [sys.executable, config.bundle_of(config.me), "end", "--config", config.path, "--after-s", "1"]
    with subprocess.Popen(["sh", "-c", '"$@" >"$0"', str(ended), *end]) as under_way:
        until(ended.exists)
        until(lambda: _is_locked(config.path))
        try:
            run_daemon(sys.executable, config, "--asleep")
            assert under_way.wait(5) == 0
            assert json.loads(ended.read_text())["ended"] == []
            Client(config.socket).close()
        finally:
            end_everything([config])


def _is_locked(path: str) -> bool:
    with open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_an_agent_that_nobody_waits_for_is_not_begun_after_an_end(tmp_path: Path) -> None:
    """Its client died while it waited for an end: whoever asks for the next end need not know of it."""
    config = NodeFolders(tmp_path, count=2).write()[1]
    daemon = [sys.executable, config.bundle_of(config.me), "daemon", "--config", config.path, "--asleep"]
    out = tmp_path / "said"
    with (
        open(config.path, "rb") as end,
        subprocess.Popen(["sh", "-c", '"$@" 2>"$0" & echo $!; wait', str(out), *daemon], stdout=subprocess.PIPE) as parent,
    ):
        fcntl.flock(end, fcntl.LOCK_EX)
        assert parent.stdout is not None
        waiting = read(int(parent.stdout.readline()))
        assert waiting is not None
        until(lambda: b"daemon" in Path(f"/proc/{waiting.pid}/cmdline").read_bytes() and _waits(waiting.pid, config.path))
        parent.kill()
        until(lambda: not is_alive(waiting.pid, waiting.start))
    assert "is gone" in out.read_text()
    assert not Path(config.sky, "agent.lock").exists()


def _waits(pid: int, path: str) -> bool:
    """Whether it has the file open."""
    return any(os.path.realpath(each) == os.path.realpath(path) for each in Path(f"/proc/{pid}/fd").iterdir())
