"""Jobs as records."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

import attrs

from skylib.models.transfers import JobOutputs, OutputsReceipt

__all__ = ["FirstCause", "JobRecord", "JobStatus", "LogLine"]


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
class FirstCause:
    """What made a job fail: the rank that failed first, by the times at which ranks ended on their nodes.

    reason: "exit" (it exited with a code that is not 0), "signal", "oom" (the kernel ended it since memory ran out),
    "disk_full", "not_started", "lost" (its node or its supervisor is gone), "timeout" (the job's). node: the host's name.
    rank is None when no one rank is to blame. exit_code is 128 + signal for a rank that a signal ended, None when nobody
    knows. last_lines: the end of what that rank printed, at most 20 lines and 4 KiB.
    """

    rank: int | None
    node: str
    exit_code: int | None
    signal: int | None
    reason: str
    last_lines: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> FirstCause:
        lines = data.get("last_lines") or ()
        return cls(**{**data, "last_lines": tuple(lines)})  # type: ignore[arg-type]


@attrs.frozen(kw_only=True)
class JobRecord:
    """One job of one cluster. Times are unix seconds by the head's clock, None until it got there.

    exit_codes: by rank, None for a rank that has not ended; 128 + n for a rank that signal n ended.
    cause: first cause of a failure, in words ("rank 1 (host2) exited 3"), "" otherwise. waiting_for: what a PENDING job
    waits for, "" otherwise. log_dir: absolute, on the head. signals: by rank, None for a rank that no signal ended.
    first_cause: None unless the job failed. attempt: 0, and one more for each time that it was begun anew. outputs: what
    its task wants home, None for nothing; fetched: what this home knows of the last fetch of that, None before the first.
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
    signals: tuple[int | None, ...] = ()
    first_cause: FirstCause | None = None
    attempt: int = 0
    outputs: JobOutputs | None = None
    fetched: OutputsReceipt | None = None

    def to_json(self) -> dict[str, object]:
        lists = {"exit_codes": list(self.exit_codes), "signals": list(self.signals)}
        cause = None if self.first_cause is None else attrs.asdict(self.first_cause)
        if cause is not None:
            cause["last_lines"] = list(cause["last_lines"])
        fields = attrs.asdict(self, recurse=False, filter=lambda field, _value: field.name not in ("outputs", "fetched"))
        if self.outputs is not None:
            fields["outputs"] = self.outputs.to_json()
        return {**fields, "status": self.status.value, **lists, "first_cause": cause}

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> JobRecord:
        fields = dict(data)
        fields["status"] = JobStatus(fields["status"])
        for name in ("exit_codes", "signals"):
            fields[name] = tuple(fields.get(name) or ())  # type: ignore[arg-type]
        if fields.get("first_cause") is not None:
            fields["first_cause"] = FirstCause.from_json(fields["first_cause"])  # type: ignore[arg-type]
        outputs = fields.get("outputs")
        fields["outputs"] = JobOutputs.from_json(outputs) if isinstance(outputs, Mapping) else None
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
