"""Logs of jobs: told by the agent, or from the copy at home, to a stream; and the copy brought home."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

from skylib.errors import AgentError, AgentReplyError, InvalidSpecError, JobNotFound, StagingError, TransportError
from skylib.jobs.kept import KeptLog, is_complete, kept_lines
from skylib.jobs.lines import piece_of
from skylib.jobs.stream import Batch, Place, Source
from skylib.models.job import JobStatus, LogLine
from skylib.runtime.agent_client import AgentClient
from skylib.runtime.agent_stream import AgentStream, StreamClosed

__all__ = ["keep", "kept_source", "open_source"]


class _AgentSource(Source):
    """A job's lines from its agent, from one place on."""

    def __init__(self, stream: AgentStream, cluster: str, job_id: int, *, resumed: bool) -> None:
        self._stream = stream
        self._cluster = cluster
        self._job_id = job_id
        self._resumed = resumed

    def take(self, timeout_s: float | None) -> Batch | None:
        try:
            message = self._stream.pop(timeout_s)
        except queue.Empty:
            return None
        except StreamClosed:
            return Batch(ended=True)
        except AgentReplyError as error:
            raise _typed(error, self._cluster, self._job_id, resumed=self._resumed) from error
        if "ok" in message:
            return Batch(ended=True)
        if "start" in message:
            return Batch(offset=message["start"])
        return Batch(lines=piece_of(message).lines())

    @property
    def owes(self) -> bool:
        return self._stream.owes

    def pay(self) -> None:
        self._stream.tell()

    def call_when_ready(self, wake: Callable[[], None] | None) -> None:
        self._stream.call_when_ready(wake)

    def abandon(self) -> None:
        self._stream.abandon()

    def close(self) -> None:
        self._stream.close()


class _KeptSource(Source):
    """A job's lines from the copy at home."""

    def __init__(self, lines: Iterator[LogLine]) -> None:
        self._lines = lines

    def take(self, timeout_s: float | None) -> Batch | None:
        return Batch(lines=self._lines, ended=True)

    def pay(self) -> None:
        return

    def abandon(self) -> None:
        return

    def close(self) -> None:
        return


def open_source(agent: AgentClient, cluster: str, job_id: int, place: Place, *, follow: bool) -> Source:
    """A job's merged log from a place on; with `follow` until the job has ended and all is told, else what is there.

    What is taken from it raises JobNotFound; InvalidSpecError when no line begins at the offset; AgentError,
    TransportError when the channel breaks.
    """
    more = {} if place.tail is None else {"tail": place.tail}
    stream = agent.open_stream("logs", job_id=job_id, offset=place.offset, follow=follow, batch=True, **more)
    return _AgentSource(stream, cluster, job_id, resumed=place.resumed)


def kept_source(path: Path, place: Place) -> Source:
    """The same from the copy at home. Raises what reading its first line does."""
    lines = kept_lines(path, offset=place.offset, tail=place.tail)
    first = next(lines, None)
    return _KeptSource(lines if first is None else chain((first,), lines))


def _typed(error: AgentReplyError, cluster: str, job_id: int, *, resumed: bool) -> Exception:
    if error.kind == "not_found":
        return JobNotFound(f"cluster {cluster!r} has no such job: {error.message}", cluster=cluster, job_id=job_id)
    if error.kind == "bad_offset" and resumed:
        return AgentError(
            f"the log of job {job_id} of cluster {cluster!r} is not what it was: {error.message}",
            cluster=cluster,
            job_id=job_id,
            retryable=False,
        )
    if error.kind == "bad_offset":
        return InvalidSpecError(
            error.message,
            field="offset",
            cluster=cluster,
            job_id=job_id,
            hint="resume at the next_offset of a line",
        )
    return error


def keep(agent: AgentClient, cluster: str, job_id: int, path: Path, *, final: bool = False) -> int:
    """Bring a job's whole log home, as far as it goes; it is on the disk when this returns.

    Goes on where an earlier call ended, however it ended; one caller at a time. final: the job prints no more, whatever
    its status says. Returns the bytes added. Raises StagingError when this disk does not take them, JobNotFound,
    AgentError, TransportError.
    """
    if is_complete(path):
        return 0
    try:
        with KeptLog(path) as kept:
            begun = kept.end
            ended = _copy(agent, cluster, job_id, kept)
            kept.close(complete=final or ended)
            return kept.end - begun
    except OSError as error:
        if isinstance(error, (TransportError, StagingError)):
            raise
        raise StagingError(
            f"cannot keep the log of job {job_id}: {error.strerror or error}", path=str(path), step="logs.keep"
        ) from error


def _copy(agent: AgentClient, cluster: str, job_id: int, kept: KeptLog) -> bool:
    """Whether the job had ended by then. A channel that breaks is opened once more."""
    for attempt in (1, 2):
        try:
            for message in agent.stream("logs", job_id=job_id, offset=kept.end, follow=False, batch=True):
                if "ok" not in message:
                    kept.add(piece_of(message))
                    continue
                status = (message["ok"].get("job") or {}).get("status")
                return status is not None and JobStatus(status).is_terminal
        except AgentReplyError as error:
            raise _typed(error, cluster, job_id, resumed=True) from error
        except (AgentError, TransportError) as error:
            if attempt == 2 or not error.retryable:
                raise
        except ValueError as error:
            raise AgentError(
                f"the log of job {job_id} of cluster {cluster!r} cannot be kept: {error}", cluster=cluster, retryable=False
            ) from error
    raise AssertionError("unreachable")  # pragma: no cover
