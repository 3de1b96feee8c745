"""Logs of jobs: followed from the agent across breaks, and kept at home when the cluster goes."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from skylib.errors import AgentError, AgentReplyError, JobNotFound, StagingError, TransportError
from skylib.models.job import LogLine
from skylib.paths import ensure_private_dir
from skylib.runtime.agent_client import AgentClient, payload_bytes

__all__ = ["follow", "keep", "kept_lines", "kept_path", "log_line"]

PATIENCE_S = 120.0
ONE_LOOK_PATIENCE_S = 3.0  # who does not follow wants what is there now
_TEXT = "run.log"


def follow(
    agent: AgentClient, cluster: str, job_id: int | None, *, offset: int = 0, follow: bool = True
) -> Iterator[LogLine]:
    """Lines of a job's merged log from `offset` on; with `follow` until the job has ended and all is told.

    A break is healed by resuming at the last line's next_offset, for up to two minutes (without `follow`, 3 s) without
    progress; then the error is raised: a broken stream never looks like the end.
    Raises JobNotFound, AgentError, TransportError.
    """
    broken_since: float | None = None
    pause_s = 0.2
    while True:
        try:
            for item in agent.stream("logs", job_id=job_id, offset=offset, follow=follow):
                if "ok" in item:
                    return
                line = log_line(item)
                offset = line.next_offset
                broken_since, pause_s = None, 0.2
                yield line
        except AgentReplyError as error:
            if error.kind != "not_found":
                raise
            raise JobNotFound(
                f"cluster {cluster!r} has no such job: {error.message}", cluster=cluster, job_id=job_id
            ) from error
        except (AgentError, TransportError) as error:
            now = time.monotonic()
            broken_since = broken_since or now
            if not error.retryable or now - broken_since > (PATIENCE_S if follow else ONE_LOOK_PATIENCE_S):
                raise
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, 5.0)


def log_line(item: dict[str, Any]) -> LogLine:
    """One item of the agent's `logs`."""
    raw = payload_bytes(item)
    return LogLine(
        rank=item["rank"],
        node=item["node"],
        stream=item["stream"],
        text=raw.decode("utf-8", "replace"),
        offset=item["offset"],
        next_offset=item["next_offset"],
        time=item["time"],
        raw=raw,
        partial=bool(item.get("partial")),
    )


def kept_path(job_logs: Path, cluster: str, cluster_id: str, job_id: int) -> Path:
    """Where the log of a job is kept at home; each life of a cluster's name has its own folder."""
    return job_logs / cluster / cluster_id[:8] / str(job_id) / "log.jsonl"


def keep(agent: AgentClient, cluster: str, job_id: int, path: Path) -> int:
    """Bring a job's whole log home: log.jsonl (a line each, with rank, time and offset) and run.log beside it (text).

    Goes on where an earlier call ended, however it ended; one caller at a time. Returns the lines added. Raises
    StagingError when this disk does not take them, else as `follow`.
    """
    try:
        ensure_private_dir(path.parent)
        offset = _mend(path)
        lines = 0
        with path.open("a", encoding="ascii") as kept, path.with_name(_TEXT).open("a", encoding="utf-8") as text:
            for line in follow(agent, cluster, job_id, offset=offset, follow=False):
                kept.write(json.dumps(_plain(line), separators=(",", ":")) + "\n")
                text.write(f"{line}\n")
                lines += 1
    except OSError as error:
        if isinstance(error, (TransportError, StagingError)):
            raise
        raise StagingError(
            f"cannot keep the log of job {job_id}: {error.strerror or error}", path=str(path), step="logs.keep"
        ) from error
    return lines


def kept_lines(path: Path, *, offset: int = 0) -> Iterator[LogLine]:
    """Lines of a log that was brought home, from `offset` on; none when there is none."""
    if not path.exists():
        return
    with path.open(encoding="ascii") as kept:
        for row in kept:
            if not row.endswith("\n"):
                return  # being written, or cut short: `keep` mends it
            line = log_line(json.loads(row))
            if line.offset >= offset:
                yield line


def _mend(path: Path) -> int:
    """Cut off what a dead writer left of a row, make the text anew if it is not of the rows; where to go on."""
    offset = rows = 0
    for line in kept_lines(path):
        offset, rows = line.next_offset, rows + 1
    if not path.exists():
        return 0
    with path.open("r+b") as kept:
        kept.truncate(_last_row_end(kept))
    text = path.with_name(_TEXT)
    if not text.exists() or _lines_in(text) != rows or not _ends_whole(text):
        with text.open("w", encoding="utf-8") as made:
            made.writelines(f"{line}\n" for line in kept_lines(path))
    return offset


def _lines_in(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)


def _last_row_end(file: BinaryIO) -> int:
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - 65536)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def _plain(line: LogLine) -> dict[str, object]:
    plain: dict[str, object] = {
        "rank": line.rank,
        "node": line.node,
        "stream": line.stream,
        "offset": line.offset,
        "next_offset": line.next_offset,
        "time": line.time,
        "partial": line.partial,
    }
    try:
        plain["text"] = line.raw.decode("utf-8")
    except UnicodeDecodeError:
        plain["b64"] = base64.b64encode(line.raw).decode("ascii")
    return plain
