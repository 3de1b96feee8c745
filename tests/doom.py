"""The death of a client inside this process, as faithful as can be without ending the process.

From its last moment on every effect of the session, a write into the store or anything on a node, raises Killed, which is
no Exception: no clean-up can act. Its connections break, and its locks go as the exception passes, as the kernel would
see to. A connection can be lost at the same points instead, while the session lives on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, cast

import attrs

from skylib.models.node import HostAddress
from skylib.state.base import StateStore
from skylib.state.intents import PROCESS
from skylib.transport.base import Chunk, Completed
from skylib.transport.command import Command
from skylib.transport.pool import Transports
from skylib.transport.scripted import MemoryChannel, ScriptedProcess
from tests.scripted_node import ScriptedHost, ScriptedLab, kind_of

__all__ = ["Doom", "End", "Killed", "Point", "Wires", "doomed_store"]

_T = TypeVar("_T")
_WRITES = frozenset(
    "begin_launch save_cluster settle remove_cluster forget_cluster claim_hosts release_hosts save_jobs add_event "
    "begin_intent settle_intent config_set config_add".split()
)


class Killed(BaseException):
    """The process that did this is dead."""


class End(str, Enum):
    """What happens at a point."""

    KILLED_BEFORE = "killed before"
    KILLED_AFTER = "killed after"
    LOST_BEFORE = "connection lost before"
    LOST_AFTER = "connection lost after"


@attrs.frozen
class Point:
    """The number-th time (from 1) that a session does `what`, on whatever host: "store settle", "ray", "send ready"."""

    what: str
    number: int
    end: End


class Doom:
    """When and how one session meets its end. met: the point was reached."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._point: Point | None = None
        self._counts: dict[str, int] = {}
        self._broken: list[ScriptedProcess] = []
        self.dead = False
        self.met = False
        self.seen: list[str] = []

    def arm(self, point: Point | None) -> None:
        """From now on, counting anew."""
        with self._lock:
            self._point, self._counts, self.met, self.seen = point, {}, False, []

    def owns(self, process: ScriptedProcess) -> None:
        """A connection that breaks when the session dies."""
        with self._lock:
            self._broken.append(process)

    def act(self, what: str, effect: Callable[[], _T], *, host: ScriptedHost | None = None) -> _T:
        """Do it, unless the session is dead or dies of it. Raises Killed, ConnectError."""
        end = self._due(what, host)
        if end is End.KILLED_BEFORE:
            self.die()
        elif end is End.LOST_BEFORE and host is not None:
            host.cut()
        if self.dead:
            raise Killed(what)
        if host is not None:
            host.check_up()
        done = effect()
        if end is End.KILLED_AFTER:
            self.die()
        elif end is End.LOST_AFTER and host is not None:
            host.cut()
            host.check_up()
        if self.dead:
            raise Killed(what)
        return done

    def die(self) -> None:
        with self._lock:
            self.dead = True
            broken, self._broken = self._broken, []
        for process in broken:
            process.close()

    def _due(self, what: str, host: ScriptedHost | None) -> End | None:
        with self._lock:
            self.seen.append(what)
            number = self._counts[what] = self._counts.get(what, 0) + 1
            point = self._point
            if self.dead or point is None or (point.what, point.number) != (what, number):
                return None
            if host is None and point.end in (End.LOST_BEFORE, End.LOST_AFTER):
                return None
            self.met = True
            return point.end


class Wires(Transports):
    """The transports of one session to the hosts of a lab."""

    def __init__(self, lab: ScriptedLab, doom: Doom) -> None:
        self._lab = lab
        self._doom = doom
        self._wires = {name: Wire(host, doom) for name, host in lab.hosts.items()}

    def get(self, address: HostAddress) -> Wire:
        return self._wires[address.host]

    def close(self) -> None:
        """Nothing is kept open here."""


class Wire:
    """A session's way to one host."""

    def __init__(self, host: ScriptedHost, doom: Doom) -> None:
        self._host = host
        self._doom = doom
        self._inner = host.transport

    @property
    def host(self) -> str:
        return self._host.name

    def run(
        self, command: Command, *, stdin: bytes | Iterable[bytes] | None = None, timeout_s: float | None = None
    ) -> Completed:
        kind = kind_of(command, stdin if isinstance(stdin, bytes) else b"")
        return self._act(kind, lambda: self._inner.run(command, stdin=stdin, timeout_s=timeout_s))

    def stream(self, command: Command, *, stdin: bytes | None = None) -> Iterator[Chunk]:
        return self._act("stream", lambda: self._inner.stream(command, stdin=stdin))

    def open(self, command: Command) -> DoomedProcess:
        process = self._act(kind_of(command), lambda: self._inner.open(command))
        self._doom.owns(process)
        return DoomedProcess(process, self._act)

    def put(self, source: Path | bytes | Iterable[bytes], target: str, *, mode: int = 0o600) -> int:
        return self._act("put", lambda: self._inner.put(source, target, mode=mode))

    def get(self, source: str, target: Path) -> int:
        return self._act("get", lambda: self._inner.get(source, target))

    def forward(self, host: str, port: int) -> MemoryChannel:
        return self._act("forward", lambda: self._inner.forward(host, port))

    def close(self) -> None:
        self._inner.close()

    def _act(self, kind: str, effect: Callable[[], _T]) -> _T:
        return self._doom.act(kind, effect, host=self._host)


class DoomedProcess:
    """An opened command whose sends are effects: "send <verb>"."""

    def __init__(self, inner: ScriptedProcess, act: Callable[[str, Callable[[], None]], None]) -> None:
        self._inner = inner
        self._act = act

    def send(self, data: bytes) -> None:
        word = "hello"
        if b'"verb":"' in data:
            word = data.split(b'"verb":"', 1)[1].split(b'"', 1)[0].decode()
        self._act(f"send {word}", lambda: self._inner.send(data))

    def send_eof(self) -> None:
        self._inner.send_eof()

    def receive(self, max_bytes: int = 65536) -> bytes:
        return self._inner.receive(max_bytes)

    def wait(self, timeout_s: float | None = None) -> Completed:
        return self._inner.wait(timeout_s)

    def close(self) -> None:
        self._inner.close()


def doomed_store(store: StateStore, doom: Doom) -> StateStore:
    """The store as a session sees it whose writes are effects: "store <method>".

    Its intents look as if they came from a process of the session's own, which nobody finds alive.
    """

    class Doomed:
        def __getattr__(self, name: str) -> Any:
            method = getattr(store, name)
            if name not in _WRITES:
                return method
            return lambda *args, **kwargs: doom.act(f"store {name}", lambda: method(*args, **kwargs))

        def begin_intent(self, operation: str, cluster: str, details: Mapping[str, object] | None = None) -> int:
            known = dict(details or {})
            if PROCESS in known:
                known[PROCESS] = str(known[PROCESS]).rpartition(" ")[0] + " 0"
            return doom.act("store begin_intent", lambda: store.begin_intent(operation, cluster, known))

    return cast(StateStore, Doomed())
