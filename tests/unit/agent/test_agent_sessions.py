"""Which processes are somebody's terminal over SSH."""

from __future__ import annotations

import os
import pty
import signal

import pytest

from skylib.agent.sessions import Terminal, read_terminal, sessions
from tests.ray.agent_harness import until

PTS = 136 << 8
LOGIN = (Terminal(10, 1, "sshd", 0), Terminal(20, 10, "sshd-session", 0), Terminal(30, 20, "bash", PTS))


def found(*processes: Terminal) -> set[int]:
    table = {each.pid: each for each in processes}
    return sessions(list(table), table.get)


@pytest.mark.parametrize(
    ("processes", "pids"),
    [
        (LOGIN, {30}),
        ((*LOGIN, Terminal(31, 30, "vim", PTS)), {30, 31}),
        ((Terminal(10, 1, "dropbear", 0), Terminal(30, 10, "ash", PTS)), {30}),
        ((Terminal(20, 1, "sshd", 0), Terminal(30, 20, "python3", 0)), set()),  # a channel without a terminal
        ((Terminal(30, 1, "tmux", PTS),), set()),
        ((Terminal(10, 1, "login", 0), Terminal(30, 10, "bash", (4 << 8) | 1)), set()),  # the machine's own console
        ((Terminal(30, 31, "bash", PTS), Terminal(31, 30, "bash", PTS)), set()),
        ((Terminal(30, 29, "bash", PTS),), set()),  # its parent may not be seen
        ((Terminal(1, 0, "sshd", 0), Terminal(30, 1, "bash", (137 << 8) | 5)), {30}),
    ],
)
def test_what_counts_as_a_session(processes: tuple[Terminal, ...], pids: set[int]) -> None:
    """A pseudo-terminal below an SSH server; no channel of ours, nothing that has left its server behind."""
    assert found(*processes) == pids


def test_a_terminal_is_read_from_a_real_process() -> None:
    """Its name, its parent and that it has a pseudo-terminal."""
    pid, master = pty.fork()
    if pid == 0:
        os.execvp("sleep", ["sleep", "60"])
    try:
        seen = until(lambda: (it := read_terminal(pid)) is not None and it.name == "sleep" and it)
        assert (seen.ppid, seen.on_pts, seen.is_server) == (os.getpid(), True, False)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(master)
    assert read_terminal(pid) is None
