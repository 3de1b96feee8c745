"""Brings what ranks write and how they end to the head: one waiting call to each node that has something to watch."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Set, Tuple

from .config import AgentConfig
from .link import RankError, Ranks
from .merged import MergedLog
from .node import Key, to_key
from .phases import stream_of

__all__ = ["Collector"]

_log = logging.getLogger(__name__)
_POLL_S = 20.0
_RETRY_S = 0.2
_MUCH = 1 << 16  # bytes that are not written in the event loop: it has others to serve meanwhile


class _Rank(NamedTuple):
    log_dir: str
    ended: Callable[[Mapping[str, Any]], None]
    failing: Callable[[Mapping[str, Any]], None]


class Collector:
    """Merged logs of the jobs that run, and the ends of their ranks.

    on_bytes: called with a job's task id when its merged log has grown.
    """

    def __init__(self, config: AgentConfig, ranks: Ranks) -> None:
        self._config = config
        self._ranks = ranks
        self._watched: Dict[int, Dict[Key, _Rank]] = {}
        self._unsent: Dict[int, Set[Key]] = {}
        self._tasks: Dict[int, asyncio.Task[None]] = {}
        self._wake: Dict[int, asyncio.Event] = {}
        self._logs: Dict[str, MergedLog] = {}
        self._announcing: Set[asyncio.Task[None]] = set()
        self._moved: Dict[str, float] = {}
        self._writers = ThreadPoolExecutor(max_workers=4)
        self._stopped = False
        self.on_bytes: Callable[[str], None] = lambda task_id: None

    def open(self, task_id: str, log_dir: str) -> None:
        """Before the first rank of a job is added."""
        if task_id not in self._logs:
            self._logs[task_id] = MergedLog(os.path.join(self._config.logs, log_dir))

    def moved_at(self, task_id: str) -> float:
        """When the job's log has grown last, by the monotonic clock."""
        return self._moved.get(task_id, 0.0)

    def close(self, task_id: str) -> None:
        for watched in self._watched.values():
            for key in [key for key in watched if key[0] == task_id]:
                del watched[key]
        self._moved.pop(task_id, None)
        log = self._logs.pop(task_id, None)
        if log is not None:
            log.close()

    def add(
        self,
        node: int,
        key: Key,
        log_dir: str,
        ended: Callable[[Mapping[str, Any]], None],
        failing: Callable[[Mapping[str, Any]], None] = lambda record: None,
    ) -> None:
        """ended: told once, when all that the rank printed is written down. failing: told of a failure before that."""
        watched = self._watched.setdefault(node, {})
        for other in [other for other in watched if _files(other) == _files(key)]:
            del watched[other]  # of an attempt before, which wrote to the same file
        watched[key] = _Rank(log_dir, ended, failing)
        self._unsent.setdefault(node, set()).add(key)
        wake = self._wake.setdefault(node, asyncio.Event())
        wake.set()
        if node not in self._tasks:
            self._tasks[node] = asyncio.ensure_future(self._follow(node))
        else:
            task = asyncio.ensure_future(self._announce(node))
            self._announcing.add(task)
            task.add_done_callback(self._announcing.discard)

    def lose(self, node: int, why: str) -> None:
        """The node is gone: its ranks are lost."""
        for key, rank in list(self._watched.get(node, {}).items()):
            self._watched[node].pop(key, None)
            rank.ended({"lost": why})

    def stop(self) -> None:
        """What comes from now on is neither written nor told: the next agent gets it again."""
        self._stopped = True
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()
        self._writers.shutdown()  # what is being written is whole when another agent goes on
        for log in self._logs.values():
            log.close()

    async def _announce(self, node: int) -> None:
        """Tells the node which ranks to look after; a poll that waits there sees them at once."""
        for key in list(self._unsent.get(node, ())):
            rank = self._watched.get(node, {}).get(key)
            self._unsent[node].discard(key)
            if rank is None:
                continue
            try:
                await self._ranks.call(node, "watch", key, rank.log_dir, self._source(key), timeout_s=30.0)
            except (RankError, asyncio.TimeoutError):
                self._unsent[node].add(key)
                return

    def _source(self, key: Key) -> int:
        log = self._logs.get(key[0])
        return log.source.get((stream_of(key[1]), key[2]), 0) if log is not None else 0

    async def _follow(self, node: int) -> None:
        """For as long as the agent lives. A node that does not answer is asked again, from where its logs are known."""
        done: List[Key] = []
        while not self._stopped:
            watched = self._watched.setdefault(node, {})
            if not watched and not done:
                self._wake[node].clear()
                await self._wake[node].wait()
                continue
            try:
                await self._announce(node)
                taken = [(key, self._source(key)) for key in watched]
                reply = await self._ranks.call(node, "poll", taken, done, _POLL_S, timeout_s=_POLL_S + 10.0)
                if not self._stopped:  # a cancellation can be lost while an answer comes
                    done = await self._take(node, reply)
            except (RankError, asyncio.TimeoutError) as exc:
                if not isinstance(exc, RankError) or exc.kind not in ("link", "node"):
                    _log.warning("node %d cannot be followed now: %s", node, exc)
                await asyncio.sleep(_RETRY_S)
                self._unsent.setdefault(node, set()).update(watched)
            except Exception:  # boundary: a full disk, or whatever it is, passes; the logs are still on the nodes
                _log.exception("what node %d wrote could not be written down; trying again", node)
                await asyncio.sleep(1.0)
                self._unsent.setdefault(node, set()).update(watched)

    async def _take(self, node: int, reply: Any) -> List[Key]:
        """Writes what came; the ends that came with it are told afterwards."""
        pieces, ends, unknown, failing = reply
        watched = self._watched[node]
        for key, record in ((to_key(key), record) for key, record in failing):
            if key in watched:
                watched[key].failing(record)
        label = self._config.nodes[node].label
        work = []
        for key, piece in ((to_key(key), piece) for key, piece in pieces):
            log = self._logs.get(key[0])
            if log is not None and key in watched:
                work.append((log, key, piece))

        def write() -> None:
            for log, key, (offset, data, goes_on) in work:
                log.append(stream_of(key[1]), label, key[2], offset, data, goes_on=goes_on)

        try:
            if sum(len(piece[1]) for _, _, piece in work) < _MUCH:
                write()
            else:
                await asyncio.get_event_loop().run_in_executor(self._writers, write)
        finally:
            for task_id in {key[0] for _, key, _ in work} & set(self._logs):
                self._moved[task_id] = time.monotonic()
                self.on_bytes(task_id)
        done = [(to_key(key), record) for key, record in ends]
        for key, record in done:
            rank = watched.pop(key, None)
            if rank is not None:
                rank.ended(record)
        self._unsent.setdefault(node, set()).update(set(map(to_key, unknown)) & set(watched))
        return [key for key, _ in done]


def _files(key: Key) -> Tuple[str, str, int]:
    """Equal for ranks that write to one file."""
    return (key[0], stream_of(key[1]), key[2])
