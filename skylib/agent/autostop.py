"""When a cluster has been idle for long enough. Pure decisions; idleness.py acts on them."""

from __future__ import annotations

from typing import Any, Dict, Mapping, NamedTuple, Optional

__all__ = [
    "HOOK_TIMEOUT_S",
    "WAIT_FOR",
    "Autostop",
    "Load",
    "due_in",
    "is_busy",
    "parse_autostop",
]

WAIT_FOR = ("jobs_and_ssh", "jobs", "none")
HOOK_TIMEOUT_S = 3600.0
_STUCK_S = 60.0


class Autostop(NamedTuple):
    """A timer's setting.

    idle_minutes: negative means off; 0 counts as 1. down: the node is to be given back, not only stopped. wait_for: what
    keeps the cluster awake. hook: a script that runs on the head before, "" for none; hook_timeout_s: its time.
    """

    idle_minutes: float
    down: bool
    wait_for: str = WAIT_FOR[0]
    hook: str = ""
    hook_timeout_s: float = HOOK_TIMEOUT_S

    @property
    def is_on(self) -> bool:
        return self.idle_minutes >= 0

    @property
    def idle_s(self) -> float:
        return 60.0 * (self.idle_minutes or 1.0)

    @property
    def event(self) -> str:
        """What the hook is told."""
        return "down" if self.down else "stop"

    def to_json(self) -> Dict[str, Any]:
        return {
            "idle_minutes": self.idle_minutes,
            "down": self.down,
            "wait_for": self.wait_for,
            "hook": self.hook or None,
            "hook_timeout_s": self.hook_timeout_s if self.hook_timeout_s != HOOK_TIMEOUT_S else None,
        }


def parse_autostop(data: Optional[Mapping[str, Any]]) -> Optional[Autostop]:
    """None for none, or when it is off. Raises ValueError, KeyError or TypeError when it is something else."""
    if data is None:
        return None
    timeout_s = data.get("hook_timeout_s")
    setting = Autostop(
        idle_minutes=float(data["idle_minutes"]),
        down=bool(data.get("down", False)),
        wait_for=str(data.get("wait_for") or WAIT_FOR[0]),
        hook=str(data.get("hook") or ""),
        hook_timeout_s=HOOK_TIMEOUT_S if timeout_s is None else float(timeout_s),
    )
    if setting.idle_minutes != setting.idle_minutes or not setting.hook_timeout_s > 0:
        raise ValueError("idle_minutes or hook_timeout_s is not a number that can be meant so")
    if setting.wait_for not in WAIT_FOR:
        raise ValueError(f"wait_for is none of {', '.join(WAIT_FOR)}")
    return setting if setting.is_on else None


class Load(NamedTuple):
    """What a look at the cluster shows. running: jobs that are set up or run; queued: that wait; sessions: over SSH."""

    running: int = 0
    queued: int = 0
    sessions: int = 0

    @property
    def stuck(self) -> bool:
        """Jobs wait although nothing runs: what they need is lost. A queue that can move has something running."""
        return self.queued > 0 and self.running == 0


def is_busy(wait_for: str, load: Load) -> bool:
    """Whether the timer stands still. Jobs that wait for what is lost do not hold a cluster awake for ever."""
    if wait_for == "none":
        return False
    return load.running > 0 or (wait_for == "jobs_and_ssh" and load.sessions > 0)


def due_in(setting: Optional[Autostop], *, load: Load, idle_s: float) -> Optional[float]:
    """Seconds until the cluster is to stop if nothing happens: 0 means now, None means that nothing is due.

    idle_s: for how long nothing that `wait_for` names was there. While jobs wait for what is lost it takes a minute at
    least: Ray may be on its way back.
    """
    if setting is None or is_busy(setting.wait_for, load):
        return None
    stuck = load.stuck and setting.wait_for != "none"
    return max((max(setting.idle_s, _STUCK_S) if stuck else setting.idle_s) - idle_s, 0.0)
