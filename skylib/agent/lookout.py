"""The head's look at its nodes: what Ray says of each, and whether its host still answers."""

from __future__ import annotations

import logging
import time
from typing import Callable, Dict

from .config import AgentConfig
from .link import Ranks
from .portwatch import REFUSED, SILENT, UNKNOWN, PortWatch
from .presence import NodeSeen, Presence

__all__ = ["Lookout"]

_log = logging.getLogger(__name__)


class Lookout:
    """lose: called with a rank and the reason, again and again while its node is lost.

    Keeps `ranks.away` (nodes whose raylet does not answer just now) and `ranks.lost`.
    """

    def __init__(self, config: AgentConfig, ranks: Ranks, lose: Callable[[int, str], None]) -> None:
        self._config = config
        self._ranks = ranks
        self._lose = lose
        self._presence = Presence(config.node_lost_s)
        self._watches: Dict[int, PortWatch] = {}

    def follow(self) -> None:
        """The table of nodes has changed: raylets are watched where they are now."""
        for rank, node in self._ranks.nodes.items():
            port = int(node.get("port") or 0)
            known = self._watches.get(rank)
            if not port or not node["alive"] or (known is not None and (known.ip, known.port) == (node["ip"], port)):
                continue
            if known is not None:
                known.stop()
            self._watches[rank] = PortWatch(str(node["ip"]), port, self._answers)
            self._watches[rank].begin()

    def stop(self) -> None:
        for watch in self._watches.values():
            watch.stop()

    def look(self, now: float) -> None:
        """To be called about once a second."""
        ranks = self._ranks
        known = {rank for rank, node in ranks.nodes.items() if node["alive"]}
        seen = {}
        for node in self._config.nodes:
            watch = self._watches.get(node.rank)
            host, since = (watch.state, watch.since) if watch is not None else (UNKNOWN, now)
            seen[node.rank] = NodeSeen(node.rank in known, host, now - since)
        lost = self._presence.observe(now, up=ranks.up and bool(ranks.nodes), nodes=seen)
        for rank in lost - ranks.lost:
            _log.error("node %d (%s) is lost", rank, self._config.nodes[rank].host)
        for rank in ranks.lost - lost:
            _log.info("node %d (%s) is back", rank, self._config.nodes[rank].host)
        ranks.set_lost(set(lost))
        for rank in lost:
            self._lose(rank, f"node {self._config.nodes[rank].host} is gone")

    def _answers(self) -> None:
        away = {rank for rank, watch in self._watches.items() if watch.state in (REFUSED, SILENT)}
        if away != self._ranks.away:
            self._ranks.away = away
            self._ranks.on_change()
        self.look(time.monotonic())
