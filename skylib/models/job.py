"""Jobs as records."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

import attrs

__all__ = ["JobRecord", "JobStatus", "LogLine"]


class JobStatus(str, Enum):
    """SkyPilot's statuses. A terminal status is never overwritten."""

    INIT = "INIT"
    PENDING = "PENDING"
    SETTING_UP = "SETTING_UP"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    FAILED_SETUP = "FAILED_SETUP"
    FAILED_DRIVER = "FAILED_DRIVER"
    CANCELLED = "CANCELLED"

    @property
    def is_terminal(self) -> bool:
        return self not in _RUNNING_ON


_RUNNING_ON = frozenset({JobStatus.INIT, JobStatus.PENDING, JobStatus.SETTING_UP, JobStatus.RUNNING})


@attrs.frozen(kw_only=True)
class JobRecord:
    """One job of one cluster. Times are unix seconds by the head's clock, None until it got there.

    exit_codes: by rank, None for a rank that has not ended; 128 + n for a rank that signal n ended.
    cause: first cause of a failure, in words ("rank 1 (host2) exited 3"), "" otherwise. waiting_for: what a PENDING job
    waits for, "" otherwise. log_dir: absolute, on the head.
    """

    cluster_name: str
    job_id: int
    name: str
    status: JobStatus
    num_nodes: int
    submitted_at: float
    started_at: float | None = None
    ended_at: float | None = None
    exit_codes: tuple[int | None, ...] = ()
    cause: str = ""
    waiting_for: str = ""
    task_id: str = ""
    user: str = ""
    key: str = ""
    log_dir: str = ""
    resources: str = ""

    def to_json(self) -> dict[str, object]:
        return {**attrs.asdict(self), "status": self.status.value, "exit_codes": list(self.exit_codes)}

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> JobRecord:
        fields = dict(data)
        fields["status"] = JobStatus(fields["status"])
        fields["exit_codes"] = tuple(fields.get("exit_codes") or ())  # type: ignore[arg-type]
        return cls(**fields)  # type: ignore[arg-type]


@attrs.frozen(kw_only=True)
class LogLine:
    """One line of a job's merged log.

    text: without its newline; bytes that are no UTF-8 become U+FFFD (`raw` keeps them). stream: "setup" or "run"; a
    rank's stdout and stderr are one stream, in the order written. offset: where the line starts in the merged log, in
    bytes; next_offset: what to resume from after it. time: unix seconds, when the node read it. partial: the line goes
    on in the next LogLine of the same rank (endless lines come in pieces).
    """

    rank: int
    node: str
    stream: str
    text: str
    offset: int
    next_offset: int
    time: float
    raw: bytes = b""
    partial: bool = False

    def __str__(self) -> str:
        return f"({self.node}, rank={self.rank}) {self.text}"
