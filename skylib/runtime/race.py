"""Steps that run at once, where the first failure ends the wait for all and lets nothing new begin."""

from __future__ import annotations

import contextvars
import queue
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["Race", "RaceOver"]


class RaceOver(Exception):
    """A step was about to act when the race was over already. Only the step's own thread sees it."""


class Race:
    """Steps that run at once, each in a thread of its own; the first failure, or the one that counts, ends the wait.

    Whoever gives up calls `stop`, then `join`: what stands beyond a `check` has not begun and never will.
    """

    def __init__(self) -> None:
        self._ends: queue.SimpleQueue[tuple[str, Any, BaseException | None]] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._threads: dict[str, threading.Thread] = {}

    def go(self, name: str, act: Callable[[], Any]) -> None:
        """Begin a step, in a copy of the caller's context."""
        context = contextvars.copy_context()

        def run() -> None:
            try:
                self._ends.put((name, context.run(act), None))
            except BaseException as error:  # handed to the thread that waits, which raises it
                self._ends.put((name, None, error))

        self._threads[name] = threading.Thread(target=run, name=f"skylib-{name}", daemon=True)
        self._threads[name].start()

    def check(self) -> None:
        """What a step asks right before each act that others would see. Raises RaceOver after `stop`."""
        if self._stopped.is_set():
            raise RaceOver

    def until(self, names: Iterable[str], timeout_s: float) -> dict[str, Any]:
        """What these steps gave, by name. Raises what any step raised before that; queue.Empty at the timeout."""
        deadline = time.monotonic() + timeout_s
        awaited = set(names)
        given: dict[str, Any] = {}
        while awaited - given.keys():
            ended, value, error = self._ends.get(timeout=max(0.0, deadline - time.monotonic()))
            if error is not None:
                raise error
            given[ended] = value
        return given

    def stop(self) -> None:
        """From here on `check` raises."""
        self._stopped.set()

    def join(self, timeout_s: float) -> tuple[str, ...]:
        """Wait for what is under way; the names of the steps that still run after timeout_s."""
        deadline = time.monotonic() + timeout_s
        for thread in self._threads.values():
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
        return tuple(name for name, thread in self._threads.items() if thread.is_alive())
