"""What tells one process, and one boot, from another. No imports: a rank's supervisor must start in an instant."""

from __future__ import annotations

__all__ = ["boot_id", "stat_fields"]


def stat_fields(pid: int) -> list[bytes]:
    """/proc/<pid>/stat from the state on: [0] state, [1] parent, [3] session, [19] start in ticks since boot; [] if gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except OSError:
        return []
    return text[text.rindex(b")") + 2 :].split()


def boot_id() -> str:
    """Changes when the machine boots, and when a container's first process begins anew."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            boot = file.read().strip()
    except OSError:
        boot = ""
    first = stat_fields(1)
    return f"{boot}-{int(first[19]) if first else 0}"
