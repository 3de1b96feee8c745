"""Starts that are under way are waited for by who ends their job."""

from __future__ import annotations

import threading

from skylib.agent.starts import Starts


def test_who_ends_a_job_waits_for_its_starts_alone() -> None:
    """Until the last of them is over, and not for another job's."""
    starts = Starts()
    over = threading.Event()
    waited: list[bool] = []
    with starts.one("other"), starts.one("job"):
        with starts.one("job"):
            assert not starts.wait("job", 0.0)
        assert not starts.wait("job", 0.0)
        waiting = threading.Thread(target=lambda: (waited.append(starts.wait("job", 30.0)), over.set()))
        waiting.start()
        assert not over.is_set()
    waiting.join(30)
    assert waited == [True]
    assert starts.wait("never", 0.0)
