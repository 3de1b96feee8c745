"""Which nodes are lost. Pure: what is seen of a node, and for how long, decides.

A node is lost when Ray has no such node any more and its host says nothing either. A host that answers while its Ray
is away is left time to bring Ray back: the ranks there live on meanwhile.
"""

from __future__ import annotations

from typing import Dict, NamedTuple, Optional, Set

from .portwatch import ANSWERS, REFUSED, SILENT

__all__ = ["LOST_S", "RETURN_S", "NodeSeen", "Presence", "is_lost"]

LOST_S = 4.0
RETURN_S = 60.0
_UNKNOWN_S = 12.0
_SETTLE_S = 20.0  # after Ray itself came up anew, when its nodes are still on their way


class NodeSeen(NamedTuple):
    """in_ray: Ray says that it is alive. host: what its port says (portwatch.py). host_s: for how long it has said so."""

    in_ray: bool
    host: str
    host_s: float


def is_lost(seen: NodeSeen, *, absent_s: float, ray_up_s: float, first_life: bool, lost_s: float) -> bool:
    """absent_s: for how long Ray, being up, has not had it. ray_up_s: for how long the connection to Ray has stood.

    first_life: that is the first connection, not one after Ray was begun anew. lost_s: how long a host may be silent.
    """
    if seen.in_ray:
        return False
    if seen.host == SILENT:
        return seen.host_s >= lost_s
    if seen.host in (ANSWERS, REFUSED):
        return absent_s >= max(RETURN_S, lost_s)
    grace_s = max(_UNKNOWN_S, lost_s)
    return absent_s >= grace_s and (first_life or ray_up_s >= grace_s + _SETTLE_S)


class Presence:
    """Keeps since when Ray has been without each node. lost_s: None for the usual."""

    def __init__(self, lost_s: Optional[float] = None) -> None:
        self._lost_s = LOST_S if lost_s is None else lost_s
        self._up_since: Optional[float] = None
        self._lives = 0
        self._absent_since: Dict[int, float] = {}
        self.lost: Set[int] = set()

    def observe(self, now: float, *, up: bool, nodes: Dict[int, NodeSeen]) -> Set[int]:
        """The ranks that are lost, given what is seen at `now`. While Ray is down nobody is lost anew."""
        if not up:
            self._up_since = None
            self._absent_since.clear()
            return self.lost
        if self._up_since is None:
            self._up_since = now
            self._lives += 1
        for rank, seen in nodes.items():
            if seen.in_ray:
                self._absent_since.pop(rank, None)
                self.lost.discard(rank)
            elif is_lost(
                seen,
                absent_s=now - self._absent_since.setdefault(rank, now),
                ray_up_s=now - self._up_since,
                first_life=self._lives == 1,
                lost_s=self._lost_s,
            ):
                self.lost.add(rank)
        return self.lost
