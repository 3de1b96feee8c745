"""Watches the agent's process and begins it anew when it dies, until it leaves by itself or is told to."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from typing import Any, Callable, Iterator, Optional

__all__ = ["LEFT", "NEVER_READY", "guard", "pause_s"]

_log = logging.getLogger(__name__)
LEFT = 0  # what the agent exits with when it leaves by itself
NEVER_READY = 2  # when it could not begin
_PAUSES_S = (0.05, 0.5, 2.0, 5.0, 15.0, 30.0)
_STABLE_S = 60.0
_STEP_S = 0.1
_TO_LEAVE = (signal.SIGTERM, signal.SIGINT)


def pause_s(deaths: int) -> float:
    """How long to wait after so many deaths one after the other, before it is begun anew."""
    return _PAUSES_S[min(max(deaths - 1, 0), len(_PAUSES_S) - 1)]


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """What tells us to leave comes before or after: it finds the pid of a child that there is, or none."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _TO_LEAVE)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _TO_LEAVE)


class _Guardian:
    def __init__(self) -> None:
        self.leaving = False
        self.child = 0

    def leave(self, number: int, frame: Any) -> None:
        self.leaving = True
        if self.child:
            try:
                os.kill(self.child, signal.SIGTERM)
            except ProcessLookupError:
                pass

    def begin(self, serve: Callable[[int], int], report: Optional[int]) -> bool:
        """Has a child serve; False when there is none, because it was told to leave before. report: None for nobody's."""
        with _undisturbed():
            if self.leaving:
                return False
            self.child = os.fork()
            if self.child:
                return True
            for number in _TO_LEAVE:
                signal.signal(number, signal.SIG_DFL)
        os._exit(serve(os.open(os.devnull, os.O_WRONLY) if report is None else report))

    def wait(self) -> int:
        """The child's exit code; negative for a signal."""
        os.waitid(os.P_PID, self.child, os.WEXITED | os.WNOWAIT)
        with _undisturbed():
            status = os.waitpid(self.child, 0)[1]
            self.child = 0
        return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)

    def rest(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self.leaving and time.monotonic() < until:
            time.sleep(min(_STEP_S, seconds))


def guard(serve: Callable[[int], int], report: int, wanted: Callable[[], bool]) -> int:
    """Runs `serve(report)` in a child, and again after each death; returns the last exit code when it is not to run.

    report: a handle that only the first child is told to answer on; closed here. wanted: asked before each new beginning.
    """
    me = _Guardian()
    for number in _TO_LEAVE:
        signal.signal(number, me.leave)
    deaths = 0
    first = True
    code = LEFT
    while True:
        began = time.monotonic()
        if not me.begin(serve, report if first else None):
            return code
        if first:
            os.close(report)
        code = me.wait()
        if code == LEFT or me.leaving or (first and code == NEVER_READY):
            return code
        first = False
        deaths = 1 if time.monotonic() - began > _STABLE_S else deaths + 1
        _log.error("the agent has died (%d), beginning it anew", code)
        me.rest(pause_s(deaths))
        if me.leaving or not wanted():
            return code
