"""How far a transfer is told to be."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from skylib.events import Event, Phase
from skylib.staging.meter import Amount, Meter
from skylib.staging.plan import plan_sync
from skylib.staging.sync import SyncNode, sync
from skylib.transport.base import Completed
from skylib.transport.command import Command
from skylib.transport.local import LocalTransport


def meter_of(notes: list[Event], ticks: Iterator[float], total: int) -> Meter:
    """A meter whose clock is at the next of `ticks` each time that it is read."""
    whole = Amount(files=3, bytes=total)
    return Meter(events=notes.append, step="s", host="gpu1", total=whole, packed=Amount(files=1), clock=lambda: next(ticks))


def test_a_note_has_all_that_a_line_needs() -> None:
    """Node, files, bytes, what there is in all, and the rate since the first byte."""
    notes: list[Event] = []
    blocks = [b"x" * 100, b"y" * 300]
    assert list(meter_of(notes, iter([10.0, 10.1, 12.0]), 1000).through(blocks)) == blocks
    (note,) = notes
    assert (note.step, note.phase) == ("s", Phase.NOTE)
    assert dict(note.facts) == {
        "host": "gpu1", "files": 1, "bytes": 400, "total_files": 3, "total_bytes": 1000, "rate_bytes_s": 200,
    }  # fmt: skip


@given(st.lists(st.tuples(st.binary(max_size=20), st.floats(0, 1))), st.integers(0, 300))
def test_notes_are_few_and_true(steps: list[tuple[bytes, float]], total: int) -> None:
    """At most five a second, whatever comes when; bytes grow, and are never more than there are in all."""
    times = [0.0]
    for _, seconds in steps:
        times.append(times[-1] + seconds)
    notes: list[Event] = []
    assert list(meter_of(notes, iter(times), total).through([block for block, _ in steps])) == [block for block, _ in steps]
    assert len(notes) <= times[-1] * 5 + 1
    told = [int(str(note.facts["bytes"])) for note in notes]
    assert told == sorted(told)
    assert all(count <= total for count in told)


class Slow(LocalTransport):
    """A node behind a narrow line: a block every tenth of a second."""

    def run(
        self, command: Command, *, stdin: bytes | Iterable[bytes] | None = None, timeout_s: float | None = None
    ) -> Completed:
        def slowly() -> Iterator[bytes]:
            for block in stdin or ():
                time.sleep(0.1)
                yield block

        narrow = stdin is not None and not isinstance(stdin, bytes)
        return super().run(command, stdin=slowly() if narrow else stdin, timeout_s=timeout_s)


def test_a_delivery_says_how_far_each_node_is(tmp_path: Path) -> None:
    """While bytes go there are notes of files.deliver with the node's name and what it lacks."""
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "big").write_bytes(b"x" * (2 << 20))
    (tmp_path / "work" / "small").write_text("x")
    (tmp_path / "node").mkdir()
    seen: list[Event] = []
    node = SyncNode(transport=Slow(), root=str(tmp_path / "node"))
    sync([node], plan_sync(str(tmp_path / "work")), events=seen.append)
    notes = [event for event in seen if event.phase is Phase.NOTE]
    assert {note.step for note in notes} == {"files.deliver"}
    assert {(note.facts["host"], note.facts["total_files"]) for note in notes} == {(node.transport.host, 2)}
    assert {note.facts["total_bytes"] for note in notes} == {(2 << 20) + 1}
