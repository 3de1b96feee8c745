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
ROUNDS = 3
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


def add(report: Report, name: str, printed: str) -> None:
    """What the flood says of itself."""
    seconds, processor = map(float, printed.split())
    report.add(name, seconds)
    report.add(f"{name}: processor", processor)


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
    """100 MB of lines: the job takes at most 1/0.8 of the time that it takes into a local file; every line arrives."""
    report = Report("a job that prints 100 MB in lines of 100 bytes")
    local = FLOOD + "python3 ~/flood.py ~/seconds > ~/flood.out; cat ~/seconds; rm -f ~/flood.out"
    printed = FLOOD + "exec python3 ~/flood.py ~/seconds"
    cluster = shared.client.cluster("shared")
    head = shared.task('[ "$SKYPILOT_NODE_RANK" = 0 ] || exit 0\n' + printed, num_nodes=3)
    alone = shared.task('[ "$SKYPILOT_NODE_RANK" = 0 ] || exit 0\n' + local, num_nodes=3)
    settle()
    for _ in range(ROUNDS):
        job = shared.client.exec(alone, "shared")
        (line,) = list(job.logs())
        add(report, "into a local file", line.text)
        started = time.perf_counter()
        with watch(testbed.keeper_pid) as usage:
            job = shared.client.exec(head, "shared")
            count, total = 0, 0
            for line in job.logs():
                assert line.text.startswith(f"{count:09d}")
                count += 1
                total += len(line.raw) + 1
        seconds = time.perf_counter() - started
        report.add("followed to its last line", seconds)
        done = cluster.run("cat ~/seconds 2>/dev/null; rm -f ~/seconds")
        add(report, "as a job, followed", next(each.stdout.decode() for each in done if each.stdout.strip()))
        assert (count, total) == (BYTES // 100, BYTES)
        report.note(f"{total / seconds / 1e6:.1f} MB/s, {count / seconds:.0f} lines/s to the client")
    for kind in ("", ": processor"):
        report.against(f"as a job, followed{kind}", f"into a local file{kind}")
    report.against("followed to its last line", "into a local file")
    report.print()
    print(usage.text("where the time of the last one went"), flush=True)
    assert report.ratio("as a job, followed: processor", "into a local file: processor") <= SLOWER_AT_MOST
    assert report.best("as a job, followed") / report.best("into a local file") <= SLOWER_AT_MOST
