"""One node's agent at work: its verbs, the nodes that come and go, idleness, and the end of the cluster."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import Any, Dict, List, Optional, Set

from .autostop import Autostop
from .config import AgentConfig
from .db import JobsDb
from .ending import end_cluster
from .engine import Engine
from .idleness import Idleness
from .lease import Lease
from .link import RankError, Ranks
from .lookout import Lookout
from .mark import MarkKeeper
from .processes import ancestors, own
from .protocol import PROTOCOL
from .rayhold import RayHold
from .rejoin import Rejoin
from .release import HeadRelease, WorkerRelease, begun_end
from .server import Server, Verb
from .verbs import HeadVerbs, Keeper, only_reading, worker_verbs

__all__ = ["Daemon"]

_log = logging.getLogger(__name__)
_TICK_S = 1.0
_GRACE_S = 3.0
_GONE_S = 6.0
_ASLEEP_S = 300.0
_ASKED_AGAIN_S = 0.2


async def _end_tasks(others: Set[asyncio.Task[Any]]) -> None:
    """Ends all tasks but these. Asked for once may not be enough: before Python 3.12 a cancellation is lost when what
    `wait_for` waits for comes at the same moment.
    """
    while True:
        left = asyncio.all_tasks() - others
        if not left:
            return
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=_ASKED_AGAIN_S)


class Daemon(Keeper):
    """One node's agent. ranks: the way to the nodes; neither a worker nor an agent that is asleep uses it.

    asleep: only reads, for asleep_s seconds after the last connection has gone.
    """

    def __init__(self, config: AgentConfig, ranks: Ranks, *, asleep: bool = False, asleep_s: float = _ASLEEP_S) -> None:
        self.config = config
        self.asleep = asleep
        self._asleep_s = asleep_s
        self._ranks = ranks
        self.started_at = time.time()
        self._idleness: Optional[Idleness] = None
        self.lease: Optional[Lease] = None
        self._leaving = asyncio.Event()
        self._engine: Optional[Engine] = None
        self.ray = RayHold(config, on_down=ranks.cut_off, on_start=ranks.go_on)
        self._lookout: Optional[Lookout] = None
        self._rejoin: Optional[Rejoin] = None
        self._present: Dict[int, Any] = {}
        self._stopped = os.path.join(config.sky, "stopped.json")
        self._was_up = False
        self._mark: Optional[MarkKeeper] = None
        self._failure: Optional[BaseException] = None

    async def run(self, ready: Any) -> None:
        """Until it is told to leave. ready: called once the socket accepts.

        Raises RuntimeError when a part of it has failed that it cannot do without; jobs go on.
        """
        others = asyncio.all_tasks()
        if os.path.exists(self._stopped) and not self.asleep and begun_end(self.config) is None:
            os.unlink(self._stopped)
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
        else:
            self.lease = Lease(self.config)
        server = Server(self.config.socket, hello, only_reading(verbs) if self.asleep else verbs)
        if self.lease is not None and self._engine is not None:
            server.on_contact = self.lease.renew
        await server.listen()
        ready()
        work: List[asyncio.Task[None]] = []
        if self._engine is not None:
            self._engine.load(asleep=self.asleep)
        if self.asleep:
            work = [asyncio.ensure_future(self._leave_when_alone(server))]
        else:
            self._mark = MarkKeeper(self.config, self._for_mark if self._engine is not None else None)
            work = [asyncio.ensure_future(self._mark.run()), asyncio.ensure_future(self.ray.run())]
        if self._engine is not None and not self.asleep:
            work += [asyncio.ensure_future(self._engine.ranks.run()), asyncio.ensure_future(self._tick())]
        if self.lease is not None:
            work.append(asyncio.ensure_future(self._release(server, self.lease)))
        for task in work:
            task.add_done_callback(self._miss)
        await self._leaving.wait()
        await server.close()
        if self._engine is not None:
            self._engine.stop()
        for follower in (self._lookout, self._rejoin):
            if follower is not None:
                follower.stop()
        await _end_tasks(others)
        if self._mark is not None:
            await self._mark.write()
        if self._engine is not None:
            self._engine.db.close()
        if self._failure is not None:
            raise RuntimeError("a part of the agent has failed") from self._failure

    def _miss(self, task: asyncio.Task[None]) -> None:
        """Called when a part has ended: one that failed takes the agent with it, which is begun anew."""
        if self._leaving.is_set():
            return
        failure = asyncio.CancelledError() if task.cancelled() else task.exception()
        if failure is not None:
            _log.error("the agent cannot go on: a part of it has failed", exc_info=failure)
            self._failure = failure
            self.leave()

    def _head(self) -> Dict[str, Verb]:
        db = JobsDb(os.path.join(self.config.sky, "jobs.db"))
        self._engine = Engine(self.config, db, self._ranks)
        self._engine.on_event = self.touch
        self._engine.ranks.on_change = self._nodes_changed
        self._lookout = Lookout(self.config, self._ranks, self._engine.collector.lose)
        self._rejoin = Rejoin(self._engine, lambda: self.engine.stopping)
        self._idleness = Idleness(self.config, db)
        self._idleness.load(self.config.autostop, asleep=self.asleep)
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
        if engine.ranks.up and not self._was_up and self._rejoin is not None:
            self._rejoin.ray_is_back()
        self._was_up = engine.ranks.up
        if self._lookout is not None:
            self._lookout.follow()
        self._greet_back({rank: node["node_id"] for rank, node in engine.ranks.nodes.items() if node["alive"]})
        engine.schedule()
        engine.tell(0)

    def _greet_back(self, present: Dict[int, Any]) -> None:
        if self.config.rank in present:
            self.ray.confirm()
        came = [rank for rank, node in present.items() if self._present.get(rank) != node]
        self._present = present
        for rank in came:
            if self.engine.jobs and self._rejoin is not None:
                self._rejoin.node_is_back(rank)

    async def _tick(self) -> None:
        while True:
            try:
                await asyncio.sleep(_TICK_S)
                if self._lookout is not None:
                    self._lookout.look(time.monotonic())
            except asyncio.CancelledError:
                raise
            except Exception:  # boundary: the timer goes on whatever happens
                _log.exception("in the daemon's timer")
                await asyncio.sleep(_TICK_S)

    # --- idleness and lease

    @property
    def idleness(self) -> Idleness:
        if self._idleness is None:
            raise RuntimeError("only the head has a timer")
        return self._idleness

    async def _release(self, server: Server, lease: Lease) -> None:
        if self._engine is None:
            await WorkerRelease(self.config, lease, self).run()
        else:
            await HeadRelease(self._engine, self.idleness, lease, self, ask=server.ask).run()

    def touch(self) -> None:
        engine, running = self.engine, self.engine.active_names()
        self.idleness.notice(running, engine.active - len(running))
        self.idleness.touch()
        self._touch_mark()

    def _touch_mark(self) -> None:
        if self._mark is not None:
            self._mark.touch()

    def _for_mark(self) -> Dict[str, Any]:
        """What this head's cluster.json says of its jobs and timer."""
        facts: Dict[str, Any] = {"job_ids": list(self.engine.jobs)}
        facts["autostop"] = self.autostop.to_json() if self.autostop else None
        if self.lease is not None and self.lease.lease_s is not None:
            facts["lease_s"] = self.lease.lease_s
        return facts

    @property
    def autostop(self) -> Optional[Autostop]:
        return self.idleness.setting

    def set_autostop(self, setting: Optional[Autostop]) -> None:
        self.idleness.set(setting)
        self._touch_mark()

    @property
    def idle_s(self) -> float:
        return 0.0 if self.engine.active else self.idleness.idle_s

    def set_lease(self, lease_s: Optional[float]) -> None:
        if self.lease is not None:
            self.lease.set(lease_s)
            self._touch_mark()

    # --- the end

    async def stop_all(self, *, cause: str = "", within_s: Optional[float] = None) -> List[Dict[str, Any]]:
        """Ends jobs, then Ray and all else on every node that can be reached; this node last, this process not at all.

        cause: of the jobs' end, where nobody cancelled them. within_s: their end is not waited for any longer.
        """
        engine = self.engine
        engine.stopping, engine.end_cause = True, cause
        try:
            await asyncio.wait_for(engine.cancel([], everything=True), within_s)
        except asyncio.TimeoutError:
            _log.warning("jobs do not end within %s s: they are ended with all else", within_s)
        except BaseException:
            engine.stopping = False  # it may be asked for again
            raise
        self.ray.pause()
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
        self.ray.pause()

        def work() -> Dict[str, Any]:
            result = end_cluster(self.config, grace_s=_GRACE_S, spare=ancestors(own(), os.getpid()))
            return {"ended": result.ended, "survivors": result.survivors}

        return await asyncio.get_event_loop().run_in_executor(None, work)

    def leave(self) -> None:
        self._leaving.set()
