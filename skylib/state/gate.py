"""A gate that threads pass through to use something, and that one of them can shut to be alone with it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Gate"]


class Gate:
    """Many threads inside, or one that has shut it. Who is inside may come in again."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._inside: dict[int, int] = {}
        self._shut_by: int | None = None

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Waits while somebody else has the gate shut."""
        me = threading.get_ident()
        with self._changed:
            while self._shut_by not in (None, me) and me not in self._inside:
                self._changed.wait()
            self._inside[me] = self._inside.get(me, 0) + 1
        try:
            yield
        finally:
            with self._changed:
                self._inside[me] -= 1
                if not self._inside[me]:
                    del self._inside[me]
                self._changed.notify_all()

    def shut(self, *, timeout_s: float) -> set[int]:
        """Let nobody in any more and wait for those inside; who (thread idents) did not come out in time.

        This thread itself counts when it is inside; nobody waits for it.
        """
        me = threading.get_ident()
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while self._shut_by not in (None, me):
                self._changed.wait()
            self._shut_by = me
            try:
                while set(self._inside) - {me}:
                    left_s = deadline - time.monotonic()
                    if left_s <= 0:
                        break
                    self._changed.wait(left_s)
            except BaseException:  # interrupted: whoever called has nothing to open
                self._shut_by = None
                self._changed.notify_all()
                raise
            return set(self._inside)

    def open(self) -> None:
        with self._changed:
            self._shut_by = None
            self._changed.notify_all()
