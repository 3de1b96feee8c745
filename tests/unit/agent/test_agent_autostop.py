"""When an idle cluster stops."""

from __future__ import annotations

import pytest

from skylib.agent.autostop import Autostop, Load, due_in, is_busy, parse_autostop

NOTHING, RUNS, WAITS = Load(), Load(running=1), Load(queued=2)
BEHIND, SITS = Load(running=1, queued=5), Load(sessions=1)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (None, None),
        ({"idle_minutes": -1}, None),
        ({"idle_minutes": 5}, Autostop(5.0, False)),
        ({"idle_minutes": 0.05, "down": True}, Autostop(0.05, True)),
        ({"idle_minutes": 0}, Autostop(0.0, False)),
        ({"idle_minutes": 1, "wait_for": "none"}, Autostop(1.0, False, "none")),
        ({"idle_minutes": 1, "wait_for": None, "hook": None, "hook_timeout_s": None}, Autostop(1.0, False)),
        ({"idle_minutes": 1, "hook": "echo", "hook_timeout_s": 5}, Autostop(1.0, False, "jobs_and_ssh", "echo", 5.0)),
    ],
)
def test_a_setting_is_read(data: dict[str, object] | None, expected: Autostop | None) -> None:
    """Negative means off; what an older client does not say is as it always was; what is shown reads back."""
    assert parse_autostop(data) == expected
    assert parse_autostop(expected.to_json() if expected else None) == expected


@pytest.mark.parametrize(
    "data",
    [
        {"idle_minutes": "soon"},
        {"idle_minutes": float("nan")},
        {"idle_minutes": 1, "wait_for": "rain"},
        {"idle_minutes": 1, "hook_timeout_s": 0},
        {"idle_minutes": 1, "hook_timeout_s": float("nan")},
        {},
    ],
)
def test_a_setting_that_is_none_is_refused(data: dict[str, object]) -> None:
    """Nothing is guessed."""
    with pytest.raises((ValueError, KeyError)):
        parse_autostop(data)


@pytest.mark.parametrize(
    ("wait_for", "load", "busy"),
    [
        ("jobs_and_ssh", NOTHING, False),
        ("jobs_and_ssh", RUNS, True),
        ("jobs_and_ssh", BEHIND, True),
        ("jobs_and_ssh", SITS, True),
        ("jobs_and_ssh", WAITS, False),
        ("jobs", RUNS, True),
        ("jobs", SITS, False),
        ("none", RUNS, False),
        ("none", SITS, False),
    ],
)
def test_what_keeps_a_cluster_awake(wait_for: str, load: Load, busy: bool) -> None:
    """What the setting names; jobs that wait while nothing runs wait for what is lost, and keep nothing awake."""
    assert is_busy(wait_for, load) is busy


@pytest.mark.parametrize(
    ("setting", "load", "idle_s", "due"),
    [
        (None, NOTHING, 1e9, None),
        (Autostop(1, False), RUNS, 1e9, None),
        (Autostop(1, False), NOTHING, 30.0, 30.0),
        (Autostop(1, False), NOTHING, 60.0, 0.0),
        (Autostop(1, False), NOTHING, 900.0, 0.0),
        (Autostop(0, False), NOTHING, 10.0, 50.0),
        (Autostop(0.05, False), NOTHING, 2.0, 1.0),
        (Autostop(0.05, False), SITS, 900.0, None),
        (Autostop(0.05, False, "jobs"), SITS, 900.0, 0.0),
        (Autostop(0.05, False, "none"), RUNS, 900.0, 0.0),
        (Autostop(0.05, False), WAITS, 59.0, 1.0),
        (Autostop(5, False), WAITS, 60.0, 240.0),
        (Autostop(0.05, False, "none"), WAITS, 3.0, 0.0),
    ],
)
def test_when_it_is_due(setting: Autostop | None, load: Load, idle_s: float, due: float | None) -> None:
    """0 minutes count as one; with jobs that wait for what is lost it takes a minute at least, for it may come back."""
    assert due_in(setting, load=load, idle_s=idle_s) == due
