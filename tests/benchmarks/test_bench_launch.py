"""How long three hosts take to the first line of a job's output, beside a shell script that does the least."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import skylib
from tests.benchmarks.floor import Floor
from tests.benchmarks.machine import settle, watch
from tests.benchmarks.report import Report, Timeline
from tests.lab import make_lab
from tests.testbed import Host, Testbed

pytestmark = [pytest.mark.bench, pytest.mark.hosts, pytest.mark.ray, pytest.mark.timeout(1800)]

ROUNDS = 5
BARE_ROUNDS = 3
RATIO = 1.1
BARE_LIMIT_S = 25.0
FLOOR, OURS = "ssh script", "skylib"
COMMAND = "echo FIRST LINE"


class Launches:
    """Launches on the same hosts, each from a fresh home: nothing is known of the hosts but what stands on them."""

    def __init__(self, directory: Path, hosts: Sequence[Host], wheels: Path) -> None:
        self.timeline = Timeline()
        self._directory, self._hosts, self._wheels = directory, hosts, wheels
        self._count = 0

    def first_line(self) -> float:
        """Seconds of launch to the first line of its job's log; the cluster is then taken down."""
        with self.standing() as seconds:
            return seconds

    @contextmanager
    def standing(self) -> Iterator[float]:
        """The same, with the cluster standing until the block ends."""
        self._count += 1
        home = self._directory / f"sky{self._count}"
        lab = make_lab(home, self._hosts, wheels=self._wheels)
        lab.client.close()
        task = lab.task(COMMAND, num_nodes=len(self._hosts))
        with skylib.Client(home, events=self.timeline) as client:
            try:
                self.timeline.begin(time.time())
                started = time.perf_counter()
                job = client.launch(task, "bench")
                line = next(iter(job.logs()))
                seconds = time.perf_counter() - started
                assert line.text == "FIRST LINE"
                yield seconds
                job.wait()
            finally:
                if client.status():
                    client.down("bench")
        lab.assert_nothing_left()
        shutil.rmtree(home)


@pytest.fixture
def launches(tmp_path: Path, warm_hosts: list[Host], wheels: Path) -> Launches:
    return Launches(tmp_path, warm_hosts, wheels)


@contextmanager
def by_hand(floor: Floor) -> Iterator[float]:
    """Seconds of the shell script to the first line; what it started is ended with the block."""
    try:
        yield floor.first_line(COMMAND)
    finally:
        floor.end()


@pytest.fixture
def floor(tmp_path: Path, warm_hosts: list[Host]) -> Iterator[Floor]:
    made = Floor(warm_hosts, tmp_path)
    yield made
    made.end()


def test_launch_on_warm_hosts_beside_the_least_by_hand(launches: Launches, floor: Floor, testbed: Testbed) -> None:
    """To the first line at most 1.1 of what `ssh` and `ray start` take; in turns, from cold, environment in place."""
    report = Report("launch on 3 hosts with the environment, to the first line")
    ways = {FLOOR: lambda: by_hand(floor), OURS: launches.standing}
    noise = dict.fromkeys(ways, 0.0)
    for way in ways.values():  # byte code, page cache
        with way():
            pass
    launches.timeline = Timeline()
    for _ in range(ROUNDS):
        for name, way in ways.items():
            settle()
            with ExitStack() as stack:
                with watch(testbed.keeper_pid, every_s=1.0) as usage:
                    report.add(name, stack.enter_context(way()))
                noise[name] += usage.foreign_seconds
    report.against(OURS, FLOOR)
    report.bound(OURS, RATIO * report.median(FLOOR))
    for name, seconds in noise.items():
        report.note(f"CPU seconds that others on this machine took meanwhile, {name}: {seconds:.1f}")
    report.print()
    launches.timeline.print("steps of a launch, medians")
    assert report.ratio(OURS, FLOOR) <= RATIO


def test_where_the_time_of_a_launch_goes(launches: Launches, floor: Floor, testbed: Testbed) -> None:
    """CPU seconds by process, to the first line, of a launch and of the least by hand; nothing is asserted."""
    for name, way in {FLOOR: lambda: by_hand(floor), OURS: launches.standing}.items():
        with way():
            pass
        settle()
        with ExitStack() as stack:
            with watch(testbed.keeper_pid) as usage:
                stack.enter_context(way())
            print("\n" + usage.text(name))
    launches.timeline.print("steps of a launch")


def test_launch_on_bare_hosts(testbed: Testbed, tmp_path: Path, warm_hosts: list[Host], wheels: Path) -> None:
    """Hosts with a Python and no internet: at most 25 s; the next cluster on them makes no environment."""
    report = Report("launch on 3 hosts, to the first line")
    warm = Launches(tmp_path / "warm", warm_hosts, wheels)
    warm.first_line()
    first, second, third = "bare hosts", "second cluster on them", "hosts with the environment"
    environment = "step runtime.environment of the "
    bare_steps, next_steps = Timeline(), Timeline()
    for count in range(BARE_ROUNDS):
        hosts = testbed.hosts(3)
        try:
            bare = Launches(tmp_path / f"bare{count}", hosts, wheels)
            for name, steps, made in ((first, bare_steps, True), (second, next_steps, False)):
                bare.timeline = steps
                settle()
                report.add(name, bare.first_line())
                assert steps.facts("runtime.environment", "created") == [made] * 3
                longest = max(step.seconds for step in steps.last("runtime.environment"))
                report.add(environment + name, longest)
            settle()
            report.add(third, warm.first_line())
        finally:
            for host in hosts:
                host.close()
    report.bound(first, BARE_LIMIT_S)
    report.against(second, third)
    report.against(first, third)
    report.print()
    bare_steps.print("steps of a launch on bare hosts, medians")
    next_steps.print("steps of the next launch on them, medians")
    assert report.median(first) <= BARE_LIMIT_S
    assert report.median(environment + second) <= 0.1
