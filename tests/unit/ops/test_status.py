"""The next status of a cluster is a pure function of what was seen."""

from __future__ import annotations

import pytest

from skylib.models.cluster import ClusterStatus
from skylib.ops.status import Seen, next_status

UP, INIT, STOPPED = ClusterStatus.UP, ClusterStatus.INIT, ClusterStatus.STOPPED
UNREACHABLE, AUTOSTOPPING = ClusterStatus.UNREACHABLE, ClusterStatus.AUTOSTOPPING
HEALTHY = Seen(reached=True, agent=True, ray_ok=True, alive=3)


@pytest.mark.parametrize(
    ("known", "seen", "expected"),
    [
        (UP, HEALTHY, UP),
        (INIT, HEALTHY, UP),
        (UNREACHABLE, HEALTHY, UP),
        (UP, Seen(reached=False), UNREACHABLE),
        (INIT, Seen(reached=False), UNREACHABLE),
        (UP, Seen(reached=True, agent=True, ray_ok=True, alive=2), INIT),
        (UP, Seen(reached=True, agent=True, ray_ok=False, alive=3), INIT),
        (UP, Seen(reached=True), INIT),
        (UP, Seen(reached=True, stopped=True), STOPPED),
        (UP, Seen(reached=True, agent=True, stopping=True, ray_ok=True, alive=3), AUTOSTOPPING),
        (AUTOSTOPPING, Seen(reached=True, stopped=True), STOPPED),
        (STOPPED, Seen(reached=False), STOPPED),
        (STOPPED, HEALTHY, STOPPED),
    ],
)
def test_the_next_status_follows_from_what_was_seen(known, seen, expected):
    """Unreachable is not gone, parts missing is INIT, and what was stopped stays stopped."""
    assert next_status(known, 3, seen) is expected
