"""When a cluster has been idle for long enough. Pure decisions; the daemon acts on them."""

from __future__ import annotations

from typing import Any, Dict, Mapping, NamedTuple, Optional

__all__ = ["Autostop", "idle_seconds", "parse_autostop", "stop_due_in"]


class Autostop(NamedTuple):
    """idle_minutes: negative means off; 0 counts as 1. down: the node is to be given back, not only stopped."""

    idle_minutes: float
    down: bool

    @property
    def is_on(self) -> bool:
        return self.idle_minutes >= 0

    @property
    def idle_s(self) -> float:
        return 60.0 * (self.idle_minutes or 1.0)

    def to_json(self) -> Dict[str, Any]:
        return {"idle_minutes": self.idle_minutes, "down": self.down}


def parse_autostop(data: Optional[Mapping[str, Any]]) -> Optional[Autostop]:
    """None for none, or when it is off. Raises ValueError, KeyError or TypeError when it is something else."""
    if data is None:
        return None
    setting = Autostop(float(data["idle_minutes"]), bool(data.get("down", False)))
    if setting.idle_minutes != setting.idle_minutes:
        raise ValueError("idle_minutes is not a number")
    return setting if setting.is_on else None


def idle_seconds(*, active_jobs: int, last_event: float, now: float) -> float:
    """For how long no job has been queued, set up or running. last_event: the last job's end or submission, or a setting."""
    return 0.0 if active_jobs else max(now - last_event, 0.0)


def stop_due_in(setting: Optional[Autostop], *, active_jobs: int, last_event: float, now: float) -> Optional[float]:
    """Seconds until the cluster is to stop if nothing happens: 0 means now, None means that nothing is due."""
    if setting is None or active_jobs:
        return None
    return max(setting.idle_s - idle_seconds(active_jobs=active_jobs, last_event=last_event, now=now), 0.0)
