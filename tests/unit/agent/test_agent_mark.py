"""cluster.json as the agent keeps it: ids of jobs, in few writes, and no harm when it cannot be written."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skylib.agent.config import AgentConfig
from skylib.agent.mark import MarkKeeper, ids_in, ranges, rewrite
from skylib.models.mark import JobIds
from tests.ray.agent_harness import Client, InProcessAgent, NodeFolders, until


@given(st.sets(st.integers(1, 10**9)))
def test_ids_go_and_come_back(ids: set[int]) -> None:
    """What the agent writes is what the client reads, ids in order."""
    assert list(JobIds.parse(ranges(ids))) == sorted(ids)


def test_names_of_jobs_give_their_ids() -> None:
    """Only names of this cluster's jobs count, whatever the cluster is called."""
    names = ["sky-2026-01-01-00-00-00-000001_a_b_7", "sky-2026_a_b_12", "sky-2026_b_3", "lost+found", "sky-1_a_b_x"]
    assert ids_in(names, "a_b") == [7, 12]


@pytest.fixture
def config(tmp_path: Path) -> AgentConfig:
    made = NodeFolders(tmp_path, count=2).write()[1]
    write_mark(made)
    return made


def write_mark(config: AgentConfig, **fields: Any) -> None:
    mark = {"schema": 2, "cluster_id": config.cluster_id, "members": [{"root": "/a"}, {"root": "/b"}], **fields}
    Path(config.sky, "cluster.json").write_text(json.dumps(mark, indent=1))


def mark_of(config: AgentConfig) -> dict[str, Any]:
    return dict(json.loads(Path(config.sky, "cluster.json").read_text()))


def test_a_rewrite_keeps_all_else_and_the_lines(config: AgentConfig) -> None:
    """Only what was given changes; each root still has a line of its own, as the probe's shell reads them."""
    before = Path(config.sky, "cluster.json").read_text()
    assert rewrite(config, {"job_ids": "1-3"})
    assert mark_of(config) == {**json.loads(before), "job_ids": "1-3"}
    lines = Path(config.sky, "cluster.json").read_text().splitlines()
    assert [line.strip() for line in lines if "root" in line] == ['"root": "/a"', '"root": "/b"']
    assert os.stat(os.path.join(config.sky, "cluster.json")).st_mode & 0o777 == 0o600


def test_the_same_again_writes_nothing(config: AgentConfig) -> None:
    """A mark that says it already is left as it is."""
    rewrite(config, {"job_ids": "1-3"})
    before = os.stat(os.path.join(config.sky, "cluster.json"))
    assert rewrite(config, {"job_ids": "1-3"})
    assert os.stat(os.path.join(config.sky, "cluster.json")) == before


@pytest.mark.parametrize("text", ['{"cluster_id": "another"}', "[1]", "{", None])
def test_a_mark_that_is_not_ours_stays(config: AgentConfig, text: str | None) -> None:
    """Another cluster's, a broken one and none at all are left alone."""
    path = Path(config.sky, "cluster.json")
    path.unlink()
    if text is not None:
        path.write_text(text)
    assert rewrite(config, {"job_ids": "1"})
    assert (path.read_text() if path.exists() else None) == text


def test_while_another_claims_it_waits(config: AgentConfig) -> None:
    """A rewrite keeps out of the way of a claim, which holds the folder's lock."""
    folder = os.open(config.sky, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    assert not rewrite(config, {"job_ids": "1"})
    os.close(folder)
    assert rewrite(config, {"job_ids": "1"})


def test_a_write_that_fails_is_tried_again(config: AgentConfig) -> None:
    """What cannot be written (here: no folder to write beside) is an entry in the log, and is written when it can be."""

    async def work() -> None:
        keeper = MarkKeeper(config, lambda: {"job_ids": [1, 2, 3]}, pause_s=0.01)
        beside = Path(config.sky, "agent")
        beside.rename(beside.with_name("away"))
        task = asyncio.ensure_future(keeper.run())
        await asyncio.sleep(0.1)
        assert "job_ids" not in mark_of(config)
        beside.with_name("away").rename(beside)
        for _ in range(500):
            if mark_of(config).get("job_ids") == "1-3":
                break
            await asyncio.sleep(0.01)
        task.cancel()
        assert mark_of(config)["job_ids"] == "1-3"

    asyncio.run(work())


def test_a_worker_knows_the_jobs_that_ran_there(config: AgentConfig) -> None:
    """A worker's ids are those of the jobs that have a rank on it."""

    async def work() -> None:
        keeper = MarkKeeper(config, None)
        for name in ("sky-2026-01-01_train_3", "sky-2026-01-01_train_4", "sky-2026-01-01_other_9"):
            os.makedirs(os.path.join(config.jobs_state, name))
        await keeper.write()

    asyncio.run(work())
    assert mark_of(config)["job_ids"] == "3-4"


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[InProcessAgent]:
    made = InProcessAgent(NodeFolders(tmp_path, count=2))
    write_mark(made.head, job_ids="")
    made.begin()
    yield made
    made.close()


def test_a_thousand_jobs_are_few_writes(agent: InProcessAgent) -> None:
    """Jobs submitted one by one are written down together, within moments, and all of them."""
    client = Client(agent.head.socket)
    client.call("autostop", idle_minutes=30, down=True)
    seen: set[tuple[int, int]] = set()
    path = os.path.join(agent.head.sky, "cluster.json")
    for _ in range(1000):
        client.submit("true", demand={"CPU": 4})
        found = os.stat(path)
        seen.add((found.st_ino, found.st_mtime_ns))
    client.call("cancel", all=True)
    until(lambda: mark_of(agent.head)["job_ids"] == "1-1000")
    assert mark_of(agent.head)["autostop"].items() >= {"idle_minutes": 30, "down": True}.items()
    assert len(seen) < 50
    client.close()


def test_an_agent_that_leaves_writes_what_is_new(agent: InProcessAgent) -> None:
    """What came just before the agent was told to leave is in the file when it is gone."""
    client = Client(agent.head.socket)
    until(lambda: "autostop" in mark_of(agent.head))
    client.submit("true")
    client.close()
    agent.stop()
    assert mark_of(agent.head)["job_ids"] == "1"
