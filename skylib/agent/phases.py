"""Names of a job's phases, and whether a failed run is begun again. Pure."""

from __future__ import annotations

from typing import Any, Mapping, Optional

__all__ = ["run_phase", "stream_of", "wants_retry"]


def run_phase(attempt: int) -> str:
    """What the ranks of that attempt are known by: "run", "run@1", "run@2", ..."""
    return f"run@{attempt}" if attempt else "run"


def stream_of(phase: str) -> str:
    """What logs call the phase: all attempts write to the same files."""
    return phase.partition("@")[0]


def wants_retry(spec: Mapping[str, Any], *, attempt: int, exit_code: Optional[int]) -> bool:
    """Whether a job is begun again after this attempt (0: the first) ended with this exit code in its first failed rank.

    exit_code: None when nobody knows one, as of a rank that was lost; then it is not.
    """
    if exit_code in (None, 0) or attempt >= int(spec.get("max_retries") or 0):
        return False
    codes = spec.get("retry_exit_codes") or []
    return not codes or exit_code in codes
