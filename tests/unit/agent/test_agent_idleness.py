"""The head's idle timer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from skylib.agent.autostop import Autostop
from skylib.agent.config import AgentConfig
from skylib.agent.db import JobsDb
from skylib.agent.idleness import Idleness
from tests.ray.agent_harness import NodeFolders


class Bench:
    """A timer with a clock and terminals as told; `again` is what an agent that is killed and begun anew finds."""

    def __init__(self, config: AgentConfig, db: JobsDb) -> None:
        self.config, self.db = config, db
        self.now, self.sitting = 5000.0, 0
        self.timer = self._make()

    def _make(self) -> Idleness:
        timer = Idleness(self.config, self.db, clock=lambda: self.now, look_for=lambda: self.sitting)
        timer.load(None, asleep=False)
        return timer

    def again(self, **changes: object) -> Idleness:
        self.config = self.config._replace(**changes)
        self.timer = self._make()
        return self.timer

    def tick(self, seconds: float, *running: str, queued: int = 0) -> float | None:
        """The clock goes on by so much, in steps of a second; what is due then."""
        due = asyncio.run(self.timer.look(running, queued))
        while seconds > 0:
            step = min(1.0, seconds)
            self.now += step
            seconds -= step
            due = asyncio.run(self.timer.look(running, queued))
        return due


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    config = NodeFolders(tmp_path).write()[0]
    db = JobsDb(str(tmp_path / "jobs.db"))
    yield Bench(config, db)
    db.close()


def test_it_counts_from_the_last_job(bench: Bench) -> None:
    """While one runs nothing is due."""
    bench.timer.set(Autostop(1, False))
    assert bench.tick(300, "a") is None
    assert bench.tick(20) == 40
    assert bench.tick(40) == 0


def test_a_killed_agent_loses_little(bench: Bench) -> None:
    """One that comes back neither begins anew nor has lost more than a few seconds."""
    bench.timer.set(Autostop(10, False))
    bench.tick(100, "a")
    bench.now += 200
    timer = bench.again()
    assert timer.resumed
    due = bench.tick(0)
    assert due is not None
    assert 395 <= due <= 400


def test_another_beginning_counts_anew(bench: Bench) -> None:
    """A cluster that was stopped for a night is not idle since yesterday; its setting stays."""
    bench.timer.set(Autostop(10, False))
    bench.now += 9000
    timer = bench.again(standing="next")
    assert not timer.resumed
    assert (timer.setting, bench.tick(0)) == (Autostop(10, False), 600)


def test_a_terminal_keeps_it_awake(bench: Bench) -> None:
    """As long as somebody sits there, by the setting's word; noticed within two seconds."""
    bench.timer.set(Autostop(1, False))
    bench.sitting = 1
    assert bench.tick(300) is None
    bench.sitting = 0
    due = bench.tick(10)
    assert due is not None
    assert 48 <= due <= 52
    bench.sitting = 1
    bench.timer.set(Autostop(1, False, "jobs"))
    assert bench.tick(60) == 0


def test_somebody_who_came_at_the_last_moment_is_seen(bench: Bench) -> None:
    """Nothing stops without a last look."""
    bench.timer.set(Autostop(1, False))
    bench.tick(59)
    bench.sitting = 1
    bench.now += 1
    assert bench.tick(0) is None


def test_none_counts_from_the_last_beginning(bench: Bench) -> None:
    """Of a job, or the setting; jobs that run do not hold it."""
    bench.timer.set(Autostop(1, False, "none"))
    assert bench.tick(30, "a") == 30
    assert bench.tick(10, "a") == 20
    assert bench.tick(0, "a", "b") == 60
    assert bench.tick(60, "b") == 0


def test_jobs_that_wait_for_a_lost_node_do_not_hold_it(bench: Bench) -> None:
    """It counts from when the last one ran."""
    bench.timer.set(Autostop(5, False))
    assert bench.tick(100, "a", queued=3) is None
    assert bench.tick(100, queued=3) == 200


def test_a_setting_begins_anew_and_stays(bench: Bench) -> None:
    """Over a restart; none is kept as well."""
    bench.timer.set(Autostop(1, True, "jobs", "echo bye", 9.0))
    bench.tick(50)
    bench.timer.set(Autostop(1, True, "jobs", "echo bye", 9.0))
    assert bench.tick(0) == 60
    assert bench.again().setting == Autostop(1, True, "jobs", "echo bye", 9.0)
    bench.timer.set(None)
    assert (bench.again().setting, bench.tick(1000)) == (None, None)
