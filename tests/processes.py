"""Forked children for tests: they run a function and their end is waited for, with a deadline."""

from __future__ import annotations

import os
import select
import signal
import time
import traceback
from collections.abc import Callable, Sequence

__all__ = ["Child", "run_at_once"]


class Child:
    """A forked child that runs `work` and exits 0 when it returned. `say` and `heard` pass bytes from it to the parent."""

    def __init__(self, work: Callable[[Child], None]) -> None:
        self._read, self._write = os.pipe()
        self._go_read, self._go_write = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(self._write)
            os.close(self._go_read)
            return
        os.close(self._go_write)
        code = 1
        try:
            work(self)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def say(self, word: bytes) -> None:
        """In the child."""
        os.write(self._write, word)

    def wait_for_go(self) -> None:
        """In the child: until the parent lets it go on, or is gone."""
        os.read(self._go_read, 1)

    def go(self) -> None:
        os.write(self._go_write, b"g")

    def heard(self, *, timeout_s: float = 30.0) -> bytes:
        """What the child says next; b"" at its end."""
        ready, _, _ = select.select([self._read], [], [], timeout_s)
        if not ready:
            raise TimeoutError(f"child {self.pid} said nothing within {timeout_s} s")
        return os.read(self._read, 65536)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def ended(self, *, timeout_s: float = 60.0) -> int:
        """Its exit code, negative for a signal."""
        deadline = time.monotonic() + timeout_s
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > deadline:
                self.kill()
                os.waitpid(self.pid, 0)
                raise TimeoutError(f"child {self.pid} did not end within {timeout_s} s")
            time.sleep(0.005)
        os.close(self._read)
        os.close(self._go_write)
        return os.waitstatus_to_exitcode(status)


def run_at_once(works: Sequence[Callable[[], bytes]], *, timeout_s: float = 60.0) -> list[bytes]:
    """Each function in a child of its own, all let go at the same moment; what each returned.

    Raises AssertionError when one failed; its traceback is on stderr.
    """

    def working(work: Callable[[], bytes]) -> Callable[[Child], None]:
        def run(child: Child) -> None:
            child.say(b"r")
            child.wait_for_go()
            child.say(work())

        return run

    children = [Child(working(work)) for work in works]
    for child in children:
        child.heard()
    for child in children:
        child.go()
    said = [child.heard(timeout_s=timeout_s) for child in children]
    codes = [child.ended(timeout_s=timeout_s) for child in children]
    assert codes == [0] * len(codes), f"exit codes {codes}"
    return said
