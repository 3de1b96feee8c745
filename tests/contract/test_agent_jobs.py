"""What an agent promises of jobs, asked over its socket: real shells, real files, real processes; the nodes are folders."""

from __future__ import annotations

import base64
import functools
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from skylib.agent.processes import carrying, own
from tests.ray.agent_harness import AgentSaid, Client, InProcessAgent, NodeFolders, command_lines, until


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[InProcessAgent]:
    agent = InProcessAgent(NodeFolders(tmp_path, count=3, gpus={0: ["A100", "A100"], 1: ["A100", "A100"]}))
    agent.begin()
    yield agent
    agent.close()


@pytest.fixture
def client(agent: InProcessAgent) -> Iterator[Client]:
    client = Client(agent.head.socket)
    client.call("ready", timeout_s=10)
    yield client
    client.close()


def test_a_gang_runs_on_all_its_nodes_and_succeeds(client: Client) -> None:
    """Every rank runs, all output arrives, the exit codes are by rank."""
    job_id = client.submit("echo rank $SKYPILOT_NODE_RANK", num_nodes=3)
    job = client.done(job_id)
    assert (job["status"], job["exit_codes"], job["cause"]) == ("SUCCEEDED", [0, 0, 0], "")
    items = client.log(job_id)
    assert sorted((item["rank"], item["node"], item["text"]) for item in items) == [
        (0, "head", "rank 0"),
        (1, "worker1", "rank 1"),
        (2, "worker2", "rank 2"),
    ]
    assert {item["stream"] for item in items} == {"run"}


def test_the_merged_file_is_readable_by_humans(client: Client, agent: InProcessAgent) -> None:
    """run.log has a prefix on each line that says whose it is."""
    job_id = client.submit("echo hello", name="my job/1")
    log_dir = Path(client.done(job_id)["log_dir"])
    assert log_dir == Path(agent.head.logs) / f"{job_id}-my_job_1"
    assert (log_dir / "run.log").read_text() == "(head, rank=0) hello\n"
    files = client.call("log_files", job_id=job_id)
    assert {"name": "run.log", "bytes": 21} in files["files"]


def test_variables_of_run_are_skypilots(client: Client) -> None:
    """SKYPILOT_* of run as SkyPilot gives them, and none of those of setup."""
    job_id = client.submit(
        "env -0 | tr '\\n' ' ' | tr '\\0' '\\n' | grep ^SKYPILOT | sort",
        num_nodes=2,
        demand={"CPU": 0.5, "accelerators": {"A100": 2}},
        setup="true",
    )
    job = client.done(job_id)
    lines = [item["text"] for item in client.log(job_id) if item["rank"] == 1 and item["stream"] == "run"]
    variables = dict(line.split("=", 1) for line in lines)
    assert job["task_id"].startswith("sky-")
    assert job["task_id"].endswith(f"_train_{job_id}")
    assert variables.pop("SKYPILOT_CLUSTER_INFO").startswith('{"cluster_name": "train", "cloud": "ssh"')
    assert variables == {
        "SKYPILOT_INTERNAL_JOB_ID": str(job_id),
        "SKYPILOT_NODE_IPS": "127.0.0.1 127.0.0.1",
        "SKYPILOT_NODE_RANK": "1",
        "SKYPILOT_NUM_GPUS_PER_NODE": "2",
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_TASK_ID": job["task_id"],
        "SKYPILOT_USER": "alice",
    }


def test_variables_of_setup_are_skypilots(client: Client) -> None:
    """Setup on all nodes knows all nodes, and comes before run in the log."""
    job_id = client.submit("echo run", setup="env | grep ^SKYPILOT_.*NODE | sort", setup_all_nodes=True)
    assert client.done(job_id)["status"] == "SUCCEEDED"
    items = client.log(job_id)
    assert [item["stream"] for item in items].index("run") == len(items) - 1
    lines = [item["text"] for item in items if item["rank"] == 2 and item["stream"] == "setup"]
    assert "SKYPILOT_SETUP_NODE_RANK=2" in lines
    assert "SKYPILOT_NUM_NODES=1" in lines
    assert not [line for line in lines if line.startswith("SKYPILOT_NODE")]


def test_the_environment_is_the_users(client: Client, monkeypatch: pytest.MonkeyPatch, isolated_home: Path) -> None:
    """Nothing of Ray's or ours reaches the job; start files are read to their end; the task's variables win over them."""
    for name in ("RAY_ADDRESS", "OMP_NUM_THREADS", "VIRTUAL_ENV", "PYTHONPATH", "CUDA_VISIBLE_DEVICES", "SKYLIB_X"):
        monkeypatch.setenv(name, "bad")
    (isolated_home / ".profile").write_text("export FROM_PROFILE=yes\n")
    (isolated_home / ".bashrc").write_text(
        "case $- in *i*) ;; *) return;; esac\nexport FROM_RC=yes MINE=rc\n"
        "echo noise\nconda() { echo conda $1; }\nfalse\nexit 3\n"
    )
    job_id = client.submit("env; conda x; pwd; set -o | grep histexpand", envs={"MINE": 'task\'s "own"\n$x', "a-b": "c"})
    text = client.text(job_id)
    assert client.done(job_id)["status"] == "SUCCEEDED"
    lines = text.splitlines()
    assert not [line for line in lines if line.startswith(("RAY_", "OMP_", "VIRTUAL", "PYTHONPATH", "CUDA", "SKYLIB"))]
    assert {"FROM_PROFILE=yes", "FROM_RC=yes", "PYTHONUNBUFFERED=1", f"HOME={isolated_home}", "conda x", "a-b=c"} <= set(
        lines
    )
    assert 'MINE=task\'s "own"\n$x\n' in text
    assert "noise" not in lines
    assert lines[-1].split() == ["histexpand", "off"]


def test_a_job_begins_as_a_plain_process(client: Client) -> None:
    """No signal is ignored or blocked, memory pressure does not single it out, and a broken pipe is silent."""
    job_id = client.submit("grep -E '^Sig(Ign|Blk)' /proc/self/status; cat /proc/self/oom_score_adj; yes | head -1")
    assert client.text(job_id).split() == ["SigBlk:", "0" * 16, "SigIgn:", "0" * 16, "0", "y"]


def test_devices_are_assigned_only_where_asked_for(client: Client) -> None:
    """Two jobs of one device each on one node get different devices; a job without devices sees the variable unset."""
    ask = {"CPU": 0.5, "accelerators": {"a100": 1}}
    jobs = [client.submit("echo ${CUDA_VISIBLE_DEVICES-unset}; sleep 30", demand=ask) for _ in range(4)]
    seen = [until(functools.partial(client.log, job_id, follow=False))[0]["text"] for job_id in jobs]
    assert sorted(seen) == ["0", "0", "1", "1"]
    client.call("cancel", all=True)
    plain = client.submit("echo ${CUDA_VISIBLE_DEVICES-unset}")
    assert client.text(plain) == "unset\n"


@pytest.mark.parametrize(
    ("script", "code", "cause"),
    [
        ("exit 3", 3, "rank 0 (host0) exited 3"),
        ("exit 137", 137, "rank 0 (host0) exited 137"),
        ("kill -9 $$", 137, "rank 0 (host0) was ended by signal 9 (SIGKILL)"),
        ("kill -TERM $$", 143, "rank 0 (host0) was ended by signal 15 (SIGTERM)"),
        ("syntax error ((", 2, "rank 0 (host0) exited 2"),
    ],
)
def test_a_failing_shell_fails_the_job(client: Client, script: str, code: int, cause: str) -> None:
    """Exit codes are the shell's; signal n is 128 + n."""
    job = client.done(client.submit(script))
    assert (job["status"], job["exit_codes"], job["cause"]) == ("FAILED", [code], cause)


@pytest.mark.parametrize("script", ["exec >&- 2>&-; exit 0", "exec 1>&- ; sleep 0.01", "trap '' TERM; true"])
def test_a_shell_that_closes_its_output_is_fine(client: Client, script: str) -> None:
    """Closed streams are no failure."""
    assert client.done(client.submit(script))["status"] == "SUCCEEDED"


def test_a_failing_rank_ends_the_others(client: Client) -> None:
    """Long before they would end by themselves, deaf ones too; they count as killed, and the first cause is named."""
    job_id = client.submit("trap '' TERM; [ $SKYPILOT_NODE_RANK = 1 ] && exit 5; sleep 60 & sleep 61; sleep 62", num_nodes=3)
    began = time.monotonic()
    job = client.done(job_id)
    assert time.monotonic() - began < 30
    assert (job["status"], job["exit_codes"]) == ("FAILED", [137, 5, 137])
    assert job["cause"] == "rank 1 (host1) exited 5"
    assert not carrying(own().values(), {"SKYPILOT_TASK_ID": job["task_id"]})


def test_a_failing_setup_keeps_run_from_starting(client: Client) -> None:
    """One node of three fails: FAILED_SETUP, all codes are there, run is not started."""
    job_id = client.submit("touch ran", setup="[ $SKYPILOT_SETUP_NODE_RANK != 1 ] || exit 7", setup_all_nodes=True)
    job = client.done(job_id)
    assert (job["status"], job["exit_codes"]) == ("FAILED_SETUP", [0, 7, 0])
    assert job["cause"] == "rank 1 (host1) exited 7 in setup"
    assert "ran" not in os.listdir(Path(job["log_dir"]).parents[1] / "sky_workdir")


def test_setup_is_skipped_where_it_was_done(client: Client) -> None:
    """With the same hash and the wish to skip; without the wish it runs again."""
    spec = {"setup": "echo setting up", "setup_hash": "abc", "setup_all_nodes": True}
    first = client.submit("true", **spec)
    assert client.done(first)["status"] == "SUCCEEDED"
    assert client.call("setup_state", hash="abc") == {"done_ranks": [0, 1, 2]}
    assert client.call("setup_state", hash="other") == {"done_ranks": []}
    assert client.log(client.submit("true", skip_setup_if_done=True, **spec)) == []
    assert len(client.log(client.submit("true", **spec))) == 3


def test_a_job_of_setup_alone_succeeds(client: Client) -> None:
    """An empty run is no failure."""
    job = client.done(client.submit("", setup="echo only"))
    assert (job["status"], job["exit_codes"]) == ("SUCCEEDED", [0])


def test_cancel_ends_the_whole_tree(client: Client) -> None:
    """Own sessions, double forks and emptied environments do not hide a process of the job."""
    script = (
        "sleep 71 & setsid sleep 72 & (setsid bash -c 'sleep 73 & sleep 74' &) ; env -i setsid sleep 75 & wait; sleep 76"
    )
    job_id = client.submit(f"trap '' TERM; {script}")
    client.when(job_id, "RUNNING")
    until(lambda: all(_sleeping(seconds) for seconds in range(71, 76)))
    answer = client.call("cancel", job_ids=[job_id])["cancelled"][0]
    assert answer["job_id"] == job_id
    assert len(answer["ended"]) >= 6
    assert answer["survivors"] == []
    assert not any(_sleeping(seconds) for seconds in range(71, 76))
    job = client.job(job_id)
    assert (job["status"], job["cause"]) == ("CANCELLED", "cancelled")


def _sleeping(seconds: int) -> bool:
    """Whether one of our processes sleeps for this many seconds."""
    return b"sleep\0%d\0" % seconds in command_lines().values()


def test_cancel_of_queued_jobs_is_immediate_and_leaves_the_running(client: Client) -> None:
    """Many at once; a terminal job stays what it was."""
    holder = client.submit("sleep 60", num_nodes=3, demand={"CPU": 4})
    queued = [client.submit("echo no") for _ in range(50)]
    client.when(holder, "RUNNING")
    answer = client.call("cancel", job_ids=queued)["cancelled"]
    assert [entry["job_id"] for entry in answer] == queued
    assert {client.job(job_id)["status"] for job_id in queued} == {"CANCELLED"}
    assert client.job(holder)["status"] == "RUNNING"
    assert client.call("cancel")["cancelled"][0]["job_id"] == holder
    assert client.call("cancel", job_ids=[holder, *queued])["cancelled"] == []


def test_a_background_process_does_not_hold_the_job_up_and_lives_on(client: Client) -> None:
    """The job ends when its shell does; what it left behind goes on."""
    job_id = client.submit("sleep 81 & echo over")
    began = time.monotonic()
    assert client.done(job_id)["status"] == "SUCCEEDED"
    assert time.monotonic() - began < 40
    assert client.text(job_id) == "over\n"
    until(lambda: _sleeping(81))


def test_an_endless_line_arrives_whole(client: Client) -> None:
    """8 MB without a newline come as pieces of one line."""
    job_id = client.submit("head -c 8000000 /dev/zero | tr '\\0' x; echo; echo end")
    items = client.log(job_id)
    assert all(item["partial"] for item in items[:-2])
    assert "".join(item["text"] for item in items[:-1]) == "x" * 8_000_000
    assert (items[-1]["text"], items[-1]["partial"]) == ("end", False)


def test_bytes_that_are_no_text_arrive(client: Client) -> None:
    """Binary lines come as base64, nothing is lost, NUL included."""
    job_id = client.submit(r"printf 'a\xff\x00b\n\xc3\xa4\n'; printf 'last'")
    items = client.log(job_id)
    assert base64.b64decode(items[0]["b64"]) == b"a\xff\x00b"
    assert [item["text"] for item in items[1:]] == ["ä", "last"]
    assert not items[-1]["partial"]


def test_a_half_line_is_shown_before_its_end_comes(client: Client, agent: InProcessAgent) -> None:
    """A prompt without a newline reaches a follower while the job goes on."""
    job_id = client.submit("printf 'loading '; until [ -e go ]; do sleep 0.02; done; echo done")
    stream = client.stream("logs", job_id=job_id)
    first = next(stream)
    assert (first["text"], first["partial"]) == ("loading ", True)
    Path(agent.head.root, "sky_workdir", "go").touch()
    rest = list(stream)
    assert [(item["text"], item["partial"], item["offset"]) for item in rest] == [("done", False, first["next_offset"])]


def test_lines_reach_a_follower_as_they_are_printed(client: Client, agent: InProcessAgent) -> None:
    """Each one before the next: the job goes on only when its last line has been seen."""
    job_id = client.submit("for i in 1 2 3 4 5; do echo $i; until [ -e seen-$i ]; do sleep 0.01; done; done")
    seen = []
    for item in client.stream("logs", job_id=job_id):
        seen.append(item["text"])
        Path(agent.head.root, "sky_workdir", f"seen-{item['text']}").touch()
    assert seen == ["1", "2", "3", "4", "5"]


def test_a_job_that_truncates_its_output_loses_no_line_that_was_read(client: Client, agent: InProcessAgent) -> None:
    """A script's `> /dev/stderr` does that to a file: each line is told once, to a follower and to who comes later."""
    one = "echo one; echo two; until [ -e seen-two ]; do sleep 0.01; done; echo three > /dev/stderr"
    two = "until [ -e seen-three ]; do sleep 0.01; done; echo four; : > /proc/self/fd/1; seq 100"
    job_id = client.submit(f"{one}; {two}")
    seen = []
    for item in client.stream("logs", job_id=job_id):
        seen.append(item["text"])
        Path(agent.head.root, "sky_workdir", f"seen-{item['text']}").touch()
    assert [line for line in seen if line != "four"] == ["one", "two", "three", *map(str, range(1, 101))]
    assert [item["text"] for item in client.log(job_id)] == seen


def test_a_log_goes_on_from_any_offset(client: Client) -> None:
    """Each line has the offset that the next one starts from; reading from there gives the rest, each byte once."""
    job_id = client.submit("for i in $(seq 200); do echo line $i of $SKYPILOT_NODE_RANK; done", num_nodes=2)
    items = client.log(job_id)
    assert [item["offset"] for item in items[1:]] == [item["next_offset"] for item in items[:-1]]
    for place in (0, 1, 57, 199, 399):
        assert client.log(job_id, offset=items[place]["offset"]) == items[place:]
    assert client.ok["offset"] == items[-1]["next_offset"]
    assert client.log(job_id, offset=items[-1]["next_offset"]) == []


def test_a_large_script_runs(client: Client) -> None:
    """Scripts are files: no limit of a command line applies."""
    assert client.text(client.submit("# " + "x" * 3_000_000 + "\necho ok")) == "ok\n"


def test_secrets_reach_the_job_and_nothing_else(client: Client, agent: InProcessAgent) -> None:
    """Not jobs.db, not a log, not a command line; the file that kept them is gone when the job is."""
    job_id = client.submit("echo ${#TOKEN}; until [ -e go ]; do sleep 0.02; done", secrets={"TOKEN": "hunter2-secret"})
    stream = client.stream("logs", job_id=job_id)
    assert next(stream)["text"] == "14"
    kept = [path for path in Path(agent.head.root).rglob("*") if path.is_file() and b"hunter2" in path.read_bytes()]
    assert [path.name for path in kept] == [f"{job_id}.json"]
    assert kept[0].stat().st_mode & 0o777 == 0o600
    assert not [words for words in command_lines().values() if b"hunter2" in words]
    Path(agent.head.root, "sky_workdir", "go").touch()
    list(stream)
    assert not kept[0].exists()


def test_the_same_key_is_the_same_job(client: Client) -> None:
    """A repeated submission adopts the job that is there, ended or not."""
    first = client.call("submit", job={"name": "", "run": "echo once", "key": "k1"})
    client.done(first["job_id"])
    again = client.call("submit", job={"name": "", "run": "echo twice", "key": "k1"})
    assert (first["adopted"], again) == (False, {**first, "adopted": True})
    assert client.job(first["job_id"])["key"] == "k1"


def test_a_thousand_jobs_in_one_call(client: Client) -> None:
    """They queue in order, say what they wait for, and one call cancels them."""
    holder = client.submit("sleep 60", num_nodes=3, demand={"CPU": 4})
    client.when(holder, "RUNNING")
    began = time.monotonic()
    jobs = client.call("submit_many", jobs=[{"name": f"j{i}", "run": "true", "num_nodes": 2} for i in range(1000)])["jobs"]
    assert time.monotonic() - began < 20
    assert [job["job_id"] for job in jobs] == list(range(holder + 1, holder + 1001))
    began = time.monotonic()
    waiting = client.call("queue", all=False)["jobs"]
    assert time.monotonic() - began < 5
    lacks = "2 nodes at once, 0 of 3 can take it: it lacks 0.5 CPUs on head (0 free), worker1 (0 free), worker2 (0 free)"
    first = holder + 1
    assert waiting[1]["waiting_for"] == lacks
    assert waiting[2]["waiting_for"] == f"1 job ahead: job {first}, which waits for {lacks}"
    assert waiting[1000]["waiting_for"] == f"999 jobs ahead; the first, job {first}, waits for {lacks}"
    assert len(client.call("cancel", all=True)["cancelled"]) == 1001
    assert client.call("queue", all=False)["jobs"] == []


def test_nobody_overtakes_the_first_in_the_queue(client: Client, agent: InProcessAgent) -> None:
    """A small job that would fit waits behind a large one that does not."""
    workdir = Path(agent.head.root, "sky_workdir")
    holder = client.submit("until [ -e go ]; do sleep 0.02; done; true", demand={"CPU": 4})
    client.when(holder, "RUNNING")
    large = client.submit("date +%s.%N", num_nodes=3, demand={"CPU": 1})
    small = client.submit("date +%s.%N")
    assert client.job(small)["status"] == "PENDING"
    lacks = "3 nodes at once, 2 of 3 can take it: it lacks 1 CPU on head (0 free)"
    assert client.job(large)["waiting_for"] == lacks
    assert client.job(small)["waiting_for"] == f"1 job ahead: job {large}, which waits for {lacks}; it would fit now"
    until(lambda: workdir.is_dir())
    workdir.joinpath("go").touch()
    assert client.done(large)["started_at"] <= client.done(small)["started_at"]


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({"num_nodes": 4}, "asks for 4 nodes, the cluster has 3"),
        ({"demand": {"CPU": 5}}, "5 CPUs on head (4 there)"),
        ({"demand": {"accelerators": {"H100": 1}}}, "1 x H100 on head (0 there)"),
        ({"num_nodes": 3, "demand": {"accelerators": {"A100": 1}}}, "it lacks 1 x A100 on worker2 (0 there)"),
        ({"demand": {"custom": {"disk": 1}}}, "1 x disk on head (0 there)"),
    ],
)
def test_what_can_never_run_is_refused(client: Client, spec: dict[str, object], why: str) -> None:
    """At submission, in words; nothing is queued."""
    with pytest.raises(AgentSaid, match=re.escape(why)) as caught:
        client.call("submit", job={"name": "", "run": "true", **spec})
    assert caught.value.kind == "impossible"
    assert client.call("queue", all=True)["jobs"] == []


def test_a_job_that_takes_too_long_is_ended(client: Client) -> None:
    """timeout_s counts from the start; the tree is ended."""
    job = client.done(client.submit("sleep 91", timeout_s=0.5))
    assert (job["status"], job["cause"]) == ("FAILED", "timed out after 0.5 s")
    assert not _sleeping(91)


def test_a_lost_node_fails_its_gang(client: Client, agent: InProcessAgent) -> None:
    """Its name is in the cause; the other ranks are ended."""
    job_id = client.submit("echo up; sleep 92", num_nodes=3)
    until(lambda: len(client.log(job_id, follow=False)) == 3)
    agent.cut(2)
    agent.lose(2, "node host2 is gone")
    job = client.done(job_id)
    assert (job["status"], job["cause"]) == ("FAILED_DRIVER", "rank 2 (host2) was lost: node host2 is gone")
    assert job["exit_codes"][:2] == [137, 137]


def test_a_supervisor_that_is_killed_loses_its_rank(client: Client) -> None:
    """Nobody knows how the rank ended: FAILED_DRIVER, and the cause says why."""
    job_id = client.submit("exec sleep 93")
    client.when(job_id, "RUNNING")
    until(lambda: _sleeping(93))
    lines = command_lines()
    supervisor = own()[next(pid for pid, words in lines.items() if words == b"sleep\x0093\x00")].ppid
    assert b"skylib_agent.zygote" in lines[supervisor]  # forked from the warm process
    os.kill(supervisor, 9)
    job = client.done(job_id)
    assert (job["status"], job["cause"]) == (
        "FAILED_DRIVER",
        "rank 0 (host0) was lost: its supervisor was ended from outside",
    )
