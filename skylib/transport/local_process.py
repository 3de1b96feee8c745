"""One subprocess of this machine: its own session, both streams drained together, its whole group ended together."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping

from skylib.errors import ConnectError
from skylib.transport.base import Chunk, Completed
from skylib.transport.collect import Collector, DeadlinePassed, Ending, Following, Tail
from skylib.transport.command import Command
from skylib.transport.feed import Feeder

__all__ = ["LocalProcess", "follow"]

_READ_BYTES = 256 * 1024
_GRACE_S = 1.0
"""After the group was killed: how long a process that left the group may still hold our pipes."""
_SAY = 'printf "%s\\n" "$1" >&2; exit "$2"'


def _spawn(command: Command, env: Mapping[str, str], *, stdin: bool) -> subprocess.Popen[bytes]:
    """A program or folder that is not there ends as it would under a node's shell: 127, 126 or 1, said on stderr."""
    try:
        return _popen(command.words(), {**env, **command.env}, command.cwd, stdin)
    except OSError as exc:
        if command.cwd is not None and exc.filename == command.cwd:
            status, culprit = 1, f"cd: {command.cwd}"
        elif isinstance(exc, (FileNotFoundError, NotADirectoryError)):
            status, culprit = 127, command.words()[0]
        elif isinstance(exc, PermissionError):
            status, culprit = 126, command.words()[0]
        else:
            raise ConnectError(f"could not start a process: {exc.strerror}", command=command.shown()) from exc
        return _popen(("/bin/sh", "-c", _SAY, "sh", f"{culprit}: {exc.strerror}", str(status)), env, None, stdin)


def _popen(words: tuple[str, ...], env: Mapping[str, str], cwd: str | None, stdin: bool) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        words,
        stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        cwd=cwd,
        env=env,
        start_new_session=True,
    )


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """End the session's process group. The leader is not reaped before this, so its number is still its own."""
    if process.returncode is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return


def _ending(process: subprocess.Popen[bytes]) -> Ending:
    code = process.wait()
    if code < 0:
        return Ending(None, signal.Signals(-code).name.removeprefix("SIG"))
    return Ending(code)


def _close(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            try:
                pipe.close()
            except OSError:
                continue


def follow(
    command: Command, env: Mapping[str, str], stdin: bytes | Iterable[bytes] | None, timeout_s: float | None
) -> Following:
    """Run a command to its end. Raises DeadlinePassed when it was ended for its time, and what `stdin` raises."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    process = _spawn(command, env, stdin=stdin is not None)
    feeder: Feeder | None = None
    try:
        if stdin is not None:
            feeder = _feed(process, stdin).start()
        yield from _drain(process, deadline)
        if feeder is not None and feeder.error is not None:
            raise feeder.error
        return _ending(process)
    finally:
        _kill_group(process)
        if feeder is not None:
            feeder.stop()
        _close(process)
        process.wait()


def _feed(process: subprocess.Popen[bytes], source: bytes | Iterable[bytes]) -> Feeder:
    pipe = process.stdin
    if pipe is None:
        raise ConnectError("the command was started without stdin")

    def send(data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(pipe.fileno(), rest) :]

    return Feeder(source, send=send, finish=pipe.close, on_error=lambda: _kill_group(process))


def _drain(process: subprocess.Popen[bytes], deadline: float | None) -> Following:
    """Chunks until both streams have ended; the ending itself is not waited for."""
    with selectors.DefaultSelector() as selector:
        for name in ("stdout", "stderr"):
            selector.register(getattr(process, name), selectors.EVENT_READ, name)
        expired = False
        while selector.get_map():
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                if expired:
                    break
                _kill_group(process)
                expired, deadline = True, time.monotonic() + _GRACE_S
                continue
            for key, _ in selector.select(left):
                data = os.read(key.fd, _READ_BYTES)
                if data:
                    yield Chunk(key.data, data)
                else:
                    selector.unregister(key.fileobj)
    if not expired and deadline is not None:
        expired = not _ends_by(process, deadline)
    if expired:
        raise DeadlinePassed(ended=True)
    return Ending(None)


def _ends_by(process: subprocess.Popen[bytes], deadline: float) -> bool:
    """Whether a command that has closed its streams ends in time too."""
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return False
    return True


class LocalProcess:
    """A subprocess to talk to. Its stderr is drained beside; `close` ends it with its whole group."""

    def __init__(self, command: Command, env: Mapping[str, str], collector: Collector) -> None:
        self._command = command
        self._collector = collector
        self._started = time.perf_counter()
        self._process = _spawn(command, env, stdin=True)
        self._stderr = Tail()
        self._wake_read, self._wake_write = os.pipe()
        self._closed = False
        self._done: Completed | None = None
        self._reading = threading.Lock()
        self._drainer = threading.Thread(target=self._drain_stderr, name="skylib-stderr", daemon=True)
        self._drainer.start()

    def send(self, data: bytes) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._stdin(), rest) :]
        except (OSError, ValueError) as exc:
            raise ConnectError("the command takes no more input", command=self._command.shown()) from exc

    def send_eof(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()

    def receive(self, max_bytes: int = 65536) -> bytes:
        with self._reading:
            return self._read(max_bytes, None)

    def wait(self, timeout_s: float | None = None) -> Completed:
        if self._done is not None:
            return self._done
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        parts: list[bytes] = []
        try:
            with self._reading:
                while part := self._read(_READ_BYTES, deadline):
                    parts.append(part)
            if deadline is not None and not _ends_by(self._process, deadline):
                raise DeadlinePassed(ended=True)
        except DeadlinePassed as exc:
            self.close()
            streams = b"".join(parts), self._stderr.value()
            raise self._collector.timeout(self._command, timeout_s, exc.ended, *streams) from exc
        ending = _ending(self._process)
        self._drainer.join(_GRACE_S)
        self._done = self._collector.completed(self._command, ending, self._started, b"".join(parts), self._stderr.value())
        self.close()
        return self._done

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        _kill_group(self._process)
        os.write(self._wake_write, b"x")
        with self._reading:
            self._process.wait()
            self._drainer.join(_GRACE_S)
            _close(self._process)
            os.close(self._wake_read)
            os.close(self._wake_write)

    def _stdin(self) -> int:
        if self._process.stdin is None:
            raise BrokenPipeError
        return self._process.stdin.fileno()

    def _read(self, max_bytes: int, deadline: float | None) -> bytes:
        """The next bytes of stdout; b"" at its end or when closed. Raises DeadlinePassed."""
        stdout = self._process.stdout
        if self._closed or stdout is None or stdout.closed:
            return b""
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            selector.register(self._wake_read, selectors.EVENT_READ)
            ready = selector.select(None if deadline is None else max(0.0, deadline - time.monotonic()))
        if self._closed:
            return b""
        if not ready:
            raise DeadlinePassed(ended=True)
        return os.read(stdout.fileno(), max_bytes)

    def _drain_stderr(self) -> None:
        stderr = self._process.stderr
        while stderr is not None:
            try:
                data = os.read(stderr.fileno(), _READ_BYTES)
            except (OSError, ValueError):
                return
            if not data:
                return
            self._stderr.add(data)
