"""One node's agent at work: its verbs, the nodes that come and go, idleness, and the end of the cluster."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from typing import Any, Dict, List, Optional

from .autostop import Autostop, parse_autostop, stop_due_in
from .config import AgentConfig
from .db import JobsDb
from .ending import end_cluster
from .engine import Engine
from .link import RankError, Ranks
from .mark import MarkKeeper
from .processes import ancestors, own
from .protocol import PROTOCOL
from .server import Server, Verb
from .supervisor import write_file
from .verbs import HeadVerbs, Keeper, only_reading, worker_verbs

__all__ = ["Daemon"]

_log = logging.getLogger(__name__)
_NODE_LOST_S = 12.0
_TICK_S = 1.0
_START_GRACE_S = 900.0
_GRACE_S = 3.0
_GONE_S = 6.0
_ASLEEP_S = 300.0
_ACTIVE_KEY = "last_event"
_AUTOSTOP_KEY = "autostop"


class Daemon(Keeper):
    """One node's agent. ranks: the way to the nodes; neither a worker nor an agent that is asleep uses it.

    asleep: only reads, for asleep_s seconds after the last connection has gone.
    """

    def __init__(self, config: AgentConfig, ranks: Ranks, *, asleep: bool = False, asleep_s: float = _ASLEEP_S) -> None:
        self.config = config
        self.asleep = asleep
        self._asleep_s = asleep_s
        self._ranks = ranks
        self.started_at = self.last_event = time.time()
        self.autostop: Optional[Autostop] = None
        self._leaving = asyncio.Event()
        self._engine: Optional[Engine] = None
        self._gone_since: Dict[int, float] = {}
        self._stopped = os.path.join(config.sky, "stopped.json")
        self._was_up = self._ever_up = False
        self._keeping: Optional[asyncio.Task[None]] = None
        self._mark: Optional[MarkKeeper] = None

    async def run(self, ready: Any) -> None:
        """Until it is told to leave. ready: called once the socket accepts."""
        verbs = self._head() if self.config.role == "head" else worker_verbs(self.config, self)
        hello: Dict[str, Any] = {
            "protocol": PROTOCOL,
            "bundle": self.config.bundle,
            "cluster": self.config.cluster,
            "cluster_id": self.config.cluster_id,
            "role": self.config.role,
        }
        if self.asleep:
            hello["asleep"] = True
        server = Server(self.config.socket, hello, only_reading(verbs) if self.asleep else verbs)
        await server.listen()
        ready()
        work: List[asyncio.Task[None]] = []
        if self._engine is not None:
            self._engine.load(asleep=self.asleep)
        if self.asleep:
            work = [asyncio.ensure_future(self._leave_when_alone(server))]
        else:
            self._mark = MarkKeeper(self.config, self._for_mark if self._engine is not None else None)
            work = [asyncio.ensure_future(self._mark.run())]
        if self._engine is not None and not self.asleep:
            work += [asyncio.ensure_future(self._engine.ranks.run()), asyncio.ensure_future(self._tick())]
        await self._leaving.wait()
        await server.close()
        if self._engine is not None:
            self._engine.stop()
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
        if self._mark is not None:
            await self._mark.write()
        if self._engine is not None:
            self._engine.db.close()

    def _head(self) -> Dict[str, Verb]:
        if os.path.exists(self._stopped) and not self.asleep:
            os.unlink(self._stopped)
        db = JobsDb(os.path.join(self.config.sky, "jobs.db"))
        self._engine = Engine(self.config, db, self._ranks)
        self._engine.on_event = self.touch
        self._engine.ranks.on_change = self._nodes_changed
        kept = db.get(_AUTOSTOP_KEY)
        if kept is not None and kept.get("cluster_id") == self.config.cluster_id:
            self.autostop = parse_autostop(kept["setting"])
        elif not self.asleep:
            self.set_autostop(parse_autostop(self.config.autostop))
        return HeadVerbs(self._engine, self).table()

    @property
    def engine(self) -> Engine:
        if self._engine is None:
            raise RuntimeError("only the head has an engine")
        return self._engine

    async def _leave_when_alone(self, server: Server) -> None:
        alone_since = time.monotonic()
        while time.monotonic() - alone_since < self._asleep_s:
            await asyncio.sleep(min(_TICK_S, self._asleep_s))
            if server.connected:
                alone_since = time.monotonic()
        self.leave()

    # --- nodes that come and go

    def _nodes_changed(self) -> None:
        engine = self.engine
        if engine.ranks.up and not self._was_up:
            self._keeping = asyncio.ensure_future(self._keep_reservations())
        if engine.ranks.up and not self._ever_up:
            self._ever_up = True
            self.touch()
        self._was_up = engine.ranks.up
        engine.schedule()
        engine.tell(0)

    async def _keep_reservations(self) -> None:
        """With a new connection: what Ray holds for jobs that ended meanwhile is given back."""
        try:
            await self.engine.ranks.keep(self.engine.active_names())
        except RankError as exc:
            _log.warning("reservations of jobs that have ended may be left: %s", exc)

    async def _tick(self) -> None:
        while True:
            try:
                await asyncio.sleep(self._pause())
                self._lose_nodes(time.monotonic())
                if not self._ever_up and time.time() - self.started_at < _START_GRACE_S:
                    self.touch()  # a launch is at work: its cluster is not idle before it stands
                due = stop_due_in(self.autostop, active_jobs=self.engine.active, last_event=self.last_event, now=time.time())
                if due == 0 and not self.engine.stopping:
                    await self._autostop()
            except asyncio.CancelledError:
                raise
            except Exception:  # boundary: the timer goes on whatever happens
                _log.exception("in the daemon's timer")
                await asyncio.sleep(_TICK_S)

    def _pause(self) -> float:
        due = stop_due_in(self.autostop, active_jobs=self.engine.active, last_event=self.last_event, now=time.time())
        return _TICK_S if due is None else min(max(due, 0.02), _TICK_S)

    def _lose_nodes(self, now: float) -> None:
        """A node that Ray says is gone for some seconds is lost, and with it its ranks."""
        ranks = self.engine.ranks
        if not ranks.up or not ranks.nodes:
            self._gone_since.clear()
            return
        alive = set(ranks.alive())
        for node in self.config.nodes:
            if node.rank in alive:
                self._gone_since.pop(node.rank, None)
            elif now - self._gone_since.setdefault(node.rank, now) > _NODE_LOST_S:
                self.engine.collector.lose(node.rank, f"node {node.host} is gone")

    # --- idleness

    def touch(self) -> None:
        self.last_event = time.time()
        if self._mark is not None:
            self._mark.touch()

    def _for_mark(self) -> Dict[str, Any]:
        """What this head's cluster.json says of its jobs and timer."""
        return {"job_ids": list(self.engine.jobs), "autostop": self.autostop.to_json() if self.autostop else None}

    def set_autostop(self, setting: Optional[Autostop]) -> None:
        self.autostop = setting
        self.touch()
        value = {"cluster_id": self.config.cluster_id, "setting": setting.to_json() if setting else None}
        self.engine.db.put(_AUTOSTOP_KEY, value)

    async def _autostop(self) -> None:
        """Nothing is ended before it is written down why, so that no crash on the way leaves hosts that nobody frees."""
        setting = self.autostop
        _log.info("idle for long enough: stopping")
        record = {"at": time.time(), "reason": "autostop", "down": bool(setting and setting.down)}
        record.update(cluster_id=self.config.cluster_id, stopping=True)
        write_file(self._stopped, json.dumps(record).encode())
        await self.stop_all()
        try:
            write_file(self._stopped, json.dumps({**record, "stopping": False}).encode())
        except OSError as exc:
            _log.error("the end is not written down as complete: %s", exc)
        self.leave()

    # --- the end

    async def stop_all(self) -> List[Dict[str, Any]]:
        """Ends jobs, then Ray and all else on every node that can be reached; this node last, this process not at all."""
        engine = self.engine
        engine.stopping = True
        try:
            await engine.cancel([], everything=True)
        except BaseException:
            engine.stopping = False  # it may be asked for again
            raise
        here = self.config.me.ip
        others = [node.rank for node in self.config.nodes if node.rank != self.config.rank and node.ip != here]
        asked = list(await asyncio.gather(*(self._end_other(rank) for rank in others)))
        await self._wait_gone({entry["rank"]: entry for entry in asked if entry["error"] is None})
        mine = await self.stop_here()
        same = [node.rank for node in self.config.nodes if node.rank != self.config.rank and node.ip == here]
        results = [{"rank": self.config.rank, **mine, "error": None}, *asked]
        results += [{"rank": rank, "ended": [], "survivors": [], "error": None} for rank in same]
        return sorted(results, key=lambda entry: int(entry["rank"]))

    async def _end_other(self, rank: int) -> Dict[str, Any]:
        try:
            pids = await self.engine.ranks.call(rank, "end_node", 0.1, _GRACE_S, timeout_s=10.0)
        except (RankError, asyncio.TimeoutError) as exc:
            return {"rank": rank, "ended": [], "survivors": [], "error": str(exc) or type(exc).__name__}
        return {"rank": rank, "ended": pids, "survivors": [], "error": None}

    async def _wait_gone(self, asked: Dict[int, Dict[str, Any]]) -> None:
        """Until Ray says that those nodes are gone; one that is not in time has an error."""
        until = time.monotonic() + _GONE_S
        while time.monotonic() < until and set(asked) & set(self.engine.ranks.alive()):
            await asyncio.sleep(0.05)
        for rank in set(asked) & set(self.engine.ranks.alive()):
            asked[rank]["error"] = "Ray still sees the node"

    async def stop_here(self) -> Dict[str, Any]:
        def work() -> Dict[str, Any]:
            result = end_cluster(self.config, grace_s=_GRACE_S, spare=ancestors(own(), os.getpid()))
            return {"ended": result.ended, "survivors": result.survivors}

        return await asyncio.get_event_loop().run_in_executor(None, work)

    def leave(self) -> None:
        self._leaving.set()
