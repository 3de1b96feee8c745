"""The agent's guardian begins it anew when it dies, and leaves when it leaves."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from skylib.agent.guardian import LEFT, NEVER_READY, guard, pause_s
from tests.ray.agent_harness import until


def guarded(serve: Callable[[int], int], *, wanted: Callable[[], bool] = lambda: True) -> int:
    """The pid of a guardian; what its first child says on the report is not read."""
    answer, report = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(answer)
        os._exit(guard(serve, report, wanted))
    os.close(report)
    os.close(answer)
    return pid


def code_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def lives(folder: Path) -> list[int]:
    """Pids of the children so far, in order."""
    return [int(line) for line in (folder / "lives").read_text().split()] if (folder / "lives").exists() else []


def living(folder: Path) -> Callable[[int], int]:
    def serve(report: int) -> int:
        with (folder / "lives").open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(60)
        return LEFT

    return serve


def test_an_agent_that_is_killed_is_begun_anew(tmp_path: Path):
    """kill -9, twice: there is a new one each time; TERM to the guardian ends both."""
    pid = guarded(living(tmp_path))
    for number in (1, 2, 3):
        until(lambda number=number: len(lives(tmp_path)) == number)
        if number < 3:
            os.kill(lives(tmp_path)[-1], signal.SIGKILL)
    os.kill(pid, signal.SIGTERM)
    code_of(pid)
    with pytest.raises(ProcessLookupError):
        os.kill(lives(tmp_path)[-1], 0)


@pytest.mark.parametrize("code", [LEFT, NEVER_READY])
def test_an_agent_that_leaves_or_cannot_begin_is_left_alone(code: int):
    """The guardian ends with what it ended with."""
    assert code_of(guarded(lambda report: code)) == code


def test_an_agent_that_nobody_wants_any_more_stays_dead():
    """Its configuration is gone, or is another's: the guardian leaves."""
    assert code_of(guarded(lambda report: 1, wanted=lambda: False)) == 1


def test_deaths_one_after_the_other_are_followed_by_longer_pauses():
    """At once at first; half a minute at most."""
    pauses = [pause_s(deaths) for deaths in range(1, 20)]
    assert pauses[0] < 0.1
    assert pauses == sorted(pauses)
    assert pauses[-1] == 30
