"""Ray is asked again for what it refuses: seldom, and not for ever."""

from __future__ import annotations

from itertools import count, takewhile

from skylib.agent.refusals import LIMIT_S, pause_after


def test_the_pauses_grow_to_their_bound_and_end():
    """Ten seconds at most, five minutes in all."""
    pauses = list(takewhile(lambda pause: pause is not None, map(pause_after, count(1))))
    assert pauses[:6] == [1.0, 2.0, 5.0, 10.0, 10.0, 10.0]
    assert max(pause or 0 for pause in pauses) == 10.0
    assert LIMIT_S <= sum(pause or 0 for pause in pauses) < LIMIT_S + 10
