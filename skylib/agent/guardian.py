"""Watches the agent's process and begins it anew when it dies, until it leaves by itself or is told to."""

from __future__ import annotations

import logging
import os
import signal
import time
from typing import Any, Callable

__all__ = ["LEFT", "NEVER_READY", "guard", "pause_s"]

_log = logging.getLogger(__name__)
LEFT = 0  # what the agent exits with when it leaves by itself
NEVER_READY = 2  # when it could not begin
_PAUSES_S = (0.05, 0.5, 2.0, 5.0, 15.0, 30.0)
_STABLE_S = 60.0
_STEP_S = 0.1


def pause_s(deaths: int) -> float:
    """How long to wait after so many deaths one after the other, before it is begun anew."""
    return _PAUSES_S[min(max(deaths - 1, 0), len(_PAUSES_S) - 1)]


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

    def wait(self) -> int:
        """The child's exit code; negative for a signal."""
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
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, me.leave)
    deaths = 0
    first = True
    while True:
        began = time.monotonic()
        me.child = os.fork()
        if me.child == 0:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            os._exit(serve(report if first else os.open(os.devnull, os.O_WRONLY)))
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
