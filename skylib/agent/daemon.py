"""The agent as a process: one for each node, found by its socket, kept single by a lock on a file."""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import signal
import sys
import time
from typing import Any, Dict, List, Mapping, Optional, Set, Tuple

from .autostop import Autostop, parse_autostop, stop_due_in
from .config import AgentConfig, load_config
from .db import JobsDb
from .ending import end_cluster
from .engine import Engine
from .link import RankError, Ranks, RayLink
from .mark import MarkKeeper
from .processes import ancestors, is_alive, own, read
from .protocol import PROTOCOL, TOKEN_VARIABLE
from .server import Server, Verb
from .supervisor import write_file
from .verbs import HeadVerbs, Keeper, only_reading, worker_verbs

__all__ = ["Daemon", "main"]

_log = logging.getLogger(__name__)
_NODE_LOST_S = 12.0
_TICK_S = 1.0
_START_GRACE_S = 900.0
_GRACE_S = 3.0
_GONE_S = 6.0
_START_S = 20.0
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


# --- becoming a daemon


def _lock(config: AgentConfig) -> Tuple[int, Optional[Dict[str, Any]]]:
    """(handle, None) with the lock held, or (-1, who holds it)."""
    handle = os.open(os.path.join(config.sky, "agent.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return handle, None
    except OSError:
        text = os.pread(handle, 4096, 0).decode()
        os.close(handle)
        return -1, json.loads(text) if text else {}


def _standing(holder: Mapping[str, Any], config: AgentConfig, *, asleep: bool) -> Tuple[bool, bool]:
    """(it serves as well as we would, it makes room for us) of the agent that holds the lock.

    An agent of another bundle or cluster makes room, as does one that is asleep for one that is not; never the reverse.
    """
    ours = holder.get("cluster_id") == config.cluster_id
    same = ours and holder.get("bundle") == config.bundle
    if holder.get("asleep"):
        return same and asleep, not (same and asleep)
    return (ours if asleep else same), not asleep and not same


def _take_over(config: AgentConfig, *, asleep: bool) -> int:
    """The lock's handle; -1 when an agent that will do runs already."""
    until = time.monotonic() + _START_S
    asked: Set[int] = set()
    while True:
        handle, holder = _lock(config)
        if holder is None:
            return handle
        serves, makes_room = _standing(holder, config, asleep=asleep)
        pid, start = int(holder.get("pid") or 0), int(holder.get("start") or 0)
        alive = pid > 0 and is_alive(pid, start)  # else a new one has not written itself down yet
        if serves and holder.get("listens") and alive:
            return -1
        if makes_room and alive and pid not in asked:
            asked.add(pid)
            os.kill(pid, signal.SIGTERM)
        if time.monotonic() > until:
            raise TimeoutError(f"another agent holds {config.sky}/agent.lock: {holder}")
        time.sleep(0.02)


def _write_holder(handle: int, config: AgentConfig, *, listens: bool, asleep: bool) -> None:
    me = read(os.getpid())
    holder = {
        "pid": os.getpid(),
        "start": me.start if me else 0,
        "bundle": config.bundle,
        "cluster_id": config.cluster_id,
        "listens": listens,
        "asleep": asleep,
    }
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps(holder).encode(), 0)


def _detach(config: AgentConfig, report: int) -> None:
    """A session of its own, nobody's child, stdio to the log; `report` stays open."""
    os.setsid()
    if os.fork():
        os._exit(0)
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDONLY)
    log = os.open(config.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(null)
    os.close(log)


def _serve(config: AgentConfig, report: int, *, asleep: bool) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        lock = _take_over(config, asleep=asleep)
        if lock < 0:
            os.write(report, b"already")
            return 0
        _write_holder(lock, config, listens=False, asleep=asleep)

        def ready() -> None:
            _write_holder(lock, config, listens=True, asleep=asleep)
            os.write(report, b"ready")
            os.close(report)

        async def run() -> None:
            daemon = Daemon(config, Ranks() if asleep else RayLink(config), asleep=asleep)
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_event_loop().add_signal_handler(number, daemon.leave)
            await daemon.run(ready)

        asyncio.run(run())
        return 0
    except BaseException as exc:
        _log.exception("the agent failed")
        try:
            os.write(report, f"failed: {exc!r}".encode())
        except OSError:
            pass
        return 1


def main(config_path: str, *, asleep: bool = False) -> int:
    """Returns 0 as soon as the agent's socket accepts (also when it did before), 1 with the reason on stderr otherwise.

    asleep: one that only reads; see protocol.py.
    """
    config = load_config(config_path)
    if os.environ.get(TOKEN_VARIABLE) != config.cluster_id:
        environ = {**os.environ, TOKEN_VARIABLE: config.cluster_id}
        os.execve(sys.executable, [sys.executable, *sys.argv], environ)
    os.makedirs(config.sky, mode=0o700, exist_ok=True)
    answer, report = os.pipe()
    first = os.fork()
    if first == 0:
        os.close(answer)
        _detach(config, report)
        os._exit(_serve(config, report, asleep=asleep))
    os.close(report)
    os.waitpid(first, 0)
    said = b""
    while True:
        data = os.read(answer, 4096)
        said += data
        if not data or said in (b"ready", b"already"):
            break
    if said in (b"ready", b"already"):
        return 0
    sys.stderr.write(f"the agent did not start ({said.decode() or 'it said nothing'}); see {config.log_file}\n")
    return 1
