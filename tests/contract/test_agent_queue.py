"""What an agent promises of its queue: who waits for what, retries, timeouts, keys, and a new beginning after a reboot."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from skylib.agent import refusals
from skylib.agent.processes import carrying, own
from skylib.jobs.columns import decode_jobs
from skylib.models.job import JobRecord
from tests.ray.agent_harness import AgentSaid, Client, InProcessAgent, NodeFolders, connect, until

COUNT = "echo x >> tries; n=$(wc -l < tries); echo try $n; "


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[InProcessAgent]:
    agent = InProcessAgent(NodeFolders(tmp_path, count=2, gpus={0: ["A100", "A100"]}, custom={1: {"license": 2.0}}))
    agent.begin()
    yield agent
    agent.close()


@pytest.fixture
def client(agent: InProcessAgent) -> Iterator[Client]:
    client = connect(agent)
    yield client
    client.close()


def again(agent: InProcessAgent) -> Client:
    agent.stop()
    agent.begin()
    return connect(agent)


def go(agent: InProcessAgent, name: str = "go") -> None:
    for config in agent.configs:
        workdir = Path(config.root, "sky_workdir")
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / name).touch()


def until_there(name: str = "go") -> str:
    return f"until [ -e {name} ]; do sleep 0.02; done"


def processes_of(client: Client, job_id: int) -> set[int]:
    return carrying(own().values(), {"SKYPILOT_TASK_ID": client.job(job_id)["task_id"]})


# --- what a job waits for


def test_jobs_share_a_device_and_a_node_while_they_fit(client: Client) -> None:
    """Two halves of one device and a whole one run at once; the next half waits for a device, and says so."""
    half = {"CPU": 0.5, "accelerators": {"A100": 0.5}}
    running = [client.submit("sleep 60", demand=half) for _ in range(2)]
    running.append(client.submit("sleep 60", demand={"accelerators": {"A100": 1}}))
    for job_id in running:
        client.when(job_id, "RUNNING")
    waiting = client.submit("true", demand=half)
    assert client.job(waiting)["waiting_for"] == "0.5 x A100 on head (0 free), worker1 (0 free)"


def test_a_custom_resource_is_counted(client: Client) -> None:
    """It is given to as many jobs as there are of it, on the node that has it."""
    demand = {"custom": {"license": 1}}
    running = [client.submit(f"{until_there(f'go{n}')}; echo on $SKYPILOT_NODE_RANK", demand=demand) for n in (1, 2)]
    for job_id in running:
        client.when(job_id, "RUNNING")
    third = client.submit("true", demand=demand)
    assert client.job(third)["waiting_for"] == "1 x license on head (0 free), worker1 (0 free)"
    assert "license:1" in client.job(third)["resources"]
    with pytest.raises(AgentSaid, match="3 x license on head"):
        client.submit("true", demand={"custom": {"license": 3}})


def test_what_is_ahead_and_what_is_lacking_are_told_apart(client: Client) -> None:
    """The first says what it lacks; the others who is ahead, what that one waits for, and what they lack themselves."""
    holder = client.submit("sleep 60", demand={"accelerators": {"A100": 2}})
    client.when(holder, "RUNNING")
    first = client.submit("true", demand={"accelerators": {"A100": 1}})
    same = client.submit("true", demand={"accelerators": {"A100": 1}})
    fits = client.submit("true", demand={"CPU": 1})
    large = client.submit("true", demand={"accelerators": {"A100": 2}})
    lacks = "1 x A100 on head (0 free), worker1 (0 free)"
    assert client.job(first)["waiting_for"] == lacks
    assert client.job(same)["waiting_for"] == f"1 job ahead: job {first}, which waits for {lacks}"
    ahead = f"jobs ahead; the first, job {first}, waits for {lacks}"
    assert client.job(fits)["waiting_for"] == f"2 {ahead}; it would fit now"
    lacking = "it lacks 2 x A100 on head (0 free), worker1 (0 free) itself"
    assert client.job(large)["waiting_for"] == f"3 {ahead}; {lacking}"
    assert client.job(holder)["waiting_for"] == ""


def test_a_node_that_is_away_is_waited_for_by_name(agent: InProcessAgent, client: Client) -> None:
    """A job that would run if the node were there says so."""
    agent.cut(1)
    waiting = client.submit("true", num_nodes=2)
    assert client.job(waiting)["waiting_for"] == "node host1 to come back"
    agent.bring_back(1)
    assert client.done(waiting)["status"] == "SUCCEEDED"


def test_columns_say_what_jobs_say(client: Client) -> None:
    """The queue in columns is the same records as the queue of Jobs."""
    done = client.submit("exit 3", name="gone")
    client.done(done)
    holder = client.submit("sleep 60", num_nodes=2, demand={"CPU": 4}, key="mine")
    client.when(holder, "RUNNING")
    client.call("submit_many", jobs=[{"name": f"n{n}/{n}", "run": "true", "key": f"~{n}"} for n in range(200)])
    for everything in (True, False):
        jobs = client.call("queue", all=everything)["jobs"]
        for job in jobs:
            job["key"] = job["key"] if job["key"] == "mine" else ""
        said = client.call("queue", all=everything, form="columns")
        assert decode_jobs("train", said) == [JobRecord.from_json({**job, "cluster_name": "train"}) for job in jobs]
        assert len(json.dumps(said)) * 3 < len(json.dumps(jobs))


def test_a_job_that_ray_refuses_says_why(agent: InProcessAgent, client: Client) -> None:
    """Also in columns, where it does not count among those that are ahead in the queue; it runs once Ray is willing."""
    agent.ranks.refusing = "no such resource"
    refused = client.submit("true", demand={"CPU": 4}, num_nodes=2)
    why = "its reservation: Ray refuses its resources: no such resource"
    until(lambda: client.job(refused)["waiting_for"] == why)
    for _ in range(3):
        client.submit("true", demand={"CPU": 4}, num_nodes=2)
    jobs = client.call("queue")["jobs"]
    assert [job["waiting_for"].partition(" ahead")[0] for job in jobs[2:]] == ["1 job", "2 jobs"]
    assert [record.waiting_for for record in decode_jobs("train", client.call("queue", form="columns"))] == [
        job["waiting_for"] for job in jobs
    ]
    agent.ranks.refusing = ""
    done = client.done(refused)
    assert (done["status"], done["waiting_for"]) == ("SUCCEEDED", "")


def test_a_job_that_ray_refuses_is_cancelled_at_once(agent: InProcessAgent, client: Client) -> None:
    """It does not wait for the next try."""
    agent.ranks.refusing = "no"
    refused = client.submit("true")
    until(lambda: client.job(refused)["waiting_for"])
    client.call("cancel", job_ids=[refused])
    assert client.job(refused)["status"] == "CANCELLED"


def test_a_job_that_ray_refuses_for_too_long_fails(
    agent: InProcessAgent, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what Ray said; its place is free again."""
    monkeypatch.setattr(refusals, "LIMIT_S", 0.5)
    agent.ranks.refusing = "no such resource"
    job = client.done(client.submit("true"))
    assert job["status"] == "FAILED_DRIVER"
    assert job["cause"].endswith("s Ray refuses its resources: no such resource")


# --- many jobs


def test_many_jobs_are_all_taken_or_none(client: Client) -> None:
    """One that can never run refuses all, and says which one it is."""
    jobs = [{"name": "", "run": "true"}] * 5
    with pytest.raises(AgentSaid) as caught:
        client.call("submit_many", jobs=[*jobs, {"name": "", "run": "true", "num_nodes": 9}, *jobs])
    assert (caught.value.kind, caught.value.error["index"]) == ("impossible", 5)
    for wrong in ({"timeout_s": -1}, {"max_retries": -1}, {"retry_exit_codes": 3}, {"secrets": [1]}, {"num_nodes": "x"}):
        with pytest.raises(AgentSaid) as caught:
            client.call("submit_many", jobs=[*jobs, {"name": "", "run": "true", **wrong}])
        assert (caught.value.kind, caught.value.error["index"]) == ("invalid", 5)
    assert client.call("queue")["jobs"] == []


def test_keys_within_many_jobs(client: Client) -> None:
    """A key that comes twice, or was there before, is one job; the answer is in order."""
    before = client.submit("true", key="a")
    jobs = [{"name": "", "run": "true", "key": key} for key in ("b", "a", "c", "b", None)]
    answer = client.call("submit_many", jobs=jobs)
    assert [(job["job_id"] - before, job["adopted"]) for job in answer["jobs"]] == [
        (1, False),
        (0, True),
        (2, False),
        (1, True),
        (3, False),
    ]
    assert [record.job_id for record in decode_jobs("train", answer)] == [before + 1, before, before + 2, before + 3]


def test_ten_thousand_jobs_are_cancelled_by_one_call(client: Client) -> None:
    """Those that wait, at once; a job that is named twice is cancelled once."""
    holder = client.submit("sleep 60", num_nodes=2, demand={"CPU": 4})
    client.when(holder, "RUNNING")
    client.call("submit_many", jobs=[{"name": "", "run": "true"} for _ in range(10_000)])
    began = time.monotonic()
    ids = list(range(holder + 1, holder + 10_001))
    assert len(client.call("cancel", job_ids=[*ids, *ids])["cancelled"]) == 10_000
    assert time.monotonic() - began < 20
    assert [job["job_id"] for job in client.call("queue", all=False)["jobs"]] == [holder]


# --- keys


def test_a_key_is_one_job_whoever_asks_at_the_same_time(agent: InProcessAgent, client: Client) -> None:
    """Of many that submit with one key at once, one begins the job and the others adopt it."""
    answers: list[dict[str, Any]] = []

    def submit(number: int) -> None:
        other = Client(agent.head.socket)
        job = {"name": "", "run": f"echo {number}", "key": "k", "submission": f"s{number}"}
        answers.append(other.call("submit", job=job))
        other.close()

    threads = [threading.Thread(target=submit, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len({answer["job_id"] for answer in answers}) == 1
    assert sorted(answer["adopted"] for answer in answers) == [False] + [True] * 7


def test_a_submit_that_is_repeated_adopts_nothing(agent: InProcessAgent, client: Client) -> None:
    """The same submission asked again is the same answer; another with the same key adopts, after a restart as well."""
    job = {"name": "", "run": "true", "key": "k", "submission": "one"}
    first = client.call("submit", job=job)
    assert client.call("submit", job=job) == first
    client.done(first["job_id"])
    client = again(agent)
    assert client.call("submit", job=job) == first
    assert client.call("submit", job={**job, "run": "false", "submission": "two"}) == {**first, "adopted": True}


# --- retries


def test_a_job_is_tried_again_until_it_succeeds(client: Client) -> None:
    """All attempts are in one log, in order; the job's end is that of the last one."""
    job_id = client.submit(COUNT + "test $n = 3", max_retries=5)
    job = client.done(job_id)
    assert (job["status"], job["exit_codes"], job["attempt"], job["cause"]) == ("SUCCEEDED", [0], 2, "")
    assert client.text(job_id) == "try 1\ntry 2\ntry 3\n"


def test_retries_come_to_an_end(client: Client) -> None:
    """The cause says how often it was tried."""
    job_id = client.submit(COUNT + "exit 7", max_retries=1)
    job = client.done(job_id)
    assert (job["status"], job["exit_codes"], job["attempt"]) == ("FAILED", [7], 1)
    assert job["cause"] == "rank 0 (host0) exited 7 (after 1 retry)"
    assert client.text(job_id) == "try 1\ntry 2\n"


def test_only_the_codes_that_are_named_are_tried_again(client: Client) -> None:
    """Another code ends the job."""
    job_id = client.submit(COUNT + "exit $((32 + n))", max_retries=9, retry_exit_codes=[33, 34])
    job = client.done(job_id)
    assert (job["exit_codes"], job["attempt"]) == ([35], 2)


def test_a_gang_is_tried_again_as_a_whole(client: Client, agent: InProcessAgent) -> None:
    """Its other ranks, and what they left in the background, are gone before the next attempt; secrets are there again."""
    script = 'echo $SECRET $SKYPILOT_NODE_RANK >> "$HOLD"; (sleep 97 &) ; [ $SKYPILOT_NODE_RANK = 0 ] && exit 5; sleep 60'
    hold = str(Path(agent.head.root, "hold"))
    job_id = client.submit(script, num_nodes=2, max_retries=1, secrets={"SECRET": "s"}, envs={"HOLD": hold})
    job = client.done(job_id)
    assert (job["status"], job["attempt"], job["exit_codes"][0]) == ("FAILED", 1, 5)
    assert Path(hold).read_text().count("s 0") == 2
    assert len(processes_of(client, job_id)) <= 2  # of the last attempt alone


def test_no_retry_for_setup_cancel_timeout_or_a_lost_node(client: Client, agent: InProcessAgent) -> None:
    """Only exits of ranks are tried again."""
    setup = client.submit("true", setup="exit 3", max_retries=3)
    assert (client.done(setup)["status"], client.job(setup)["attempt"]) == ("FAILED_SETUP", 0)
    cancelled = client.submit("sleep 60", max_retries=3)
    client.when(cancelled, "RUNNING")
    client.call("cancel", job_ids=[cancelled])
    assert (client.job(cancelled)["status"], client.job(cancelled)["attempt"]) == ("CANCELLED", 0)
    late = client.submit("sleep 60", timeout_s=0.3, max_retries=3)
    assert (client.done(late)["status"], client.job(late)["attempt"]) == ("FAILED", 0)
    lost = client.submit("echo on; sleep 60", num_nodes=2, max_retries=3)
    until(lambda: len(client.log(lost, follow=False)) == 2)
    agent.lose(1, "node host1 is gone")
    assert (client.done(lost)["status"], client.job(lost)["attempt"]) == ("FAILED_DRIVER", 0)


def test_retries_go_on_after_a_restart_of_the_agent(client: Client, agent: InProcessAgent) -> None:
    """Attempts are counted on, whether the agent was away during one or between two."""
    job_id = client.submit(COUNT + until_there("go$n") + "; exit 4", max_retries=3)
    until(lambda: client.log(job_id, follow=False))
    go(agent, "go1")
    until(lambda: client.job(job_id)["attempt"] == 1 and len(client.log(job_id, follow=False)) == 2)
    agent.stop()
    go(agent, "go2")
    until(lambda: len(carrying(own().values(), {"SKYPILOT_INTERNAL_JOB_ID": str(job_id)})) == 0)
    agent.begin()
    client = connect(agent)
    until(lambda: client.job(job_id)["attempt"] == 2)
    client = again(agent)
    go(agent, "go3")
    go(agent, "go4")
    job = client.done(job_id)
    assert (job["status"], job["attempt"], job["exit_codes"]) == ("FAILED", 3, [4])
    assert client.text(job_id) == "try 1\ntry 2\ntry 3\ntry 4\n"


def test_a_job_is_cancelled_between_two_attempts(client: Client) -> None:
    """The next one is not begun."""
    job_id = client.submit(COUNT + "exit 1", max_retries=100)
    until(lambda: client.job(job_id)["attempt"] >= 2)
    client.call("cancel", job_ids=[job_id])
    job = client.job(job_id)
    assert job["status"] == "CANCELLED"
    assert not processes_of(client, job_id)


# --- timeouts


def test_a_timeout_ends_the_whole_job(client: Client) -> None:
    """Every rank and what they began; the cause and its reason say so."""
    job_id = client.submit("sleep 60 & sleep 60", num_nodes=2, timeout_s=0.5)
    job = client.done(job_id)
    assert (job["status"], job["cause"]) == ("FAILED", "timed out after 0.5 s")
    assert job["first_cause"]["reason"] == "timeout"
    assert job["first_cause"]["rank"] is None
    assert not processes_of(client, job_id)


def test_setup_and_the_queue_do_not_count(client: Client) -> None:
    """The limit is on the run alone."""
    job_id = client.submit("true", setup="sleep 1.5", timeout_s=1)
    assert client.done(job_id)["status"] == "SUCCEEDED"


def test_a_timeout_outlives_the_agent(client: Client, agent: InProcessAgent) -> None:
    """It counts from when the run began, not from the restart; a job that ended in time meanwhile has not timed out."""
    late = client.submit("sleep 60", timeout_s=1)
    in_time = client.submit(until_there() + "; exit 0", timeout_s=1)
    for job_id in (late, in_time):
        client.when(job_id, "RUNNING")
    agent.stop()
    go(agent)
    time.sleep(1)
    agent.begin()
    client = connect(agent)
    began = time.monotonic()
    assert client.done(in_time)["status"] == "SUCCEEDED"
    assert client.done(late)["cause"] == "timed out after 1 s"
    assert time.monotonic() - began < 30


# --- reboot


def reboot(agent: InProcessAgent) -> Client:
    """As after a boot of the head's machine: what ran there is gone, and the boot is another."""
    agent.stop()
    with sqlite3.connect(Path(agent.head.sky, "jobs.db")) as db:
        db.execute("UPDATE config SET value = '\"another boot\"' WHERE key = 'boot'")
    agent.begin()
    return connect(agent)


def test_after_a_reboot_of_the_head_nothing_runs_on(client: Client, agent: InProcessAgent) -> None:
    """What ran has failed, its ranks elsewhere are ended; what waited stays only if it asked for retries."""
    runs = client.submit("sleep 60", num_nodes=2, demand={"CPU": 4})
    client.when(runs, "RUNNING")
    waits = client.submit("true")
    retries = client.submit("echo again", max_retries=1)
    client = reboot(agent)
    for job_id in (runs, waits):
        job = client.done(job_id)
        assert (job["status"], job["cause"]) == ("FAILED_DRIVER", "node host0, the head, was started anew")
        assert job["first_cause"]["reason"] == "lost"
    assert client.done(retries)["status"] == "SUCCEEDED"
    until(lambda: not processes_of(client, runs))


def test_a_restart_is_no_reboot(client: Client, agent: InProcessAgent) -> None:
    """The agent alone began anew: what waits goes on waiting."""
    holder = client.submit("sleep 60", num_nodes=2, demand={"CPU": 4})
    client.when(holder, "RUNNING")
    waits = client.submit("true")
    client = again(agent)
    assert [client.job(job_id)["status"] for job_id in (holder, waits)] == ["RUNNING", "PENDING"]


def test_outputs_are_kept_with_the_job(client: Client, agent: InProcessAgent) -> None:
    """What is wanted home is told with the nodes of the ranks, in both forms of the queue, and after a restart."""
    outputs = {"wanted": {"r/*": "/here"}, "client": "c1"}
    plain = client.submit("true")
    job_id = client.submit("true", num_nodes=2, outputs=outputs)
    client.done(job_id)
    expected = {**outputs, "nodes": [0, 1]}
    for place in range(2):
        each = again(agent) if place else client
        assert (each.job(job_id)["outputs"], each.job(plain)["outputs"]) == (expected, None)
        records = {record.job_id: record for record in decode_jobs("train", each.call("queue", form="columns"))}
        assert records[plain].outputs is None
        assert records[job_id].outputs is not None
        assert records[job_id].outputs.to_json() == expected
    with pytest.raises(AgentSaid, match="outputs"):
        each.submit("true", outputs={"wanted": ["x"]})


def test_an_end_that_nobody_knows_is_the_same_after_a_restart(client: Client, agent: InProcessAgent) -> None:
    """The only rank of a job was lost: its exit code is unknown, then and later."""
    job_id = client.submit("echo on; sleep 60")
    until(lambda: client.log(job_id, follow=False))
    agent.lose(0, "node host0 is gone")
    job = client.done(job_id)
    assert (job["status"], job["exit_codes"]) == ("FAILED_DRIVER", [None])
    assert again(agent).job(job_id) == job
