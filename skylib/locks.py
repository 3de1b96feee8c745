"""Named locks between threads, processes and Clients of one home, or of all machines that share a database.

`Locks` keeps what is the same everywhere: who may take a lock again, waiting, errors, forks. A Keeper takes and
releases: FileKeeper by an flock on `<home>/locks/<scope>.lock`, which the kernel releases when its holder dies,
whatever way; the file is never deleted, and while the lock is held it tells who holds it. Who waits polls (10 ms growing
to 200 ms, with jitter): a blocked flock could not be given up at the timeout. The order of waiters is left to chance.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import random
import socket
import string
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextvars import ContextVar
from hashlib import sha256
from io import FileIO
from pathlib import Path
from typing import Protocol

import attrs

from skylib.errors import ClusterBusy, LockTimeout, SkyError, StateError
from skylib.forks import watch
from skylib.paths import SkyHome, ensure_private_dir

__all__ = ["Fence", "FileKeeper", "Grip", "Keeper", "LockHolder", "Locks", "held_grips", "lock_file_name"]

_log = logging.getLogger(__name__)
_PLAIN = frozenset((string.ascii_lowercase + string.digits + "_.-").encode())
_LONGEST_NAME = 160
_FIRST_WAIT_S = 0.01
_LONGEST_WAIT_S = 0.2
_CLUSTER = "cluster:"


def lock_file_name(scope: str) -> str:
    """The file name of a scope: one for each scope, also where file names ignore case.

    Lower-case letters, digits and `_.-` stand for themselves, every other byte is %xx; a long name is cut and carries
    its digest after `%h` (which no other name contains). Raises ValueError for the empty scope.
    """
    if not scope:
        raise ValueError("a lock needs a scope")
    name = "".join(chr(byte) if byte in _PLAIN else f"%{byte:02x}" for byte in scope.encode("utf-8", "surrogatepass"))
    if len(name) > _LONGEST_NAME:
        name = f"{name[:80]}%h{sha256(name.encode()).hexdigest()}"
    return f"{name}.lock"


@attrs.frozen(kw_only=True)
class LockHolder:
    """Who holds a lock. host: the machine's name. since: unix seconds."""

    pid: int
    host: str
    operation: str
    since: float

    def __str__(self) -> str:
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"{self.operation} (pid {self.pid} on {self.host}, since {began})"


@attrs.frozen(kw_only=True)
class Fence:
    """What a store can check before it writes under a lock: that `token` still stands for the lock `key` of `place`.

    place: which database, schema included. Who takes the lock next puts another token there before doing anything.
    """

    place: str
    key: int
    scope: str
    token: str


class Grip(Protocol):
    """One lock, taken. fence: None where a lock cannot be lost while its holder lives."""

    @property
    def fence(self) -> Fence | None: ...

    def check(self) -> None:
        """Raises LockLost when the lock may have been somebody else's since it was taken."""

    def release(self, *, wait: bool = True) -> None:
        """Let go; called once. Raises LockLost as `check` does; with `wait` False StateError when that takes waiting."""

    def abandon(self) -> None:
        """In a forked child: let go of the child's copies; the parent goes on holding what it holds."""


class Keeper(Protocol):
    """Takes locks by name for one process. Safe from many threads, and after fork."""

    def take(self, scope: str, holder: LockHolder) -> Grip | None:
        """The lock, without waiting for whoever has it: None then. Raises StateError when locks cannot be taken at all."""

    def holder(self, scope: str) -> LockHolder | None:
        """Who holds it, as far as is known; None when nobody says so."""

    def close(self) -> None:
        """Let go of what is kept open for the next lock; locks that are held stay held."""


class _Held:
    """One lock that this process holds, or is just taking (no grip yet). owner: who may take it again."""

    __slots__ = ("depth", "grip", "owner")

    def __init__(self, owner: Hashable) -> None:
        self.grip: Grip | None = None
        self.owner = owner
        self.depth = 1


# The grips of the operation that runs in this context; its threads run in copies of it.
_GRIPS: ContextVar[tuple[Grip, ...]] = ContextVar("skylib_grips", default=())


def held_grips() -> tuple[Grip, ...]:
    """The locks that the running operation holds, the outermost first: those whose `with` block this code is inside of."""
    return _GRIPS.get()


class Locks:
    """The locks of one home. Nothing is made before the first `hold`."""

    def __init__(self, home: SkyHome, *, keeper: Keeper | None = None, clock: Callable[[], float] = time.time) -> None:
        """keeper: by default files under the home."""
        self._keeper = keeper or FileKeeper(home)
        self._clock = clock
        self._mutex = threading.Lock()
        self._held: dict[str, _Held] = {}
        self._pid = 0

    @contextlib.contextmanager
    def hold(self, scope: str, *, operation: str, timeout_s: float = 30.0, owner: Hashable | None = None) -> Iterator[Grip]:
        """Hold `scope` ("cluster:<name>", "pool:<name>", "store", ...) for the length of a `with` block.

        operation: shown to who has to wait ("launch"). timeout_s: 0 tries once. owner: who may take the lock again
        while it is held, by default this thread; the threads of one operation can share a token.
        Raises LockTimeout, for a cluster ClusterBusy, with scope, holder and since; StateError when locks cannot be
        taken; LockLost at the end of the block when the lock did not last that long (an error of the block goes first).
        A child forked inside the block does not hold the lock.
        """
        self._watch_forks()
        me: Hashable = ("thread", threading.get_ident()) if owner is None else ("token", owner)
        pid = os.getpid()
        grip = self._acquire(scope, me, operation, timeout_s)
        before = _GRIPS.get()
        inside = (*before, grip)
        _GRIPS.set(inside)
        try:
            yield grip
        except BaseException:
            if os.getpid() == pid:
                self._release_after_error(scope)
            raise
        else:
            if os.getpid() == pid:
                self._release(scope)
        finally:
            if _GRIPS.get() is inside:  # not so when a generator is closed in another context
                _GRIPS.set(before)

    def holder(self, scope: str) -> LockHolder | None:
        """Who holds `scope` by the keeper's word; None when it names nobody. In a file, one that was killed stays named."""
        return self._keeper.holder(scope)

    def close(self) -> None:
        """Let go of what is kept open for the next lock; locks that are held stay held."""
        self._keeper.close()

    def _acquire(self, scope: str, owner: Hashable, operation: str, timeout_s: float) -> Grip:
        deadline = time.monotonic() + timeout_s
        wait_s = _FIRST_WAIT_S
        while True:
            grip = self._try(scope, owner, operation)
            if grip is not None:
                return grip
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise self._timed_out(scope, operation, timeout_s)
            time.sleep(min(left_s, wait_s * random.uniform(0.5, 1.0)))
            wait_s = min(wait_s * 1.5, _LONGEST_WAIT_S)

    def _try(self, scope: str, owner: Hashable, operation: str) -> Grip | None:
        with self._mutex:
            held = self._held.get(scope)
            if held is not None:
                if held.owner != owner or held.grip is None:
                    return None
                held.depth += 1
                return held.grip
            mine = self._held[scope] = _Held(owner)
        # A keeper may have to ask a server: nobody else waits for that.
        try:
            holder = LockHolder(pid=os.getpid(), host=socket.gethostname(), operation=operation, since=self._clock())
            mine.grip = self._keeper.take(scope, holder)
        finally:
            if mine.grip is None:
                with self._mutex:
                    del self._held[scope]
        return mine.grip

    def _release(self, scope: str, *, wait: bool = True) -> None:
        with self._mutex:
            held = self._held[scope]
            held.depth -= 1
            if held.depth:
                return
            del self._held[scope]
        if held.grip is not None:
            held.grip.release(wait=wait)

    def _release_after_error(self, scope: str) -> None:
        """Without waiting for what the error may be about: a server that is away."""
        try:
            self._release(scope, wait=False)
        except SkyError as error:
            _log.warning("after an error inside: %s", error)

    def _timed_out(self, scope: str, operation: str, timeout_s: float) -> StateError | ClusterBusy:
        holder = self.holder(scope)
        since = holder.since if holder else None
        by = f"held by {holder}" if holder else "held by another operation"
        if scope.startswith(_CLUSTER):
            name = scope[len(_CLUSTER) :]
            return ClusterBusy(
                f"cluster {name!r} is busy: {by}",
                cluster=name,
                scope=scope,
                holder=holder,
                since=since,
                timeout_s=timeout_s,
                step=operation,
                hint="try again when it has ended, or wait longer",
            )
        return LockTimeout(
            f"{scope!r} was not free within {timeout_s:g} s: {by}",
            scope=scope,
            holder=holder,
            since=since,
            timeout_s=timeout_s,
            step=operation,
        )

    def _watch_forks(self) -> None:
        """Once in each process that uses these locks: see to it that a forked child lets go of them."""
        if self._pid == os.getpid():
            return
        if self._pid == 0:
            self._pid = os.getpid()
            watch(self, in_child=Locks._let_go_in_child)
        else:
            self._let_go_in_child()

    def _let_go_in_child(self) -> None:
        """Without unlocking: the parent goes on holding what it holds."""
        self._pid = os.getpid()
        self._mutex = threading.Lock()
        inherited, self._held = self._held, {}
        grips = {held.grip for held in inherited.values()}
        _GRIPS.set(tuple(grip for grip in _GRIPS.get() if grip not in grips))
        for grip in grips:
            if grip is not None:
                grip.abandon()


class FileKeeper:
    """Locks as files of one home."""

    def __init__(self, home: SkyHome) -> None:
        self._home = home

    def take(self, scope: str, holder: LockHolder) -> Grip | None:
        path = self._path(scope)
        try:
            file = _try_file(path)
        except OSError as error:
            raise StateError(
                f"cannot lock {path}: {error.strerror or error}",
                scope=scope,
                hint=f"make {self._home.root} writable for this account",
            ) from error
        if file is None:
            return None
        _write_holder(file, holder)
        return _FileGrip(file)

    def holder(self, scope: str) -> LockHolder | None:
        return _read_holder(self._path(scope))

    def close(self) -> None:
        """Nothing is kept open."""

    def _path(self, scope: str) -> Path:
        return self._home.locks / lock_file_name(scope)


class _FileGrip:
    """A locked file. The kernel keeps it for as long as this process lives."""

    __slots__ = ("_file",)
    fence: Fence | None = None

    def __init__(self, file: FileIO) -> None:
        self._file = file

    def check(self) -> None:
        """It cannot be lost."""

    def release(self, *, wait: bool = True) -> None:
        _unlock(self._file)

    def abandon(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()


def _try_file(path: Path) -> FileIO | None:
    """The file at `path`, locked, or None when somebody else has it locked."""
    import portalocker

    ensure_private_dir(path.parent)
    while True:
        file = FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b")
        try:
            portalocker.lock(file, portalocker.LockFlags.EXCLUSIVE | portalocker.LockFlags.NON_BLOCKING)
        except portalocker.LockException as error:
            file.close()
            if isinstance(error, portalocker.AlreadyLocked) or _is_held(error):
                return None
            raise OSError(f"the file system refuses locks ({error})") from error
        if _is_still(path, file):
            return file
        file.close()


def _is_held(error: Exception) -> bool:
    """Whether the lock was refused because somebody has it: portalocker 2 says so only by the errno inside."""
    inner = error.args[0] if error.args else None
    return isinstance(inner, OSError) and inner.errno in (errno.EAGAIN, errno.EACCES)


def _is_still(path: Path, file: FileIO) -> bool:
    """Whether `path` is the file that was locked: somebody may have removed it in between."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _unlock(file: FileIO) -> None:
    """Release for every copy of the descriptor, those of forked children included."""
    import portalocker

    with contextlib.suppress(OSError):
        os.ftruncate(file.fileno(), 0)
    with contextlib.suppress(OSError, portalocker.LockException):
        portalocker.unlock(file)
    with contextlib.suppress(OSError):
        file.close()


def _write_holder(file: FileIO, holder: LockHolder) -> None:
    """Best effort: a full disk must not keep an operation from its lock."""
    with contextlib.suppress(OSError):
        os.ftruncate(file.fileno(), 0)
        os.pwrite(file.fileno(), json.dumps(attrs.asdict(holder)).encode() + b"\n", 0)


def _read_holder(path: Path) -> LockHolder | None:
    try:
        return LockHolder(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
