"""How far a transfer is, as notes of the step that runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

import attrs

from skylib.events import Event, EventSink, Phase

__all__ = ["Amount", "Meter"]

_NOTE_S = 0.2


@attrs.define(kw_only=True)
class Amount:
    """Files and bytes: so far, or in all."""

    files: int = 0
    bytes: int = 0


@attrs.define(kw_only=True)
class Meter:
    """What one node is given. host: the node. total: what it lacks. packed: how far the archive for it is.

    A note has host, files, bytes, total_files, total_bytes and rate_bytes_s (since the first byte), and comes at most five
    times a second. Bytes are those of the archive, whose headers are not in the total, so never more than that are told.
    """

    events: EventSink
    step: str
    host: str
    total: Amount
    packed: Amount
    clock: Callable[[], float] = time.monotonic

    def through(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        """The blocks, as they come; each counts as sent when the next one is asked for."""
        began = told = self.clock()
        sent = 0
        for block in blocks:
            yield block
            sent += len(block)
            now = self.clock()
            if now - told >= _NOTE_S:
                told = now
                self._tell(sent, now - began)

    def _tell(self, sent: int, seconds: float) -> None:
        facts = {
            "host": self.host,
            "files": self.packed.files,
            "bytes": min(sent, self.total.bytes),
            "total_files": self.total.files,
            "total_bytes": self.total.bytes,
            "rate_bytes_s": round(sent / seconds),
        }
        self.events(Event(step=self.step, phase=Phase.NOTE, at=time.time(), facts=facts))
