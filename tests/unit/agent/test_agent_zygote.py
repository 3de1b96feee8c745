"""Supervisors from a warm process: what a rank has of it, and what happens when that process is gone."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from skylib.agent.processes import own
from skylib.agent.supervisor import Spec
from skylib.agent.zygote import Zygote
from skylib.runtime.agent_bundle import build_bundle
from tests.lab import eventually


class Starter:
    """A warm process with a folder for ranks; its own environment has a mark that no other process has."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.bundle = base / "bundle.pyz"
        self.bundle.write_bytes(build_bundle().data)
        self.mark = f"ZYGOTE_TEST={base}"
        self.zygote = Zygote(str(self.bundle), str(base), lambda: {"PATH": os.environ["PATH"], "ZYGOTE_TEST": str(base)})

    def start(self, name: str, script: str, **task: str) -> Path:
        """Starts a rank; its state directory."""
        state = self.base / name
        state.mkdir()
        spec = Spec(
            state_dir=str(state),
            log=str(state / "log"),
            workdir=str(self.base / "work"),
            marker="",
            script=script,
            environ={"PATH": os.environ["PATH"], "HOME": str(self.base)},
            task=task,
        )
        self.zygote.start(spec)
        return state

    def ended(self, state: Path) -> str:
        """What the rank printed, once its end is written down."""
        eventually(lambda: (state / "exit").exists(), what="the rank's end")
        return (state / "log").read_text()

    def processes(self) -> list[int]:
        """Pids of everything that carries the mark."""
        found = []
        for pid in own():
            try:
                if self.mark.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    found.append(pid)
            except OSError:
                continue
        return found


@pytest.fixture
def starter(tmp_path: Path) -> Iterator[Starter]:
    made = Starter(tmp_path)
    yield made
    del made.zygote
    gc.collect()
    eventually(lambda: made.processes() == [], what="the end of the warm process")


def test_a_rank_has_its_environment_and_not_the_warm_process_es(starter: Starter) -> None:
    """Variables come from the specification; nothing of the process that was forked reaches the script."""
    state = starter.start("one", 'echo "$WORD ${ZYGOTE_TEST-none}"; pwd; ls /proc/$$/fd | wc -l', WORD="a\nb")
    words = starter.ended(state).split("\n")
    assert words[:3] == ["a", "b none", str(starter.base / "work")]
    assert int(words[3]) <= 5


def test_many_at_once_each_end_as_they_should(starter: Starter) -> None:
    """Forty ranks from eight threads: every one has its own code, and none leaves a process or a zombie."""
    with ThreadPoolExecutor(8) as pool:
        states = list(pool.map(lambda number: starter.start(str(number), f"echo {number}; exit {number}"), range(40)))
    said = [starter.ended(state).strip() for state in states]
    codes = [json.loads((state / "exit").read_text())["code"] for state in states]
    assert (said, codes) == ([str(number) for number in range(40)], list(range(40)))
    eventually(lambda: len(starter.processes()) == 1, what="only the warm process")


def test_a_supervisor_is_nobodys_child(starter: Starter) -> None:
    """It stands neither below this process nor below the warm one, in a session of its own, and outlives both."""
    state = starter.start("one", "while [ ! -e ../go ]; do sleep 0.02; done; echo survived")
    supervisor = json.loads((state / "pids").read_text())["supervisor"][0]
    eventually(lambda: len(starter.processes()) == 2, what="only the warm process and the supervisor")
    warm = [pid for pid in starter.processes() if pid != supervisor]
    process = own()[supervisor]
    assert process.session == supervisor
    assert process.ppid not in (os.getpid(), *warm)
    for pid in warm:
        os.kill(pid, 9)
    starter.base.joinpath("go").touch()
    assert starter.ended(state) == "survived\n"


def test_without_the_warm_process_a_rank_starts_all_the_same(starter: Starter) -> None:
    """Killed, it is done without at the next start, and there is a new one for the one after it."""
    starter.ended(starter.start("one", "echo 1"))
    eventually(lambda: len(starter.processes()) == 1, what="only the warm process")
    (first,) = starter.processes()
    os.kill(first, 9)
    eventually(lambda: first not in own(), what="its death")
    assert starter.ended(starter.start("two", "echo 2")) == "2\n"
    assert starter.ended(starter.start("three", "echo 3")) == "3\n"
    eventually(lambda: len(starter.processes()) == 1, what="the new warm process")
    assert starter.processes() != [first]


def test_what_cannot_be_started_says_why(starter: Starter) -> None:
    """A folder that cannot be made is the caller's OSError, from a fork as from a program."""
    starter.base.joinpath("work").write_text("in the way")
    with pytest.raises(OSError, match="work"):
        starter.start("one", "true")
