"""How soon a line is told, and what a job that prints as fast as it can pays for being followed."""

from __future__ import annotations

import time
from collections.abc import Iterable

import pytest

from skylib.models.job import LogLine
from tests.benchmarks.machine import settle, watch
from tests.benchmarks.report import Report, percentile
from tests.lab import Lab
from tests.testbed import Testbed

pytestmark = [pytest.mark.bench, pytest.mark.hosts, pytest.mark.ray, pytest.mark.timeout(1800)]

LINES = 200
LATENCY_P99_S = 0.150
ROUNDS = 5
BYTES = 100_000_000
SLOWER_AT_MOST = 1 / 0.8

# Prints the time every 20 ms. The hosts share this machine's clock.
STAMPS = f"""python3 -u -c 'import time
for _ in range({LINES}):
    print(time.time())
    time.sleep(0.02)'"""
# Numbered lines of 100 bytes, as fast as Python writes them; how long that took, and of how much of a processor, goes to a
# file of its own.
FLOOD = f"""cat > ~/flood.py <<'END'
import sys, time
started, line = time.perf_counter(), "x" * 90
for number in range({BYTES} // 100):
    sys.stdout.write("%09d%s\\n" % (number, line))
sys.stdout.flush()
open(sys.argv[1], "w").write(f"{{time.perf_counter() - started}} {{time.process_time()}}")
END
sync
"""


def delays(lines: Iterable[LogLine]) -> list[float]:
    """Seconds between the printing of each line, which is the time, and now."""
    found = []
    for line in lines:
        found.append(time.time() - float(line.text))
    return found


def test_a_line_reaches_its_follower_soon(shared: Lab) -> None:
    """p99 at most 150 ms from print to the follower's loop, from one node and from three."""
    report = Report(f"a line's way from print to the follower, {LINES} lines 20 ms apart", unit="ms")
    settle()
    seen = {}
    for nodes in (1, 3):
        job = shared.client.exec(shared.task(STAMPS, num_nodes=nodes), "shared")
        found = delays(job.logs())
        job.wait()
        assert len(found) == LINES * nodes
        for each in found:
            report.add(f"{nodes} nodes", each)
        seen[nodes] = percentile(found, 0.99)
        report.note(f"{nodes} nodes: p50 {percentile(found, 0.5) * 1000:.1f} ms, p99 {seen[nodes] * 1000:.1f} ms")
    report.print()
    assert max(seen.values()) <= LATENCY_P99_S


def test_a_flood_of_lines_is_not_slowed(shared: Lab, testbed: Testbed) -> None:
    """100 MB of lines: the job takes at most 1/0.8 of the time that it takes into a local file; every line arrives.

    Measured while nobody reads the log: the hosts and a reader share this machine's processors, which they do not
    elsewhere. With a reader beside it, it is the processor's time that counts.
    """
    report = Report("a job that prints 100 MB in lines of 100 bytes")
    client = shared.client
    first = '[ "$SKYPILOT_NODE_RANK" = 0 ] || exit 0\n' + FLOOD
    local = first + "python3 ~/flood.py ~/seconds > ~/flood.out; rm -f ~/flood.out"
    alone, printing = (shared.task(run, num_nodes=3) for run in (local, first + "exec python3 ~/flood.py ~/seconds"))

    def keep(name: str) -> None:
        done = client.cluster("shared").run("cat ~/seconds 2>/dev/null; rm -f ~/seconds")
        seconds, processor = map(float, next(each.stdout for each in done if each.stdout).split())
        report.add(name, seconds)
        report.add(f"{name}: processor", processor)

    settle()
    for _ in range(ROUNDS):
        client.exec(alone, "shared").wait()
        keep("into a local file")
        started = time.perf_counter()
        job = client.exec(printing, "shared")
        job.wait()
        report.add("ended and collected", time.perf_counter() - started)
        keep("as a job")
        check_all(job.logs())
        started = time.perf_counter()
        with watch(testbed.keeper_pid) as usage:
            check_all(client.exec(printing, "shared").logs())
        seconds = time.perf_counter() - started
        report.add("followed to its last line", seconds)
        keep("as a job, followed")
        report.note(f"{BYTES / seconds / 1e6:.1f} MB/s, {BYTES / 100 / seconds:.0f} lines/s to a follower")
    for name in ("as a job", "as a job, followed"):
        for kind in ("", ": processor"):
            report.against(name + kind, f"into a local file{kind}")
    report.print()
    print(usage.text("where the time of the last one went"), flush=True)
    assert report.ratio("as a job", "into a local file") <= SLOWER_AT_MOST
    assert report.ratio("as a job, followed: processor", "into a local file: processor") <= SLOWER_AT_MOST


def check_all(lines: Iterable[LogLine]) -> None:
    """Every line of the flood, in order."""
    count = 0
    for line in lines:
        assert len(line.raw) == 99
        assert line.text.startswith(f"{count:09d}")
        count += 1
    assert count == BYTES // 100
