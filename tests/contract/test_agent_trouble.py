"""What an agent promises of jobs when the machine fails it: a full disk, files that are gone, an end from outside."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from skylib.agent.config import AgentConfig
from skylib.agent.daemon import Daemon
from skylib.agent.processes import carrying, own
from tests.ray.agent_harness import AgentSaid, Client, DirectRanks, InProcessAgent, NodeFolders, connect, until


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[InProcessAgent]:
    agent = InProcessAgent(NodeFolders(tmp_path, count=1))
    agent.begin()
    yield agent
    agent.close()


@pytest.fixture
def client(agent: InProcessAgent) -> Client:
    return connect(agent)


def again(agent: InProcessAgent) -> Client:
    agent.stop()
    agent.begin()
    return connect(agent)


def test_a_submission_that_fails_leaves_no_job(agent: InProcessAgent, client: Client) -> None:
    """Secrets that cannot be kept: the caller has an error, and no restart begins the job without them."""
    secrets = Path(agent.head.secrets)
    secrets.write_text("no directory")
    with pytest.raises(AgentSaid) as caught:
        client.submit("touch began", secrets={"A": "b"}, key="k")
    assert caught.value.kind == "internal"
    secrets.unlink()
    client = again(agent)
    assert client.call("queue", all=True)["jobs"] == []
    assert client.text(client.submit("echo $A", secrets={"A": "b"}, key="k")) == "b\n"


def test_a_job_without_its_secrets_fails(agent: InProcessAgent, client: Client) -> None:
    """It is not run without them; the next one has its turn."""
    holder = client.submit("until [ -e go ]; do sleep 0.01; done", demand={"CPU": 4})
    client.when(holder, "RUNNING")
    bare = client.submit("touch began", secrets={"A": "b"}, demand={"CPU": 4})
    following = client.submit("true", demand={"CPU": 4})
    Path(agent.head.secrets, f"{bare}.json").unlink()
    until(lambda: Path(agent.head.root, "sky_workdir").is_dir())
    Path(agent.head.root, "sky_workdir", "go").touch()
    job = client.done(bare)
    assert job["status"] == "FAILED_DRIVER"
    assert f"secrets/{bare}.json" in job["cause"]
    assert client.done(following)["status"] == "SUCCEEDED"


def test_an_end_that_cannot_be_written_down_is_told_later(agent: InProcessAgent, client: Client) -> None:
    """The job is what it was until jobs.db takes its end, and then it is that very end."""
    job_id = client.submit("until [ -e go ]; do sleep 0.01; done")
    client.when(job_id, "RUNNING")
    with sqlite3.connect(Path(agent.head.sky, "jobs.db"), isolation_level=None) as full:
        full.execute("CREATE TRIGGER full BEFORE UPDATE OF end_at ON jobs BEGIN SELECT RAISE(ABORT, 'full'); END")
        until(lambda: Path(agent.head.root, "sky_workdir").is_dir())
        Path(agent.head.root, "sky_workdir", "go").touch()
        until(lambda: client.call("info")["active_jobs"] == 0)
        assert client.job(job_id)["status"] == "RUNNING"
        full.execute("DROP TRIGGER full")
    full.close()
    assert client.done(job_id)["status"] == "SUCCEEDED"


def test_a_job_that_cannot_be_followed_is_ended(agent: InProcessAgent, client: Client) -> None:
    """Its agent could not go on with it: it has failed, and none of its processes is left to run unseen."""
    with sqlite3.connect(Path(agent.head.sky, "jobs.db"), isolation_level=None) as full:
        condition = "BEFORE UPDATE OF launched ON jobs WHEN NEW.launched = 1"
        full.execute(f"CREATE TRIGGER full {condition} BEGIN SELECT RAISE(ABORT, 'full'); END")
    full.close()
    job = client.done(client.submit("sleep 60"))
    assert (job["status"], job["cause"]) == ("FAILED_DRIVER", "the agent failed: full")
    assert not carrying(own().values(), {"SKYPILOT_TASK_ID": job["task_id"]})


def test_a_job_that_was_ended_with_its_cluster_has_not_ended_by_itself(agent: InProcessAgent, client: Client) -> None:
    """However its script took the signal: the next agent knows that nobody can say how it would have ended."""
    job_id = client.submit("trap 'exit 0' TERM; echo up; while :; do sleep 0.01; done")
    until(lambda: client.log(job_id, follow=False))
    before = client.done(client.submit("exit 3"))
    agent.stop()
    config = agent.head
    argv = [sys.executable, "-S", "-E", config.bundle_of(config.me), "end", "--config", config.path]
    assert json.loads(subprocess.run(argv, capture_output=True, timeout=30, check=True).stdout)["survivors"] == []
    agent.begin()
    client = connect(agent)
    job = client.done(job_id)
    assert (job["status"], job["cause"]) == ("FAILED_DRIVER", "rank 0 (host0) was lost: the cluster was ended while it ran")
    assert client.job(before["job_id"]) == before


def test_a_job_that_takes_its_log_away_keeps_nobody_waiting(agent: InProcessAgent, client: Client) -> None:
    """It ends as it ended, and so does the one beside it; what can still be read is told."""
    away = 'log=$(readlink -f /proc/$$/fd/1); '
    links = client.submit(away + 'rm "$log"; ln -s "$log" "$log"; until [ -e go ]; do sleep 0.01; done; exit 3')
    folder = client.submit(away + 'rm "$log"; mkdir "$log"; exit 4')
    beside = client.submit("echo beside; touch go")
    assert client.done(beside)["exit_codes"] == [0]
    assert client.text(beside) == "beside\n"
    assert client.done(folder)["exit_codes"] == [4]
    assert client.done(links)["exit_codes"] == [3]


def test_secrets_that_an_agent_left_behind_go_with_the_next_one(agent: InProcessAgent, client: Client) -> None:
    """It may have died right after a job's end, or before a job was in the table; those of waiting jobs stay."""
    client.submit("until [ -e go ]; do sleep 0.01; done", demand={"CPU": 4})
    waiting = client.submit("true", demand={"CPU": 4}, secrets={"S": "s"})
    folder = Path(agent.head.secrets)
    (folder / "7.json").write_text("{}")
    again(agent)
    assert [path.name for path in folder.iterdir()] == [f"{waiting}.json"]


def test_a_job_whose_secrets_cannot_be_removed_ends_all_the_same(agent: InProcessAgent, client: Client) -> None:
    """Who waits for it is told: here a directory stands where the file was."""
    job_id = client.submit("touch begun; until [ -e go ]; do sleep 0.01; done", secrets={"S": "s"})
    workdir = Path(agent.head.root, "sky_workdir")
    until((workdir / "begun").exists)
    path = Path(agent.head.secrets, f"{job_id}.json")
    path.unlink()
    path.mkdir()
    (workdir / "go").touch()
    assert client.done(job_id, timeout_s=10)["status"] == "SUCCEEDED"


class FailingRanks(DirectRanks):
    """The way to the nodes, which breaks down when told."""

    def __init__(self, configs: list[AgentConfig]) -> None:
        super().__init__(configs)
        self.fail = asyncio.Event()

    async def run(self) -> None:
        await self.fail.wait()
        raise ZeroDivisionError("a mistake")


def test_an_agent_whose_part_fails_ends_as_failed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """So that its guardian begins it anew: it does not go on without what keeps it in touch with its nodes."""
    configs = NodeFolders(tmp_path, count=1).write()

    async def run() -> None:
        ranks = FailingRanks(configs)
        await asyncio.wait_for(Daemon(configs[0], ranks).run(ranks.fail.set), 20)

    with pytest.raises(RuntimeError, match="a part of the agent has failed"):
        asyncio.run(run())
    assert "a mistake" in caplog.text
