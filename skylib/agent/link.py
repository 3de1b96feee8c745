"""The agent's side of its connection to Ray: keeps the child that holds it, and begins anew when it is gone."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from typing import Any, Callable, Dict, List, Optional, Set, Tuple

from .config import AgentConfig, tls_environment
from .frames import grow, pack, read

__all__ = ["LinkDown", "RankError", "RayLink", "Ranks"]

_log = logging.getLogger(__name__)
_BACKOFF_S = (0.2, 0.5, 1.0, 2.0, 5.0)


class RankError(Exception):
    """A node refused a call, or its actor is not there (kind "node")."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class LinkDown(RankError):
    """There is no connection to Ray now."""

    def __init__(self, message: str = "there is no connection to Ray") -> None:
        super().__init__("link", message)


class Ranks:
    """What the engine needs of the nodes. RayLink is the real one; tests have one without Ray.

    on_change: called in the event loop when `nodes` or `standing` changed. away: nodes whose Ray does not answer just
    now, whatever the table says. lost: nodes that are given up; calls to them fail at once, kind "node".
    """

    version = ""
    detail = ""
    up = False

    def __init__(self) -> None:
        self.nodes: Dict[int, Dict[str, Any]] = {}
        self.standing: Dict[int, Dict[str, Any]] = {}
        self.away: Set[int] = set()
        self.lost: Set[int] = set()
        self.on_change: Callable[[], None] = lambda: None

    def alive(self) -> List[int]:
        return sorted(rank for rank, node in self.nodes.items() if node["alive"] and rank not in self.away)

    def set_lost(self, lost: Set[int]) -> None:
        self.lost = lost

    def cut_off(self, why: str) -> None:
        """Ray has ended here: there is no connection until `go_on`."""

    def go_on(self) -> None:
        """Ray is being started: it may be connected to."""

    async def call(self, rank: int, method: str, *args: Any, timeout_s: Optional[float] = None) -> Any:
        """Raises RankError, LinkDown, or asyncio.TimeoutError."""
        raise NotImplementedError

    async def reserve(self, name: str, bundles: List[Dict[str, float]]) -> bool:
        raise NotImplementedError

    async def release(self, name: str) -> None:
        raise NotImplementedError

    async def keep(self, names: List[str]) -> None:
        raise NotImplementedError

    async def run(self) -> None:
        """Keeps the connection until it is cancelled."""
        raise NotImplementedError


class RayLink(Ranks):
    """The nodes by way of Ray, in a child process that is begun anew whenever it ends."""

    def __init__(self, config: AgentConfig) -> None:
        super().__init__()
        self._config = config
        self._process: Optional[asyncio.subprocess.Process] = None
        self._pending: Dict[int, asyncio.Future[Any]] = {}
        self._asked: Dict[int, int] = {}  # the rank that a pending call went to
        self._number = 0
        self._open = asyncio.Event()
        self._open.set()

    async def run(self) -> None:
        failures = 0
        try:
            while True:
                await self._open.wait()
                try:
                    connected = await self._hold_once()
                except Exception as exc:  # boundary: whatever went wrong, the connection is begun anew
                    _log.exception("the connection to Ray failed")
                    self.detail = f"the process that connects to Ray could not be used: {exc}"
                    connected = False
                    await self._end_child()
                    self._lost()
                failures = 0 if connected else failures + 1
                await asyncio.sleep(_BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)])
        finally:
            await self._end_child()

    def cut_off(self, why: str) -> None:
        self._open.clear()
        self.detail = why
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
        self._lost()

    def go_on(self) -> None:
        self._open.set()

    def set_lost(self, lost: Set[int]) -> None:
        super().set_lost(lost)
        for number in [number for number, rank in self._asked.items() if rank in lost]:
            self._resolve(number, False, ("node", "its node is gone"))

    async def _end_child(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def _hold_once(self) -> bool:
        """One life of the child; True when it was connected."""
        environ = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environ.update(RAY_USAGE_STATS_ENABLED="0", PYTHONWARNINGS="ignore", SKYLIB_CLUSTER_ID=self._config.cluster_id)
        environ.update(tls_environment(self._config), GRPC_VERBOSITY="NONE")  # else a line for each stranger that knocks
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            self._config.bundle_of(self._config.me),
            "ranks",
            "--config",
            self._config.path,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environ,
            cwd="/",
        )
        stream = self._process.stdout
        if stream is None:
            raise RuntimeError("the child has no stdout")
        was_up = False
        while True:
            try:
                number, first, second = await read(stream)
            except EOFError:
                break
            if number is None and self._open.is_set():
                was_up |= first == "connected"
                self._event(first, second)
            elif self._open.is_set():
                self._resolve(number, first, grow(second))
        code = await self._process.wait()
        _log.warning("the connection to Ray has ended (exit code %s)", code)
        self.detail = self.detail or f"the process that connects to Ray ended with exit code {code}"
        self._lost()
        return was_up

    def _event(self, name: str, value: Any) -> None:
        if name == "connected":
            self.version, self.up, self.detail = value, True, ""
        elif name == "nodes":
            self.nodes = {int(node["rank"]): node for node in value}
        elif name == "standing":
            rank, hello, detail = value
            if hello is None:
                self.standing.pop(rank, None)
                self.detail = f"node {rank}: {detail}"
                _log.error("the standing actor of node %s does not answer: %s", rank, detail)
            else:
                self.standing[rank] = hello
        elif name == "failed":
            self.detail = str(value)
            _log.error("no connection to Ray: %s", value)
        self._tell()

    def _tell(self) -> None:
        try:
            self.on_change()
        except Exception:  # boundary: what others make of the news is no fault of the connection's
            _log.exception("news of the nodes could not be followed")

    def _resolve(self, number: int, ok: bool, value: Any) -> None:
        future = self._pending.pop(number, None)
        self._asked.pop(number, None)
        if future is None or future.done():
            return
        if ok:
            future.set_result(value)
        else:
            future.set_exception(RankError(*value))

    def _lost(self) -> None:
        self.up = False
        self.nodes, self.standing = {}, {}
        pending, self._pending = self._pending, {}
        self._asked.clear()
        for future in pending.values():
            if not future.done():
                future.set_exception(LinkDown())
        self._tell()

    async def _request(
        self, op: str, args: Tuple[Any, ...], timeout_s: Optional[float] = None, *, rank: Optional[int] = None
    ) -> Any:
        process = self._process
        if not self.up or process is None or process.stdin is None:
            raise LinkDown
        self._number = number = self._number + 1
        future: asyncio.Future[Any] = asyncio.get_event_loop().create_future()
        self._pending[number] = future
        if rank is not None:
            self._asked[number] = rank
        try:
            process.stdin.write(pack((number, op, args)))
            return await asyncio.wait_for(future, timeout_s)
        finally:  # an answer that comes too late, or never, leaves nothing behind
            self._pending.pop(number, None)
            self._asked.pop(number, None)

    async def call(self, rank: int, method: str, *args: Any, timeout_s: Optional[float] = None) -> Any:
        if rank in self.lost:
            raise RankError("node", "its node is gone")
        return await self._request("call", (rank, method, args), timeout_s, rank=rank)

    async def reserve(self, name: str, bundles: List[Dict[str, float]]) -> bool:
        return bool(await self._request("reserve", (name, bundles)))

    async def release(self, name: str) -> None:
        await self._request("release", (name,))

    async def keep(self, names: List[str]) -> None:
        await self._request("keep", (names,))
