"""Starts of ranks that are under way in this process, for who ends a job and must not miss one."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from typing import Counter as Count
from typing import Iterator

__all__ = ["Starts"]


class Starts:
    """Safe from threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._count: Count[str] = Counter()

    @contextlib.contextmanager
    def one(self, task_id: str) -> Iterator[None]:
        """A start of one of the job's ranks, from before it asks whether the job is closed until its processes are known."""
        with self._changed:
            self._count[task_id] += 1
        try:
            yield
        finally:
            with self._changed:
                self._count[task_id] -= 1
                if not self._count[task_id]:
                    del self._count[task_id]
                self._changed.notify_all()

    def wait(self, task_id: str, timeout_s: float) -> bool:
        """Until no start of the job is under way; False at the timeout."""
        with self._changed:
            return self._changed.wait_for(lambda: task_id not in self._count, timeout_s)
