"""From what the agent's `logs` sends to lines: pure."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from skylib.models.job import LogLine

__all__ = ["Piece", "piece_of"]


@attrs.frozen(kw_only=True)
class Piece:
    """Lines of one rank that were read together.

    offset, next_offset: in the merged log. prefix: bytes before each line there. body: the lines, joined by newlines.
    partial: the last of them goes on in the rank's next piece.
    """

    offset: int
    next_offset: int
    rank: int
    node: str
    stream: str
    time: float
    prefix: int
    partial: bool
    body: bytes

    def lines(self) -> Iterator[LogLine]:
        """One by one, made when they are asked for."""
        parts = self.body.split(b"\n")
        last = len(parts) - 1
        place = self.offset
        for number, raw in enumerate(parts):
            start, place = place, place + self.prefix + len(raw) + 1
            yield LogLine(
                rank=self.rank,
                node=self.node,
                stream=self.stream,
                text=raw.decode("utf-8", "replace"),
                offset=start,
                next_offset=place,
                time=self.time,
                raw=raw,
                partial=self.partial and number == last,
            )

    def merged(self) -> bytes:
        """As the merged log has them."""
        label = f"({self.node}, rank={self.rank}) " if self.stream == "run" else f"(setup {self.node}, rank={self.rank}) "
        prefix = label.encode()[: self.prefix].ljust(self.prefix)
        return prefix + self.body.replace(b"\n", b"\n" + prefix) + b"\n"


def piece_of(item: Mapping[str, Any]) -> Piece:
    """One item of the agent's `logs`, of one line or many. Raises KeyError or ValueError for what is none."""
    body = base64.b64decode(item["b64"]) if "b64" in item else str(item["text"]).encode()
    prefix = item.get("prefix")
    if prefix is None:  # an item of one line: what is left of its room
        prefix = item["next_offset"] - item["offset"] - len(body) - 1
    return Piece(
        offset=item["offset"],
        next_offset=item["next_offset"],
        rank=item["rank"],
        node=item["node"],
        stream=item["stream"],
        time=item["time"],
        prefix=int(prefix),
        partial=bool(item.get("partial")),
        body=body,
    )
