"""Messages between the agent and what holds its connection to Ray: plain data with bytes in it, small where it pays."""

from __future__ import annotations

import io
import os

from hypothesis import given
from hypothesis import strategies as st

from skylib.agent.frames import grow, pack, read_blocking, shrink

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["a", "b", "rank"]), inner),
)
LINES = b"".join(b"step %d: loss %d\n" % (number, number * 7919 % 1000) for number in range(20_000))


def carried(value: object) -> object:
    """What comes out at the other end."""
    return read_blocking(io.BytesIO(pack(value)))


@given(PLAIN)
def test_plain_data_arrive_as_they_are(value: object) -> None:
    """Whatever is nested in whatever."""
    assert carried(value) == value
    assert grow(carried(shrink(value))) == value


def test_a_log_is_carried_in_a_quarter_of_its_bytes() -> None:
    """Lines shrink, tuples become lists as they do without, and every byte is there again."""
    reply = ([(("task", "run", 0), (0, LINES, False))], [], [], [])
    small = shrink(reply)
    assert len(pack(small)) < len(LINES) / 4
    assert grow(carried(small)) == carried(reply)


def test_what_does_not_shrink_is_left_alone() -> None:
    """Random bytes cost no time of a processor; neither does what is small anyway."""
    for data in (os.urandom(len(LINES)), b"a few bytes"):
        reply = [data]
        assert shrink(reply) is reply
