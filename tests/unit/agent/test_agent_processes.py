"""Finding and ending processes of ours: by what they carry and when they began."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid

from skylib.agent.processes import Process, ancestors, carrying, end, is_alive, own, read, with_descendants

SLEEP = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]
DEAF = "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"


def test_a_process_is_known_by_what_it_carries() -> None:
    """The whole value must be the same, and all variables must be there."""
    token = str(uuid.uuid4())
    environ = {**os.environ, "TOKEN_X": token, "RANK_X": "1"}
    with subprocess.Popen(SLEEP, env=environ) as process:
        here = own().values()
        assert carrying(here, {"TOKEN_X": token}) == {process.pid}
        assert carrying(here, {"TOKEN_X": token, "RANK_X": "1"}) == {process.pid}
        assert carrying(here, {"TOKEN_X": token[:-1]}) == set()
        assert carrying(here, {"TOKEN_X": token, "RANK_X": "11"}) == set()
        process.kill()


def test_a_pid_alone_is_not_a_process() -> None:
    """The same number with another beginning is another process; a zombie is none."""
    with subprocess.Popen(SLEEP) as process:
        found = read(process.pid)
        assert found is not None
        assert is_alive(found.pid, found.start)
        assert not is_alive(found.pid, found.start + 1)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not is_alive(found.pid, found.start)


def test_descendants_and_ancestors() -> None:
    """Down to the leaves, up to the first process."""
    table = {pid: Process(pid, parent, 1, "S", 0) for pid, parent in [(1, 0), (2, 1), (3, 2), (4, 2), (5, 1)]}
    assert with_descendants(table, [2]) == {2, 3, 4}
    assert with_descendants(table, [9]) == set()
    assert ancestors(table, 4) == {4, 2, 1}


def test_ending_asks_first_and_then_insists() -> None:
    """A deaf process is killed after the grace; both are named."""
    token = str(uuid.uuid4())
    environ = {**os.environ, "TOKEN_X": token}
    deaf = subprocess.Popen([sys.executable, "-S", "-c", DEAF], env=environ, stdout=subprocess.PIPE)
    good = subprocess.Popen(SLEEP, env=environ)
    assert deaf.stdout is not None
    deaf.stdout.readline()

    def find() -> list[Process]:
        processes = own()
        return [processes[pid] for pid in carrying(processes.values(), {"TOKEN_X": token})]

    began = time.monotonic()
    result = end(find, grace_s=0.3)
    assert time.monotonic() - began < 20
    assert set(result.ended) == {deaf.pid, good.pid}
    assert result.survivors == []
    assert (good.wait(5), deaf.wait(5)) == (-15, -9)
    deaf.stdout.close()


def test_nothing_to_end_takes_no_time() -> None:
    """An empty answer, at once."""
    assert end(list, grace_s=5.0) == ([], [])
