"""From chunks as they come to what callers are given: a Completed, a stream, or the error that says what happened."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator

import attrs

from skylib.errors import TransportTimeout
from skylib.events import Event, EventSink, Phase, discard
from skylib.transport.base import Chunk, Completed
from skylib.transport.command import Command

__all__ = ["Collector", "DeadlinePassed", "Ending", "Following", "Tail"]

_TAIL_BYTES = 64 * 1024


@attrs.frozen
class Ending:
    """How a command ended. returncode: None when a signal ended it; signal: its name without SIG."""

    returncode: int | None
    signal: str | None = None


Following = Generator[Chunk, None, Ending]
"""A running command: its chunks, then how it ended. Closing the generator ends the command."""


class DeadlinePassed(Exception):
    """The time for a command is over. ended: whether it is known that the command was ended."""

    def __init__(self, *, ended: bool) -> None:
        super().__init__()
        self.ended = ended


class Tail:
    """The last bytes of a stream, and how many there were."""

    def __init__(self, limit: int = _TAIL_BYTES) -> None:
        self._limit = limit
        self._kept = bytearray()
        self.total = 0

    def add(self, data: bytes) -> None:
        self._kept += data
        self.total += len(data)
        if len(self._kept) > 2 * self._limit:
            del self._kept[: -self._limit]

    def value(self) -> bytes:
        return bytes(self._kept[-self._limit :])


@attrs.frozen(kw_only=True)
class Collector:
    """Follows commands of one host and reports each one's end as an event (step "transport.run")."""

    host: str
    events: EventSink = discard

    def all(self, following: Following, command: Command, timeout_s: float | None) -> Completed:
        """Both streams whole. Raises TransportTimeout with what came until then."""
        started = time.perf_counter()
        parts: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
        try:
            while True:
                chunk = next(following)
                parts[chunk.stream].append(chunk.data)
        except StopIteration as stop:
            return self.completed(command, stop.value, started, b"".join(parts["stdout"]), b"".join(parts["stderr"]))
        except DeadlinePassed as exc:
            streams = b"".join(parts["stdout"]), b"".join(parts["stderr"])
            raise self.timeout(command, timeout_s, exc.ended, *streams) from exc
        finally:
            following.close()

    def each(self, following: Following, command: Command) -> Iterator[Chunk]:
        """Chunks as they come. Raises CommandError with the tails when the exit status is not 0."""
        started = time.perf_counter()
        tails = {"stdout": Tail(), "stderr": Tail()}
        try:
            while True:
                chunk = next(following)
                tails[chunk.stream].add(chunk.data)
                yield chunk
        except StopIteration as stop:
            done = self.completed(command, stop.value, started, tails["stdout"].value(), tails["stderr"].value())
        finally:
            following.close()
        done.check()

    def timeout(
        self, command: Command, timeout_s: float | None, ended: bool, stdout: bytes, stderr: bytes
    ) -> TransportTimeout:
        how = "was ended" if ended else "was let go; whether it ended is not known"
        return TransportTimeout(
            f"a command did not end within {timeout_s:g} s and {how}",
            host=self.host,
            command=command.shown(),
            evidence=stderr[-2000:].decode(errors="replace") or stdout[-2000:].decode(errors="replace"),
            timeout_s=timeout_s,
            ended=ended,
            stdout=stdout,
            stderr=stderr,
        )

    def completed(self, command: Command, ending: Ending, started: float, stdout: bytes, stderr: bytes) -> Completed:
        """started: perf_counter at the command's start."""
        seconds = time.perf_counter() - started
        shown = command.shown()
        if self.events is not discard:
            facts = {
                "host": self.host,
                "command": shown,
                "returncode": ending.returncode,
                "signal": ending.signal,
                "stdout_bytes": len(stdout),
                "stderr_bytes": len(stderr),
            }
            self.events(Event(step="transport.run", phase=Phase.FINISHED, at=time.time(), seconds=seconds, facts=facts))
        return Completed(
            returncode=ending.returncode,
            signal=ending.signal,
            stdout=stdout,
            stderr=stderr,
            seconds=seconds,
            host=self.host,
            command=shown,
        )
