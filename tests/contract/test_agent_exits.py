"""How ranks end and are ended: records that are torn, pids that are used again, nodes that are away, processes that hide."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from skylib.agent.account import parse_limits, parse_umask, user_environment
from skylib.agent.identity import boot_id
from skylib.agent.node import NodeService
from skylib.agent.processes import carrying, own, read
from tests.ray.agent_harness import Client, InProcessAgent, NodeFolders, connect, end_everything, until

KEY = ["task-1", "run", 0]


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[InProcessAgent]:
    agent = InProcessAgent(NodeFolders(tmp_path, count=2))
    agent.begin()
    yield agent
    agent.close()


@pytest.fixture
def client(agent: InProcessAgent) -> Client:
    return connect(agent)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[NodeService]:
    config = NodeFolders(tmp_path, count=1).write()[0]
    with contextlib.closing(NodeService(config.path, config.bundle_of(config.me))) as service:
        yield service
        end_everything([config])


def rank_dir(service: NodeService) -> Path:
    path = Path(service.config.jobs_state, "task-1", "run-0")
    path.mkdir(parents=True)
    return path


def end_of(service: NodeService) -> dict[str, Any] | None:
    """What is told of the rank within a moment."""
    service.watch(KEY, "1-x", 0)
    ends = service.poll([], [], 0.05).ends
    return ends[0][1] if ends else None


def sleeping(seconds: int) -> list[int]:
    found = []
    for pid in own():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[:2] == [b"sleep", str(seconds).encode()]:
            found.append(pid)
    return found


def pids_record(supervisor: int, start: int) -> str:
    return json.dumps({"supervisor": [supervisor, start], "shell": [supervisor, start], "boot": boot_id()})


# --- what is written down


def test_a_torn_end_is_no_end_while_the_supervisor_lives(service: NodeService) -> None:
    """Half a record says nothing; the whole one counts as soon as it is there."""
    path, me = rank_dir(service), read(os.getpid())
    assert me is not None
    path.joinpath("pids").write_text(pids_record(me.pid, me.start))
    path.joinpath("exit").write_text('{"code": 3, "sig')
    assert end_of(service) is None
    path.joinpath("exit").write_text('{"code": 3, "signal": null, "at": 1.0, "mono": 1.0}')
    ended = end_of(service)
    assert ended is not None
    assert (ended["code"], ended["reason"]) == (3, "exit")


def test_a_torn_end_of_a_dead_supervisor_is_a_lost_rank(service: NodeService) -> None:
    """Not a success, not a hang."""
    path = rank_dir(service)
    path.joinpath("pids").write_text(pids_record(2**22 - 1, 5))
    path.joinpath("exit").write_text("")
    ended = end_of(service)
    assert ended is not None
    assert "supervisor" in ended["lost"]


def test_torn_pids_are_a_rank_that_is_being_started(service: NodeService) -> None:
    """Until that takes too long."""
    path = rank_dir(service)
    path.joinpath("pids").write_text('{"supervisor": [1')
    assert end_of(service) is None
    os.utime(path, (time.time() - 120, time.time() - 120))
    ended = end_of(service)
    assert ended is not None
    assert ended["lost"] == "it did not start"


def test_a_pid_that_is_used_again_is_not_the_supervisor(service: NodeService) -> None:
    """The same number with another beginning: the rank is lost, and the process is not touched by its end."""
    path = rank_dir(service)
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as other:
        found = read(other.pid)
        assert found is not None
        path.joinpath("pids").write_text(pids_record(found.pid, found.start - 1))
        ended = end_of(service)
        assert ended is not None
        assert "supervisor" in ended["lost"]
        assert service.kill("task-1", "run", [0], 0.0) == {"ended": [], "survivors": []}
        assert other.poll() is None
        other.kill()


@pytest.mark.parametrize("step_s", [-86400.0, 86400.0])
def test_a_clock_that_is_set_does_not_change_who_was_first(service: NodeService, step_s: float) -> None:
    """The age of an end is told by a clock that nobody sets."""
    path = rank_dir(service)
    record = {"code": 3, "signal": None, "at": time.time() + step_s, "mono": time.monotonic() - 2.0}
    path.joinpath("exit").write_text(json.dumps(record))
    ended = end_of(service)
    assert ended is not None
    assert ended["age_s"] == pytest.approx(2.0, abs=1.0)


def test_a_memory_kill_that_took_the_supervisor_too_is_seen(service: NodeService, tmp_path: Path) -> None:
    """Whole groups are killed on some machines: the count has grown since the rank began."""
    path, counter = rank_dir(service), tmp_path / "memory.events"
    counter.write_text("low 0\noom 3\noom_kill 3\n")
    pids = {**json.loads(pids_record(2**22 - 1, 5)), "kills_file": str(counter), "kills": 2}
    path.joinpath("pids").write_text(json.dumps(pids))
    ended = end_of(service)
    assert ended is not None
    assert (ended["code"], ended["signal"], ended["reason"]) == (137, 9, "oom")


def test_a_job_that_was_ended_is_not_started_any_more(service: NodeService) -> None:
    """A start that comes after the end for good is refused; one after an end of an attempt is not."""
    spec = {"task_id": "task-1", "phase": "run", "rank": 0, "log_dir": "1-x", "script": "true", "task_env": {}}
    service.kill("task-1", "", None, 0.0)
    assert service.start(spec) == "started"
    service.kill("task-1", "", None, 0.0, True)
    with pytest.raises(OSError, match="ended before"):
        service.start({**spec, "phase": "run@1"})


def test_of_a_job_that_has_ended_only_its_name_is_kept(service: NodeService) -> None:
    """Not before its end is known to be written down, nor while anything of it runs; a start that comes late is refused."""
    spec = {"task_id": "task-1", "phase": "run", "rank": 0, "log_dir": "1-x", "task_env": {"SKYPILOT_TASK_ID": "task-1"}}
    script = "setsid sh -c 'until [ -e go ]; do sleep 0.01; done' &"
    state = Path(service.config.jobs_state, "task-1")
    service.start({**spec, "script": script})
    until(lambda: (state / "run-0" / "exit").exists() and not service.running())
    service.forget("task-1", False)
    assert (state / "run-0" / "exit").exists()
    service.forget("task-1", True)
    assert (state / "run-0" / "exit").exists()
    Path(service.config.root, "sky_workdir", "go").touch()
    until(lambda: not carrying(own().values(), {"SKYPILOT_TASK_ID": "task-1"}))
    service.forget("another", True)
    assert os.listdir(state) == ["closed"]
    with pytest.raises(OSError, match="ended before"):
        service.start({**spec, "script": "true"})


def test_an_end_that_is_written_down_needs_no_state_on_the_nodes(client: Client, agent: InProcessAgent) -> None:
    """Each rank's is removed; after a restart the job is what it was."""
    ended = client.done(client.submit("exit 3", num_nodes=2))
    ranks = [Path(config.jobs_state, ended["task_id"], f"run-{rank}") for rank, config in enumerate(agent.configs)]
    client.done(client.submit("true", num_nodes=2))
    until(lambda: not any(path.exists() for path in ranks))
    agent.stop()
    agent.begin()
    assert connect(agent).job(ended["job_id"]) == ended


def test_ending_one_attempt_leaves_the_next_alone(service: NodeService) -> None:
    """Both carry the same variables; they are told apart by their sessions and supervisors."""
    variables = {"SKYPILOT_TASK_ID": "task-1", "SKYPILOT_NODE_RANK": "0"}
    spec = {"task_id": "task-1", "rank": 0, "log_dir": "1-x", "task_env": variables}
    service.start({**spec, "phase": "run", "script": "sleep 7101 & (env -i setsid sleep 7102 &) ; wait"})
    service.start({**spec, "phase": "run@1", "script": "sleep 7103 & (env -i setsid sleep 7104 &) ; wait"})
    until(lambda: all(sleeping(seconds) for seconds in (7101, 7102, 7103, 7104)))
    service.kill("task-1", "run", [0], 0.5)
    assert [len(sleeping(seconds)) for seconds in (7101, 7102, 7103, 7104)] == [0, 0, 1, 1]
    service.kill("task-1", "run@1", [0], 0.5)
    assert [len(sleeping(seconds)) for seconds in (7103, 7104)] == [0, 0]


# --- what a job tells


def test_the_first_cause_has_the_ranks_last_words(client: Client) -> None:
    """Rank, node, code, reason and the end of what it printed; the other rank's signal is told as well."""
    script = 'if [ $SKYPILOT_NODE_RANK = 1 ]; then seq 40; echo "the reason"; exit 5; fi; sleep 7201'
    job = client.done(client.submit(script, num_nodes=2))
    assert (job["status"], job["exit_codes"], job["signals"][1]) == ("FAILED", [137, 5], None)
    cause = job["first_cause"]
    assert {name: cause[name] for name in ("rank", "node", "exit_code", "signal", "reason")} == {
        "rank": 1,
        "node": "host1",
        "exit_code": 5,
        "signal": None,
        "reason": "exit",
    }
    assert cause["last_lines"] == [*(str(number) for number in range(22, 41)), "the reason"]


def test_the_first_cause_has_no_part_of_a_secret(client: Client) -> None:
    """Not even where a long line is cut in the middle of one."""
    some = "head -c {} /dev/zero | tr '\\0' ="
    script = f'{some.format(9000)}; printf %s "$TOKEN"; {some.format(4085)}; exit 3'
    job = client.done(client.submit(script, secrets={"TOKEN": "hunter2-and-so-on-and-on"}))
    (told,) = job["first_cause"]["last_lines"]
    assert (len(told), told.lstrip("=")) == (4095, "***" + "=" * 4085)
    assert sleeping(7201) == []


def test_a_successful_job_has_no_first_cause(client: Client) -> None:
    """And no signals."""
    job = client.done(client.submit("true", num_nodes=2))
    assert (job["exit_codes"], job["signals"], job["first_cause"]) == ([0, 0], [None, None], None)


def test_a_failed_rank_leaves_nothing_behind(client: Client) -> None:
    """Its background processes are ended with the gang; those of a job that succeeds go on."""
    assert client.done(client.submit("setsid sleep 7301 & (env -i setsid sleep 7302 &); exit 3"))["exit_codes"] == [3]
    until(lambda: not sleeping(7301) and not sleeping(7302))


def test_who_has_shed_everything_ends_with_the_cluster(client: Client, agent: InProcessAgent) -> None:
    """A process that a successful job left behind goes on, without its session, variables or output; `end` knows it."""
    job = client.done(client.submit("env -i setsid sleep 7303 > /dev/null 2>&1 < /dev/null &\necho $!"))
    assert job["status"] == "SUCCEEDED"
    pid = int(client.log(job["job_id"])[0]["text"])
    client.done(client.submit("true"))  # what is kept of ended jobs is looked through
    assert sleeping(7303) == [pid]
    config = agent.head
    argv = [sys.executable, "-S", "-E", config.bundle_of(config.me), "end", "--config", config.path]
    assert pid in json.loads(subprocess.run(argv, capture_output=True, timeout=30, check=True).stdout)["ended"]
    assert sleeping(7303) == []


def test_a_hidden_process_of_a_killed_supervisor_is_ended(client: Client) -> None:
    """Without a parent, a variable, or the session: what it prints to still tells whose it is."""
    job_id = client.submit("echo $PPID; (env -i setsid sleep 7401 &); sleep 7402")
    until(lambda: sleeping(7401) and client.log(job_id, follow=False))
    os.kill(int(client.log(job_id, follow=False)[0]["text"]), 9)
    job = client.done(job_id)
    assert (job["status"], job["first_cause"]["reason"]) == ("FAILED_DRIVER", "lost")
    assert (sleeping(7401), sleeping(7402)) == ([], [])


# --- nodes that are away


def run_on_the_other_node(client: Client, script: str) -> int:
    """A job of one rank that is not on the head."""
    client.when(client.submit("sleep 7500", demand={"CPU": 3}), "RUNNING")
    job_id = client.submit(script, demand={"CPU": 2})
    until(lambda: client.log(job_id, follow=False))
    return job_id


def test_cancel_names_a_node_that_is_away_and_ends_its_ranks_later(client: Client, agent: InProcessAgent) -> None:
    """The answer comes at once; the processes go when the node is back."""
    job_id = run_on_the_other_node(client, "echo up; sleep 7501")
    until(lambda: sleeping(7501))
    agent.cut(1)
    (done,) = client.call("cancel", job_ids=[job_id])["cancelled"]
    assert (done["nodes_unreached"], done["ended"]) == (["host1"], [])
    assert "host1" in client.done(job_id)["cause"]
    assert sleeping(7501)
    agent.bring_back(1)
    until(lambda: not sleeping(7501))


def test_an_order_outlives_the_agent(client: Client, agent: InProcessAgent) -> None:
    """It is written down: another agent carries it out."""
    job_id = run_on_the_other_node(client, "echo up; sleep 7502")
    until(lambda: sleeping(7502))
    agent.cut(1)
    client.call("cancel", job_ids=[job_id])
    assert sleeping(7502)
    agent.stop()
    agent.begin()
    connect(agent)
    until(lambda: not sleeping(7502))


def test_cancel_needs_no_ray_for_the_heads_own_ranks(client: Client, agent: InProcessAgent) -> None:
    """Whatever became of the connection, what runs beside the agent is ended at once."""
    job_id = client.submit("echo up; setsid sleep 7503 & sleep 7504")
    until(lambda: sleeping(7503) and sleeping(7504))
    agent.cut(0)
    (done,) = client.call("cancel", job_ids=[job_id])["cancelled"]
    assert (done["nodes_unreached"], sleeping(7503), sleeping(7504)) == ([], [], [])


# --- what a rank begins with


def test_limits_and_umask_are_read() -> None:
    """Of this very process, as Linux writes them; rows of another form are left out."""
    found = parse_limits(Path("/proc/self/limits").read_text())
    assert found[resource.RLIMIT_NOFILE] == resource.getrlimit(resource.RLIMIT_NOFILE)
    assert len(found) >= 12
    assert parse_limits("Max open files            x y files\nnonsense\n") == {}
    assert parse_umask(Path("/proc/self/status").read_text()) >= 0
    assert parse_umask("Name: x\n") == -1


def test_the_environment_is_the_same_whoever_started_the_agent() -> None:
    """What one connection, one virtual environment or Ray set is not the account's."""
    plain = {"HOME": "/h", "USER": "u", "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "MY_OWN": "kept"}
    ours = {
        **plain,
        "PATH": "/v/bin:/r/bin:/usr/bin:/bin",
        "VIRTUAL_ENV": "/v",
        "PYTHONPATH": "/x",
        "RAY_ADDRESS": "a",
        "SKYLIB_CLUSTER_ID": "i",
        "SKYPILOT_TASK_ID": "t",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "SSH_CONNECTION": "c",
        "SSH_CLIENT": "c",
        "SHLVL": "2",
    }
    assert user_environment(ours, "/r") == plain


def test_a_failure_is_told_before_all_that_was_printed(client: Client, agent: InProcessAgent) -> None:
    """The other ranks are ended at once, not when 150 MB have come in; nothing of them is lost, and the code is kept."""
    script = (
        "if [ $SKYPILOT_NODE_RANK = 1 ]; then yes 1234567 | head -c 150000000; date +%s.%N > failed; exit 5; fi\n"
        "while :; do date +%s.%N > last; sleep 0.02; done"
    )
    job = client.done(client.submit(script, num_nodes=2), timeout_s=60)
    roots = [Path(config.root, "sky_workdir") for config in agent.configs]
    failed, last = float(roots[1].joinpath("failed").read_text()), float(roots[0].joinpath("last").read_text() or 0)
    assert job["exit_codes"] == [137, 5]
    assert last - failed < 2.0
    assert sum(path.stat().st_size for path in Path(job["log_dir"]).glob("run.log")) > 150_000_000
