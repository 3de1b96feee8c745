"""When an idle cluster stops."""

from __future__ import annotations

import pytest

from skylib.agent.autostop import Autostop, idle_seconds, parse_autostop, stop_due_in


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (None, None),
        ({"idle_minutes": -1}, None),
        ({"idle_minutes": 5}, Autostop(5.0, False)),
        ({"idle_minutes": 0.05, "down": True}, Autostop(0.05, True)),
        ({"idle_minutes": 0}, Autostop(0.0, False)),
    ],
)
def test_a_setting_is_read(data: dict[str, object] | None, expected: Autostop | None) -> None:
    """Negative means off."""
    assert parse_autostop(data) == expected


@pytest.mark.parametrize(
    ("setting", "active", "last", "now", "due"),
    [
        (None, 0, 0.0, 1e9, None),
        (Autostop(1, False), 1, 0.0, 1e9, None),
        (Autostop(1, False), 0, 100.0, 130.0, 30.0),
        (Autostop(1, False), 0, 100.0, 160.0, 0.0),
        (Autostop(1, False), 0, 100.0, 1000.0, 0.0),
        (Autostop(0, False), 0, 100.0, 110.0, 50.0),
        (Autostop(0.05, False), 0, 100.0, 102.0, 1.0),
        (Autostop(1, False), 0, 100.0, 50.0, 60.0),
    ],
)
def test_when_it_is_due(setting: Autostop | None, active: int, last: float, now: float, due: float | None) -> None:
    """Never while a job is there; 0 minutes count as one; a clock that went back does not hasten it."""
    assert stop_due_in(setting, active_jobs=active, last_event=last, now=now) == due


def test_idle_time() -> None:
    """Zero while jobs are there, and never negative."""
    assert idle_seconds(active_jobs=2, last_event=0, now=50) == 0
    assert idle_seconds(active_jobs=0, last_event=20, now=50) == 30
    assert idle_seconds(active_jobs=0, last_event=60, now=50) == 0
