"""The job engine against what it promises, whatever comes in whatever order; its nodes exist in memory."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from skylib.agent.config import AgentConfig, NodeConfig
from skylib.agent.db import JobsDb
from skylib.agent.engine import Engine
from skylib.agent.link import RankError, Ranks
from skylib.agent.node import PollReply
from skylib.agent.protocol import TERMINAL

CPUS = 4.0
WORKERS = (1, 2)  # the head has no CPU to give: what ends there would be looked for among real processes
Key = tuple[str, str, int]


class MemoryRanks(Ranks):
    """Nodes whose ranks run until they are told how to end; they go on whatever becomes of the agent."""

    def __init__(self) -> None:
        super().__init__()
        self.up = True
        self.running: dict[Key, int] = {}
        self.started: set[Key] = set()
        self.ends: dict[Key, tuple[int, dict[str, Any]]] = {}
        self.wake: dict[int, asyncio.Event] = {}
        self.nodes = {
            rank: {"rank": rank, "alive": True, "resources": {"CPU": CPUS, f"skylib_rank_{rank}": 1.0}}
            for rank in (0, *WORKERS)
        }

    def end(self, key: Key, code: int) -> None:
        node = self.running.pop(key)
        self.ends[key] = (node, {"code": code, "signal": None, "at": 0.0, "reason": "exit", "last_lines": []})
        self.wake.setdefault(node, asyncio.Event()).set()

    async def call(self, rank: int, method: str, *args: Any, timeout_s: float | None = None) -> Any:
        if not self.nodes[rank]["alive"]:
            raise RankError("node", "the node is away")
        if method == "start":
            key = (args[0]["task_id"], args[0]["phase"], args[0]["rank"])
            if key in self.started:
                return "exists"
            self.started.add(key)
            self.running[key] = rank
            return "started"
        if method == "poll":
            return await self._poll(rank, args[1])
        if method == "kill":
            task_id, _, ranks, _, _ = args
            for key in [key for key, node in self.running.items() if node == rank and key[0] == task_id]:
                if ranks is None or key[2] in ranks:
                    self.end(key, 137)
            return {"ended": [], "survivors": []}
        return False if method == "setup_done" else None

    async def _poll(self, node: int, done: list[Key]) -> PollReply:
        for key in done:
            self.ends.pop(tuple(key), None)  # type: ignore[call-overload]
        wake = self.wake.setdefault(node, asyncio.Event())
        while True:
            ends = [(key, record) for key, (where, record) in self.ends.items() if where == node]
            if ends:
                parts: dict[str, Any] = {name: [] for name in PollReply._fields}
                return PollReply(**{**parts, "ends": ends})
            wake.clear()
            await wake.wait()

    async def reserve(self, name: str, bundles: list[dict[str, float]]) -> bool:
        return True

    async def release(self, name: str) -> None:
        return

    async def keep(self, names: list[str]) -> None:
        return


def config_in(root: Path) -> AgentConfig:
    def node(rank: int) -> NodeConfig:
        cpus = CPUS if rank in WORKERS else 0.0
        return NodeConfig(rank, f"h{rank}", "127.0.0.1", str(root / f"n{rank}"), cpus, 8.0, (), {})

    os.makedirs(root / "n0" / ".sky")
    return AgentConfig(
        path="",
        cluster="train",
        cluster_id="id",
        rank=0,
        role="head",
        root=str(root / "n0"),
        temp_dir="",
        env="",
        socket="",
        ray_port=1,
        head_ip="127.0.0.1",
        node_ip="127.0.0.1",
        infra="ssh/lab",
        user="me",
        bundle="",
        nodes=tuple(node(rank) for rank in (0, *WORKERS)),
        autostop=None,
    )


class EngineMachine(RuleBasedStateMachine):
    """Jobs come, end, are tried again and cancelled; nodes and the agent go and come back."""

    @initialize()
    def start(self) -> None:
        self.folder = TemporaryDirectory()
        self.loop = asyncio.new_event_loop()
        self.config = config_in(Path(self.folder.name))
        self.ranks = MemoryRanks()
        self.ended: dict[int, tuple[str, str, tuple[int | None, ...]]] = {}
        self.retries: dict[int, int] = {}
        self._begin()

    def _begin(self) -> None:
        async def begin() -> None:
            self.ranks.wake.clear()
            self.engine = Engine(self.config, JobsDb(os.path.join(self.config.sky, "jobs.db")), self.ranks)
            self.engine.load()
            self.engine.schedule()

        self.loop.run_until_complete(begin())
        self._settle()

    def _settle(self) -> None:
        async def ticks() -> None:
            for _ in range(80):
                await asyncio.sleep(0)

        self.loop.run_until_complete(ticks())

    def _do(self, work: Any) -> Any:
        async def run() -> Any:
            result = work()
            return await result if asyncio.iscoroutine(result) else result

        found = self.loop.run_until_complete(run())
        self._settle()
        return found

    @rule(
        num_nodes=st.integers(1, 2),
        cpus=st.sampled_from([1.0, 2.0, 4.0]),
        retries=st.integers(0, 2),
        key=st.sampled_from([None, None, None, "a", "b"]),
    )
    def submit(self, num_nodes: int, cpus: float, retries: int, key: str | None) -> None:
        known = {job.key: job.job_id for job in self.engine.jobs.values() if job.key}
        spec = {"run": "x", "num_nodes": num_nodes, "demand": {"CPU": cpus}, "max_retries": retries, "key": key}
        (answer,) = self._do(lambda: self.engine.submit([spec], 1.0))
        assert answer["adopted"] is (key in known)
        if answer["adopted"]:
            assert answer["job_id"] == known[key or ""]
        else:
            self.retries[answer["job_id"]] = retries

    @precondition(lambda self: self.ranks.running)
    @rule(data=st.data(), code=st.sampled_from([0, 0, 1, 137]))
    def rank_ends(self, data: st.DataObject, code: int) -> None:
        key = data.draw(st.sampled_from(sorted(self.ranks.running)))
        if self.ranks.nodes[self.ranks.running[key]]["alive"]:
            self._do(lambda: self.ranks.end(key, code))

    @precondition(lambda self: len(self.engine.jobs) > 3 and all(node["alive"] for node in self.ranks.nodes.values()))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        ids = sorted(self.engine.jobs)
        wanted = data.draw(st.lists(st.sampled_from(ids), max_size=2)) if ids else []
        self._do(lambda: self.engine.cancel(wanted, everything=False))
        assert all(self.engine.jobs[job_id].is_terminal for job_id in wanted)

    @precondition(lambda self: self.ranks.running)
    @rule(code=st.sampled_from([0, 0, 2]))
    def oldest_job_ends(self, code: int) -> None:
        """All its ranks in the same way; those on a node that is away are seen later."""
        first = min(task_id for task_id, _, _ in self.ranks.running)
        for key in [key for key in self.ranks.running if key[0] == first]:
            self._do(lambda key=key: self.ranks.end(key, code) if key in self.ranks.running else None)

    @precondition(lambda self: all(node["alive"] for node in self.ranks.nodes.values()))
    @rule(rank=st.sampled_from(WORKERS))
    def node_goes(self, rank: int) -> None:
        self.ranks.nodes[rank]["alive"] = False

    @precondition(lambda self: not all(node["alive"] for node in self.ranks.nodes.values()))
    @rule()
    def node_comes(self) -> None:
        for node in self.ranks.nodes.values():
            node["alive"] = True
        self._do(self.engine.schedule)

    @rule()
    def agent_begins_anew(self) -> None:
        self._stop()
        self._begin()

    def _stop(self) -> None:
        self._do(self.engine.stop)
        self.engine.db.close()

    @invariant()
    def an_end_is_for_ever(self) -> None:
        for job in self.engine.jobs.values():
            end = (job.status, job.cause, tuple(job.exit_codes))
            if job.is_terminal:
                first = self.ended.setdefault(job.job_id, end)
                assert first == end
            else:
                assert job.job_id not in self.ended
            assert job.attempt <= self.retries[job.job_id]

    @invariant()
    def what_is_known_is_written_down(self) -> None:
        rows = {row["job_id"]: row["status"] for row in self.engine.db.rows()}
        assert rows == {job.job_id: job.status for job in self.engine.jobs.values()}

    @invariant()
    def no_node_gives_more_than_it_has(self) -> None:
        used = dict.fromkeys(WORKERS, 0.0)
        jobs = {job.task_id: job for job in self.engine.jobs.values()}
        for (task_id, _, _), node in self.ranks.running.items():
            used[node] += jobs[task_id].demand.cpus
        assert max(used.values()) <= CPUS

    @invariant()
    def nobody_overtakes(self) -> None:
        waiting = [job.job_id for job in self.engine.jobs.values() if job.status == "PENDING" and not job.placement]
        begun = [job.job_id for job in self.engine.jobs.values() if job.started_at is not None]
        assert not waiting or not begun or max(begun) < min(waiting)

    @invariant()
    def a_job_that_could_start_has_started(self) -> None:
        waiting = [job for job in self.engine.jobs.values() if job.status == "PENDING"]
        if waiting and not self.ranks.running and all(node["alive"] for node in self.ranks.nodes.values()):
            busy = [job for job in self.engine.jobs.values() if job.status not in ("PENDING", *TERMINAL)]
            assert busy, f"nothing runs, and {waiting[0].job_id} waits"

    @invariant()
    def every_waiting_job_says_why(self) -> None:
        shown = {job["job_id"]: job for job in self.engine.queue(everything=True)}
        for job in self.engine.jobs.values():
            assert bool(shown[job.job_id]["waiting_for"]) == (job.job_id in self.engine._queue)

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            self._stop()
            self.loop.close()
            self.folder.cleanup()


TestEngine = EngineMachine.TestCase
TestEngine.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)
