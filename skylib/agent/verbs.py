"""The protocol's verbs: arguments in, answers out. protocol.py says what each one means."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any, Awaitable, Callable, Dict, List, Mapping, Optional

from .autostop import Autostop, parse_autostop
from .config import AgentConfig
from .doors import try_all
from .engine import Engine
from .lease import Lease
from .link import RankError
from .rayhold import RayHold
from .refused import Refused
from .server import Send, Verb
from .streams import LogVerbs

__all__ = ["HeadVerbs", "Keeper", "only_reading", "worker_verbs"]

_HELLO_S = 10.0
_AGAIN_S = 0.1
_READING = frozenset({"info", "queue", "job", "wait", "logs", "log_files"})


class Keeper:
    """What verbs need of the daemon. `touch` restarts the idle timer; `stop_all` ends the cluster; `leave` this process."""

    asleep: bool
    started_at: float
    lease: Optional[Lease]
    ray: RayHold

    @property
    def autostop(self) -> Optional[Autostop]:
        raise NotImplementedError

    @property
    def idle_s(self) -> float:
        raise NotImplementedError

    def touch(self) -> None:
        raise NotImplementedError

    def set_autostop(self, setting: Any) -> None:
        raise NotImplementedError

    def set_lease(self, lease_s: Optional[float]) -> None:
        raise NotImplementedError

    async def stop_all(self) -> List[Dict[str, Any]]:
        raise NotImplementedError

    async def stop_here(self) -> Dict[str, Any]:
        raise NotImplementedError

    def leave(self) -> None:
        raise NotImplementedError


class HeadVerbs:
    """The head's verbs."""

    def __init__(self, engine: Engine, keeper: Keeper) -> None:
        self._engine = engine
        self._keeper = keeper

    def table(self) -> Dict[str, Verb]:
        logs = LogVerbs(self._engine, lambda: self._keeper.asleep)
        return {
            "ready": self.ready,
            "info": self.info,
            "submit": self.submit,
            "submit_many": self.submit_many,
            "queue": self.queue,
            "job": self.job,
            "wait": self.wait,
            "cancel": self.cancel,
            "logs": logs.logs,
            "log_files": logs.log_files,
            "autostop": self.autostop,
            "lease": self.lease,
            "ping": _ping,
            "setup_state": self.setup_state,
            "stop_nodes": self.stop_nodes,
            "local_stop": _local_stop(self._keeper),
        }

    async def ready(self, args: Mapping[str, Any], send: Send) -> Dict[str, Any]:
        """Ray itself must say that every node is alive, and every standing actor must have answered."""
        config, ranks = self._engine.config, self._engine.ranks
        began = time.monotonic()
        until = began + float(args.get("timeout_s") or 60)
        changed = self._engine.listen(0)
        try:
            while True:
                good = set(ranks.alive()) & set(ranks.standing)
                missing = [node.rank for node in config.nodes if node.rank not in good]
                silent = await self._silent(until - time.monotonic()) if ranks.up and not missing else []
                if ranks.up and not missing and not silent:
                    break
                missing += silent
                left = until - time.monotonic()
                if left <= 0:
                    detail = ranks.detail or ("Ray answers" if ranks.up else "Ray does not answer")
                    seen = f"{detail}; alive: {ranks.alive()}, standing actors: {sorted(ranks.standing)}"
                    raise Refused("not_ready", "not all nodes are ready", missing_ranks=missing, detail=seen)
                changed.clear()
                await _wait(changed, min(left, _AGAIN_S) if silent else left)
        finally:
            self._engine.unlisten(0, changed)
        stood = time.monotonic()
        tried = {"doors": await self._doors(), "doors_s": round(time.monotonic() - stood, 3)} if args.get("doors") else {}
        return {
            **tried,
            "nodes": [ranks.nodes[node.rank] for node in config.nodes],
            "ray_version": ranks.version,
            "gcs_address": f"{config.head_ip}:{config.ray_port}",
            "seconds": round(stood - began, 3),
        }

    async def _silent(self, left_s: float) -> List[int]:
        """Nodes whose standing actor does not answer now: Ray hears of a node's end some seconds late."""
        config, ranks = self._engine.config, self._engine.ranks

        async def answers(rank: int) -> bool:
            try:
                await ranks.call(rank, "hello", timeout_s=min(max(left_s, 0.1), _HELLO_S))
                return True
            except (RankError, asyncio.TimeoutError):
                return False

        found = await asyncio.gather(*(answers(node.rank) for node in config.nodes))
        return [node.rank for node, there in zip(config.nodes, found) if not there]

    async def _doors(self) -> List[Dict[str, Any]]:
        try:
            return await try_all(self._engine.config, self._engine.ranks)
        except (RankError, asyncio.TimeoutError) as exc:
            seen = f"its doors could not be tried: {exc or type(exc).__name__}"
            raise Refused("not_ready", "a node was lost", missing_ranks=[], detail=seen) from exc

    async def info(self, args: Mapping[str, Any], send: Send) -> Dict[str, Any]:
        engine, keeper = self._engine, self._keeper
        now = time.time()
        return {
            **_who(engine.config, keeper, now),
            "ray_ok": engine.ranks.up,
            "alive_ranks": engine.ranks.alive(),
            "autostop": keeper.autostop.to_json() if keeper.autostop else None,
            "idle_s": round(keeper.idle_s, 3),
            **_lease(keeper.lease),
            "stopping": engine.stopping,
            "active_jobs": engine.active,
        }

    async def submit(self, args: Mapping[str, Any], send: Send) -> Dict[str, Any]:
        return self._engine.submit([args["job"]], time.time())[0]

    async def submit_many(self, args: Mapping[str, Any], send: Send) -> Dict[str, Any]:
        jobs = self._engine.submit(args["jobs"], time.time())
        return {"jobs": jobs, **self._engine.columns([job["job_id"] for job in jobs])}

    async def queue(self, args: Mapping[str, Any], send: Send) -> Dict[str, Any]:
        everything = bool(args.get("all", True))
        if args.get("form") == "columns":
            return self._engine.columns(None, everything=everything)
        return {"jobs": self._engine.queue(everything=everything)}

    async def job(self, args: Mapping[str, Any], send: Send) -> Dict[str, Any]:
        return {"job": self._engine.show(self._engine.find(args.get("job_id")))}

    async def wait(self, args: Mapping[str, Any], send: Send) -> Dict[str, Any]:
        job = self._engine.find(args.get("job_id"))
        timeout_s = args.get("timeout_s")
        until = None if timeout_s is None else time.monotonic() + float(timeout_s)
        changed = self._engine.listen(job.job_id)
        try:
            while not job.is_terminal and not self._keeper.asleep:
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    break
                changed.clear()
                await _wait(changed, left)
        finally:
            self._engine.unlisten(job.job_id, changed)
        return {"job": self._engine.show(job)}

    async def cancel(self, args: Mapping[str, Any], send: Send) -> Dict[str, Any]:
        job_ids = [int(job_id) for job_id in args.get("job_ids") or []]
        return {"cancelled": await self._engine.cancel(job_ids, everything=bool(args.get("all")))}

    async def autostop(self, args: Mapping[str, Any], send: Send) -> Dict[str, Any]:
        self._keeper.set_autostop(parse_autostop(args))
        return {}

    async def lease(self, args: Mapping[str, Any], send: Send) -> Dict[str, Any]:
        given = args["lease_s"]
        self._keeper.set_lease(None if given is None else float(given))
        return _lease(self._keeper.lease)

    async def setup_state(self, args: Mapping[str, Any], send: Send) -> Dict[str, Any]:
        marker = str(args["hash"])
        ranks = self._engine.ranks

        async def done(rank: int) -> bool:
            try:
                return bool(await ranks.call(rank, "setup_done", marker, "", timeout_s=10.0))
            except (RankError, asyncio.TimeoutError):
                return False

        alive = ranks.alive() if marker else []
        answers = await asyncio.gather(*(done(rank) for rank in alive))
        return {"done_ranks": [rank for rank, answer in zip(alive, answers) if answer]}

    async def stop_nodes(self, args: Mapping[str, Any], send: Send) -> Dict[str, Any]:
        result = await self._keeper.stop_all()
        asyncio.get_event_loop().call_later(0.05, self._keeper.leave)
        return {"ranks": result}


def worker_verbs(config: AgentConfig, keeper: Keeper) -> Dict[str, Verb]:
    """A worker's verbs, by name: who it is, and its end."""

    async def info(args: Mapping[str, Any], send: Send) -> Dict[str, Any]:
        return {
            **_who(config, keeper, time.time()),
            "ray_ok": False,
            "alive_ranks": [],
            "autostop": None,
            "idle_s": 0.0,
            "stopping": False,
            "active_jobs": 0,
        }

    return {"info": info, "local_stop": _local_stop(keeper)}


def only_reading(verbs: Mapping[str, Verb]) -> Dict[str, Verb]:
    """The verbs of an agent that is asleep: those that change something are refused, kind "asleep"."""

    async def refuse(args: Mapping[str, Any], send: Send) -> Dict[str, Any]:
        raise Refused("asleep", "the cluster is stopped; its agent only reads")

    return {name: verb if name in _READING else refuse for name, verb in verbs.items()}


def _who(config: AgentConfig, keeper: Keeper, now: float) -> Dict[str, Any]:
    return {
        "cluster": config.cluster,
        "cluster_id": config.cluster_id,
        "role": config.role,
        "pid": os.getpid(),
        "asleep": keeper.asleep,
        "started_at": keeper.started_at,
        "now": now,
        "bundle": config.bundle,
        "ray": keeper.ray.to_json(),
    }


def _lease(lease: Optional[Lease]) -> Dict[str, Any]:
    if lease is None or lease.left_s is None:
        return {"lease_s": None, "lease_left_s": None}
    return {"lease_s": lease.lease_s, "lease_left_s": round(lease.left_s, 3)}


async def _ping(args: Mapping[str, Any], send: Send) -> Dict[str, Any]:
    return {}


def _local_stop(keeper: Keeper) -> Callable[[Mapping[str, Any], Send], Awaitable[Dict[str, Any]]]:
    async def local_stop(args: Mapping[str, Any], send: Send) -> Dict[str, Any]:
        result = await keeper.stop_here()
        asyncio.get_event_loop().call_later(0.05, keeper.leave)
        return result

    return local_stop


async def _wait(event: asyncio.Event, timeout_s: Optional[float]) -> None:
    try:
        await asyncio.wait_for(event.wait(), timeout_s)
    except asyncio.TimeoutError:
        pass
