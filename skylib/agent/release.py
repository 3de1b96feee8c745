"""How a cluster ends by itself: idle for long enough, or with a lease that ran out. The head for all, a node for itself."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from typing import Any, Callable, Dict, List, Mapping, Optional, Protocol, Set

from .autostop import Autostop
from .config import AgentConfig
from .engine import Engine
from .hooks import run_hook
from .idleness import Idleness
from .lease import Lease, identity, in_words, pause_s, spread_every_s
from .link import RankError
from .supervisor import write_file

__all__ = ["Ender", "HeadRelease", "WorkerRelease", "begun_end"]

_log = logging.getLogger(__name__)
_TICK_S = 1.0
_START_GRACE_S = 900.0
_SPREAD_WAIT_S = 5.0
_LEASE_CANCEL_S = 20.0
_RAY_WAIT_S = 90.0


class Ender(Protocol):
    """What a release needs of the daemon. stop_all: as the protocol's stop_nodes; `within_s` bounds the end of jobs."""

    async def stop_all(self, *, cause: str = "", within_s: Optional[float] = None) -> List[Dict[str, Any]]: ...

    async def stop_here(self) -> Dict[str, Any]: ...

    def leave(self) -> None: ...


def begun_end(config: AgentConfig) -> Optional[Dict[str, Any]]:
    """The end that an agent of this beginning of the cluster had begun; None when there is none to go on with."""
    record = _read(os.path.join(config.sky, "stopped.json"))
    if not record.get("stopping") or record.get("standing") != identity(config):
        return None
    return record


def _read(path: str) -> Dict[str, Any]:
    try:
        with open(path, "rb") as file:
            found = json.loads(file.read().decode())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


class HeadRelease:
    """The head's. ask: has everybody whose request is open show that they live."""

    def __init__(
        self, engine: Engine, idleness: Idleness, lease: Lease, ender: Ender, *, ask: Callable[[], None]
    ) -> None:
        self._config = engine.config
        self._engine = engine
        self._idleness = idleness
        self._lease = lease
        self._ender = ender
        self._ask = ask
        self._stopped = os.path.join(self._config.sky, "stopped.json")
        self._stood = idleness.resumed
        self._began = time.monotonic()
        self._asked_at = self._spread_at = float("-inf")
        self._spread_lease_s: Optional[float] = None
        self._spreading: Optional[asyncio.Task[None]] = None
        self._rest_s = _TICK_S
        self._told: Set[int] = set()

    async def run(self) -> None:
        """For good, or until the cluster has ended. First what an agent before this one had begun."""
        begun = begun_end(self._config)
        while True:
            try:
                if begun is not None:
                    await self._go_on(begun)
                    return
                if await self._step():
                    return
                await asyncio.sleep(self._rest_s)
            except asyncio.CancelledError:
                raise
            except Exception:  # boundary: the timer goes on whatever happens
                _log.exception("in the daemon's timer")
                await asyncio.sleep(_TICK_S)

    async def _step(self) -> bool:
        """True when the cluster was ended."""
        engine, lease = self._engine, self._lease
        running = engine.active_names()
        self._wait_for_a_launch()
        due = await self._idleness.look(running, engine.active - len(running))
        left = lease.left_s
        self._rest_s = min(max(min(_TICK_S if each is None else each for each in (due, left)), 0.02), _TICK_S)
        if engine.stopping:
            return False
        if left == 0:
            await self._end("lease", None)
            return True
        if due == 0 and self._idleness.setting is not None:
            await self._end("autostop", self._idleness.setting)
            return True
        self._keep_lease(lease.lease_s)
        return False

    def _wait_for_a_launch(self) -> None:
        """A launch is at work: its cluster is not idle before it stands. An agent that came back waits for nothing."""
        if self._stood:
            return
        self._stood = self._engine.ranks.up
        if self._stood or time.monotonic() - self._began < _START_GRACE_S:
            self._idleness.touch()

    def _keep_lease(self, lease_s: Optional[float]) -> None:
        now = time.monotonic()
        if lease_s is not None and now - self._asked_at >= pause_s(lease_s):
            self._asked_at = now
            self._ask()
        others = set(self._engine.ranks.alive()) - {self._config.rank}
        due = lease_s is not None and (now - self._spread_at >= spread_every_s(lease_s) or not others <= self._told)
        idle = self._spreading is None or self._spreading.done()
        if (due or lease_s != self._spread_lease_s) and idle and self._engine.ranks.up:
            self._spread_at, self._spread_lease_s = now, lease_s
            self._spreading = asyncio.ensure_future(self._spread(others))
        try:
            self._lease.save()
        except OSError as exc:
            _log.warning("the lease cannot be written down: %s", exc)

    async def _spread(self, others: Set[int]) -> None:
        """The workers that can be reached are told how it stands; each ends itself if it hears nothing more."""
        lease_s, left_s = self._lease.lease_s, self._lease.left_s
        self._told &= others  # one that comes back is told at once

        async def tell(rank: int) -> None:
            try:
                await self._engine.ranks.call(rank, "lease", lease_s, left_s or 0.0, timeout_s=_SPREAD_WAIT_S)
                self._told.add(rank)
            except (RankError, asyncio.TimeoutError) as exc:
                _log.debug("node %d was not told of the lease: %s", rank, exc)

        await asyncio.gather(*(tell(rank) for rank in others))

    # --- the end

    async def _end(self, reason: str, setting: Optional[Autostop]) -> None:
        """Nothing is ended before it is written down why, so that no crash on the way leaves hosts that nobody frees.

        A lease is hard: it ends the cluster even where the disk takes nothing more.
        """
        down = setting is None or setting.down
        record = _begun(self._config, reason, down=down)
        if setting is None:
            record["lease_s"] = self._lease.lease_s
        else:
            record["autostop"] = setting.to_json()
        try:
            write_file(self._stopped, json.dumps(record).encode())
        except OSError as exc:
            if setting is not None:
                raise
            _log.error("the end cannot be written down: %s", exc)
        await self._go_on(record)

    async def _go_on(self, record: Mapping[str, Any]) -> None:
        """From the record on. A lease is hard: no hook runs, and jobs have a bounded time to end."""
        cause = _cause(record)
        _log.info("ending the cluster: %s", cause)
        self._engine.stopping = True
        said = dict(record)
        setting = record.get("autostop") or {}
        try:
            if setting.get("hook"):
                event, timeout_s = "down" if record["down"] else "stop", float(setting.get("hook_timeout_s") or 3600.0)
                said["hook"] = await run_hook(self._config, event, setting["hook"], timeout_s)
            if record["reason"] != "lease":
                await self._wait_for_ray()
            if record["down"]:
                await self._note(record)
            await self._ender.stop_all(cause=cause, within_s=_LEASE_CANCEL_S if record["reason"] == "lease" else None)
        except BaseException:
            self._engine.stopping = False  # it is tried again
            raise
        _complete(self._stopped, said)
        self._ender.leave()

    async def _wait_for_ray(self) -> None:
        """The other nodes are reached through Ray: one that is being started again is waited for, for a bounded time."""
        ranks, until = self._engine.ranks, time.monotonic() + _RAY_WAIT_S
        others = {node.rank for node in self._config.nodes if node.rank != self._config.rank}
        while not (ranks.up and others <= {*ranks.alive(), *ranks.lost}) and time.monotonic() < until:
            if not others:
                return
            await asyncio.sleep(0.2)

    async def _note(self, record: Mapping[str, Any]) -> None:
        """Each node knows that it was given back: what is left on it goes when its time is over, whoever comes by."""
        others = [rank for rank in self._engine.ranks.alive() if rank != self._config.rank]

        async def tell(rank: int) -> None:
            try:
                await self._engine.ranks.call(rank, "note_end", {**record, "stopping": False}, timeout_s=_SPREAD_WAIT_S)
            except (RankError, asyncio.TimeoutError) as exc:
                _log.warning("node %d was not told that it is given back: %s", rank, exc)

        await asyncio.gather(*(tell(rank) for rank in others))


def _begun(config: AgentConfig, reason: str, *, down: bool) -> Dict[str, Any]:
    """What stopped.json says of an end that begins now."""
    record: Dict[str, Any] = {"at": time.time(), "reason": reason, "down": down, "stopping": True}
    return {**record, "cluster_id": config.cluster_id, "standing": identity(config)}


def _cause(record: Mapping[str, Any]) -> str:
    """In words, for those whose jobs it ends."""
    if record.get("reason") == "lease":
        return f"the lease of {in_words(float(record.get('lease_s') or 0))} ran out"
    minutes = float((record.get("autostop") or {}).get("idle_minutes") or 1)
    return f"the cluster was idle for {in_words(round(60 * minutes, 3))} and stopped by itself"


def _complete(path: str, record: Mapping[str, Any]) -> None:
    try:
        write_file(path, json.dumps({**record, "stopping": False}).encode())
    except OSError as exc:
        _log.error("the end is not written down as complete: %s", exc)


class WorkerRelease:
    """A worker's: ends its own node when the lease has run out and no head ended it before."""

    def __init__(self, config: AgentConfig, lease: Lease, ender: Ender) -> None:
        self._config = config
        self._lease = lease
        self._ender = ender

    async def run(self) -> None:
        """Until the node was ended."""
        while True:
            try:
                self._lease.read()
                left = self._lease.left_s
                if left == 0:
                    await self._end()
                    return
                await asyncio.sleep(_TICK_S if left is None else min(max(left, 0.05), _TICK_S))
            except asyncio.CancelledError:
                raise
            except Exception:  # boundary: the timer goes on whatever happens
                _log.exception("the lease could not be enforced")
                await asyncio.sleep(_TICK_S)

    async def _end(self) -> None:
        path = os.path.join(self._config.sky, "stopped.json")
        record = {**_begun(self._config, "lease", down=True), "lease_s": self._lease.lease_s}
        _log.info("ending this node: %s", _cause(record))
        try:
            write_file(path, json.dumps(record).encode())
        except OSError as exc:  # a full disk keeps no node from its end
            _log.error("the end cannot be written down: %s", exc)
        await self._ender.stop_here()
        _complete(path, record)
        self._ender.leave()
