"""A node that exists in memory: answers by rules, keeps what it was asked. For tests, ours and other people's.

node = ScriptedTransport("n1", [Rule("nvidia-smi", b"0, A100, 81920\\n"), Rule(r"^true$", b"")])
node.run(Command.of("true"))
node.calls[0].command
"""

from __future__ import annotations

import queue
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import attrs

from skylib.errors import ConnectError, InvalidSpecError, StagingError, TransportTimeout
from skylib.transport.base import ByteChannel, Chunk, Completed
from skylib.transport.command import Command
from skylib.transport.feed import file_pieces, pieces
from skylib.transport.files import absolute, save

__all__ = ["Call", "MemoryChannel", "Rule", "ScriptedProcess", "ScriptedTransport", "channel_pair"]


@attrs.frozen(kw_only=True)
class Call:
    """One command that was run or opened. stdin: whole; b"" for an opened command."""

    command: Command
    stdin: bytes = b""
    timeout_s: float | None = None


Reply = bytes | Completed | BaseException | Callable[[Call], "bytes | Completed"]
Talk = Callable[[ByteChannel], int | None]
"""The node's side of an opened command: it reads what was sent, sends what is to be received; its value is the status."""


@attrs.frozen
class Rule:
    """What to answer to which command.

    match: a regular expression searched in `Command.text()`, or a predicate. reply: stdout of a success, a Completed,
    an error to raise, or a callable that makes the first two of a Call. times: how often the rule holds, None for ever.
    talk: for `open`, instead of the reply.
    """

    match: str | Callable[[Command], bool]
    reply: Reply = b""
    times: int | None = attrs.field(default=None, kw_only=True)
    talk: Talk | None = attrs.field(default=None, kw_only=True)

    def covers(self, command: Command) -> bool:
        if isinstance(self.match, str):
            return re.search(self.match, command.text()) is not None
        return self.match(command)


class MemoryChannel:
    """One end of a stream between two threads."""

    def __init__(self, incoming: queue.SimpleQueue[bytes], outgoing: queue.SimpleQueue[bytes]) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._rest = b""
        self._ended = False
        self._eof_sent = False
        self._peer: MemoryChannel | None = None

    def send(self, data: bytes) -> None:
        if self._eof_sent or (self._peer is not None and self._peer._ended):
            raise ConnectError("the other side is gone")
        if data:
            self._outgoing.put(bytes(data))

    def send_eof(self) -> None:
        if not self._eof_sent:
            self._eof_sent = True
            self._outgoing.put(b"")

    def receive(self, max_bytes: int = 65536) -> bytes:
        if not self._rest and not self._ended:
            self._rest = self._incoming.get()
            self._ended = not self._rest
        taken, self._rest = self._rest[:max_bytes], self._rest[max_bytes:]
        return taken

    def close(self) -> None:
        self.send_eof()
        self._incoming.put(b"")


def channel_pair() -> tuple[MemoryChannel, MemoryChannel]:
    """Two ends of one stream."""
    there: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    back: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    ours, theirs = MemoryChannel(back, there), MemoryChannel(there, back)
    ours._peer, theirs._peer = theirs, ours
    return ours, theirs


class ScriptedProcess:
    """An opened command whose other side is a `talk`, run in a thread."""

    def __init__(self, command: Command, talk: Talk, host: str) -> None:
        self._command = command
        self._host = host
        self._started = time.perf_counter()
        self._ours, self._theirs = channel_pair()
        self._status: int | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, args=(talk,), name="skylib-scripted", daemon=True)
        self._thread.start()

    def send(self, data: bytes) -> None:
        self._ours.send(data)

    def send_eof(self) -> None:
        self._ours.send_eof()

    def receive(self, max_bytes: int = 65536) -> bytes:
        return self._ours.receive(max_bytes)

    def wait(self, timeout_s: float | None = None) -> Completed:
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self.close()
            raise _timeout(self._command, self._host, timeout_s)
        rest = b"".join(iter(self._ours.receive, b""))
        return Completed(
            returncode=self._status,
            signal="KILL" if self._status is None else None,
            stdout=rest,
            stderr=b"",
            seconds=time.perf_counter() - self._started,
            host=self._host,
            command=self._command.shown(),
        )

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._ours.close()

    def _run(self, talk: Talk) -> None:
        try:
            self._status = talk(self._theirs) or 0
        except ConnectError:
            self._status = None  # as a command that is ended when its channel closes
        finally:
            self._theirs.send_eof()


class ScriptedTransport:
    """A node that answers by `rules`; the first that matches and is not used up counts. No rule: InvalidSpecError.

    calls: every command so far. files: path -> content, what put writes and get reads. modes: path -> mode.
    listening: (host, port) -> the other side of `forward`. rules may be changed while it is in use.
    """

    def __init__(
        self,
        host: str = "scripted",
        rules: Iterable[Rule] = (),
        *,
        files: Mapping[str, bytes] | None = None,
        listening: Mapping[tuple[str, int], Talk] | None = None,
    ) -> None:
        self._host = host
        self._lock = threading.Lock()
        self._used: dict[int, int] = {}
        self.rules: list[Rule] = list(rules)
        self.calls: list[Call] = []
        self.files: dict[str, bytes] = dict(files or {})
        self.modes: dict[str, int] = {}
        self.listening: dict[tuple[str, int], Talk] = dict(listening or {})
        self.closed = 0

    @property
    def host(self) -> str:
        return self._host

    @property
    def commands(self) -> Sequence[str]:
        """The lines of all calls, as a shell would see them."""
        return tuple(call.command.text() for call in tuple(self.calls))

    def run(
        self, command: Command, *, stdin: bytes | Iterable[bytes] | None = None, timeout_s: float | None = None
    ) -> Completed:
        call = Call(command=command, stdin=b"".join(pieces(stdin or b"")), timeout_s=timeout_s)
        started = time.perf_counter()
        reply = self._rule(call).reply
        if callable(reply):
            reply = reply(call)
        if isinstance(reply, BaseException):
            raise reply
        if isinstance(reply, bytes):
            reply = Completed(returncode=0, stdout=reply, stderr=b"")
        seconds = reply.seconds or time.perf_counter() - started
        return attrs.evolve(reply, host=self._host, command=command.shown(), seconds=seconds)

    def stream(self, command: Command, *, stdin: bytes | None = None) -> Iterator[Chunk]:
        done = self.run(command, stdin=stdin)
        for name, data in (("stdout", done.stdout), ("stderr", done.stderr)):
            if data:
                yield Chunk(name, data)
        done.check()

    def open(self, command: Command) -> ScriptedProcess:
        call = Call(command=command)
        rule = self._rule(call)

        def answer(channel: ByteChannel) -> int | None:
            reply = rule.reply(call) if callable(rule.reply) else rule.reply
            if isinstance(reply, BaseException):
                raise reply
            channel.send(reply if isinstance(reply, bytes) else reply.stdout)
            return 0 if isinstance(reply, bytes) else reply.returncode

        if isinstance(rule.reply, BaseException):
            raise rule.reply
        return ScriptedProcess(command, rule.talk or answer, self._host)

    def put(self, source: Path | bytes | Iterable[bytes], target: str, *, mode: int = 0o600) -> int:
        parts = file_pieces(source) if isinstance(source, Path) else pieces(source)
        try:
            content = b"".join(parts)
        except OSError as exc:
            raise StagingError(f"could not read {source!r}: {exc.strerror}", path=str(source)) from exc
        if any(name.startswith(f"{target}/") for name in self.files):
            raise StagingError(f"could not write {target}: it is a directory", path=target, host=self._host)
        self.files[absolute(target)] = content
        self.modes[target] = mode
        return len(content)

    def get(self, source: str, target: Path) -> int:
        content = self.files.get(absolute(source))
        if content is None:
            raise StagingError(f"could not read {source}: no such file", path=source, host=self._host)
        return save(target, (content,), host=self._host)

    def forward(self, host: str, port: int) -> MemoryChannel:
        talk = self.listening.get((host, port))
        if talk is None:
            raise ConnectError(f"nothing answered on {host}:{port} from there", host=self._host, step="forward")
        ours, theirs = channel_pair()

        def run() -> None:
            try:
                talk(theirs)
            finally:
                theirs.send_eof()

        threading.Thread(target=run, name="skylib-scripted", daemon=True).start()
        return ours

    def close(self) -> None:
        self.closed += 1

    def __repr__(self) -> str:
        return f"ScriptedTransport({self._host!r})"

    def _rule(self, call: Call) -> Rule:
        with self._lock:
            self.calls.append(call)
            for rule in self.rules:
                used = self._used.get(id(rule), 0)
                if (rule.times is None or used < rule.times) and rule.covers(call.command):
                    self._used[id(rule)] = used + 1
                    return rule
        message = f"no rule for a command of the scripted node {self._host}"
        raise InvalidSpecError(message, host=self._host, command=call.command.shown())


def _timeout(command: Command, host: str, timeout_s: float | None) -> TransportTimeout:
    return TransportTimeout(
        f"a command did not end within {timeout_s:g} s and was ended",
        host=host,
        command=command.shown(),
        timeout_s=timeout_s,
        ended=True,
        stdout=b"",
        stderr=b"",
    )
