"""Keeps this node's Ray: when it has ended, whoever ended it, what is left of it is ended and it is started again.

What happens by itself with Ray 2.9.3 (tried): without its GCS a cluster stands still for a minute, then each raylet
ends; raylets that meet a new GCS at the same address end at once; a raylet that the GCS has given up for dead (a link
was cut) ends when it hears of it. So a worker starts Ray again whenever its raylet is gone and the head's GCS accepts
connections, and the head whenever its raylet or its GCS is gone, since a GCS that is begun anew knows nothing.

Our Ray on this node is what carries the cluster's token and this node's rank (RAY_RANK_VARIABLE), which no job inherits.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import stat
import time
from typing import Any, Callable, Dict, List, NamedTuple, Tuple

from .config import AgentConfig
from .portwatch import ANSWERS, REFUSED, PortWatch
from .processes import Process, carrying, end, is_alive, own
from .protocol import RAY_RANK_VARIABLE, TOKEN_VARIABLE
from .supervisor import write_file

__all__ = ["RayHold", "Seen", "pause_s", "step"]

_log = logging.getLogger(__name__)
_LOOK_S = 0.2
_START_S = 150.0
_STABLE_S = 10.0  # Ray that has stood for so long was ended by somebody, not by what made its start fail
_PAUSES_S = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)
_END_GRACE_S = 0.0
_KEPT_FILE = "ray_kept.json"
_LAST_WORDS = 2000


class Seen(NamedTuple):
    """kept: its first start has succeeded. gcs: the head's state of a worker's GCS port, by portwatch.py; "" on the head."""

    kept: bool
    raylet: bool
    gcs_process: bool
    gcs_port: str


def step(seen: Seen, *, head: bool) -> str:
    """What is to be done: "up" and "wait": nothing; "end" what is left of Ray; "start" it anew, which ends that as well."""
    if not seen.kept:
        return "wait"
    if head:
        return "up" if seen.raylet and seen.gcs_process else "start"
    if seen.raylet:
        return "end" if seen.gcs_port == REFUSED else "up"
    return "start" if seen.gcs_port == ANSWERS else "wait"


def pause_s(failures: int) -> float:
    """How long to wait before Ray is started after so many starts that did not last."""
    return _PAUSES_S[min(failures, len(_PAUSES_S) - 1)]


class RayHold:
    """on_down: called with the reason when Ray is seen to have ended, before anything is done about it.

    on_start: called when it is being started. on_change: when `to_json` has something new. stable_s: a start whose Ray
    stood for less counts as one that failed.
    """

    def __init__(
        self,
        config: AgentConfig,
        *,
        on_down: Callable[[str], None] = lambda why: None,
        on_start: Callable[[], None] = lambda: None,
        on_change: Callable[[], None] = lambda: None,
        stable_s: float = _STABLE_S,
    ) -> None:
        self._config = config
        self._stable_s = stable_s
        self._head = config.role == "head"
        self._on_down, self._on_start, self._on_change = on_down, on_start, on_change
        self._kept = False
        self._pids: Dict[str, Process] = {}
        self._found = False
        self._failures = 0
        self._tried_at = self._up_at = 0.0
        self._wake = asyncio.Event()
        self._paused = False
        self._gcs = PortWatch(config.head_ip, config.ray_port, self._wake.set)
        self.state = "waiting"
        self.restarts = 0
        self.last_error = ""

    def to_json(self) -> Dict[str, Any]:
        """For `info`: {"state": "waiting" | "up" | "down" | "starting" | "failing" | "off", "restarts", "last_error"}."""
        return {"state": self.state, "restarts": self.restarts, "last_error": self.last_error}

    def pause(self) -> None:
        """The cluster is being ended: nothing is started any more."""
        self._paused = True

    def go_on(self) -> None:
        self._paused = False
        self._wake.set()

    def confirm(self) -> None:
        """Ray has this node: its start has succeeded."""
        if not self._kept and self._config.ray_start is not None:
            self._keep()

    async def run(self) -> None:
        """For good; nothing when the configuration does not say how Ray is started."""
        if self._config.ray_start is None:
            self._set("off")
            return
        self._kept = self._was_kept()
        if not self._head:
            self._gcs.begin()
        try:
            while True:
                try:
                    await self._look()
                except Exception as exc:  # boundary: whatever went wrong, Ray is looked after further
                    _log.exception("Ray could not be looked after")
                    self._failed(str(exc))
                await self._rest(_LOOK_S)
        finally:
            self._gcs.stop()

    async def _rest(self, seconds: float) -> None:
        self._wake.clear()
        try:
            await asyncio.wait_for(self._wake.wait(), seconds)
        except asyncio.TimeoutError:
            pass

    # --- looking

    async def _look(self) -> None:
        kept = self._kept  # what is confirmed from here on was begun after this look
        raylet, gcs = self._alive()
        if not (raylet and gcs) and (not kept or not self._found):
            await asyncio.get_event_loop().run_in_executor(None, self._find)
            raylet, gcs = self._alive()
        if not kept and raylet and not self._head and not await self._others_at_it():
            self._keep()
        todo = step(Seen(kept, raylet, gcs, self._gcs.state), head=self._head)
        if self._paused:
            return
        if todo == "up":
            self._up()
        elif todo == "wait" and self._kept:
            self._down(f"its raylet has ended, and the head's GCS port is {self._gcs.state}")
        elif todo == "end":
            self._down("the head's Ray has ended")
            await self._end_rest()
        elif todo == "start":
            await self._start_when_due("its raylet has ended" if not raylet else "its GCS has ended")

    def _alive(self) -> Tuple[bool, bool]:
        """(raylet, GCS) of those that were found; a worker has no GCS to miss."""
        return self._has("raylet"), not self._head or self._has("gcs_server")

    def _has(self, name: str) -> bool:
        process = self._pids.get(name)
        return process is not None and is_alive(process.pid, process.start)

    def _ours(self) -> List[Process]:
        processes = own()
        rank = {TOKEN_VARIABLE: self._config.cluster_id, RAY_RANK_VARIABLE: str(self._config.rank)}
        return [processes[pid] for pid in carrying(processes.values(), rank)]

    def _find(self) -> None:
        self._found = True
        named = {process.pid: (_name(process.pid), process) for process in self._ours()}
        forks = {pid for pid, (name, process) in named.items() if named.get(process.ppid, ("", None))[0] == name}
        self._pids = {name: process for pid, (name, process) in named.items() if name and pid not in forks}

    async def _others_at_it(self) -> bool:
        """Somebody's `ray start` is still at work: on a worker, what is not below the raylet."""
        found = await asyncio.get_event_loop().run_in_executor(None, self._ours)
        ours = {process.pid: process for process in found}
        raylet = self._pids["raylet"].pid
        return any(pid != raylet and process.ppid != raylet and process.ppid not in ours for pid, process in ours.items())

    # --- what was once up

    def _was_kept(self) -> bool:
        try:
            with open(os.path.join(self._config.sky, _KEPT_FILE), "rb") as file:
                kept = json.loads(file.read().decode())
            return isinstance(kept, dict) and kept.get("standing") == self._config.standing
        except (OSError, ValueError):
            return False

    def _keep(self) -> None:
        self._kept = True
        self._found = False  # what was found before may be less than what has come up since
        try:
            write_file(os.path.join(self._config.sky, _KEPT_FILE), json.dumps({"standing": self._config.standing}).encode())
        except OSError as exc:
            _log.warning("that Ray is up cannot be written down; an agent begun anew would not start it: %s", exc)
        self._wake.set()

    # --- states

    def _set(self, state: str) -> None:
        if state != self.state:
            self.state = state
            self._on_change()

    def _up(self) -> None:
        if self._failures and time.monotonic() - self._up_at > self._stable_s:
            self._failures = 0
        if self.state == "down":  # it was there all the while: who was cut off from it goes on
            self._on_start()
        self._set("up")

    def _down(self, why: str) -> None:
        if self.state in ("up", "waiting"):
            _log.warning("this node's Ray is down: %s", why)
            self._set("down")
            self._on_down(why)

    def _failed(self, why: str) -> None:
        if why != self.last_error:
            _log.error("Ray cannot be started: %s", why)
        self.last_error = why
        self._set("failing")

    # --- acting

    async def _end_rest(self) -> None:
        loop = asyncio.get_event_loop()
        result = await loop.run_in_executor(None, lambda: end(self._ours, grace_s=_END_GRACE_S))
        if result.survivors:
            raise OSError(f"processes of Ray cannot be ended: {result.survivors}")

    async def _start_when_due(self, why: str) -> None:
        self._down(why)
        if time.monotonic() - self._tried_at < pause_s(self._failures):
            return
        await self._end_rest()
        if self._paused:
            return
        self._tried_at = time.monotonic()
        self._failures += 1  # until it has lasted
        self.restarts += 1
        self._set("starting")
        _log.info("starting Ray again")
        self._on_start()
        began = time.monotonic()
        problem = await self._start()
        await asyncio.get_event_loop().run_in_executor(None, self._find)
        if not problem and not all(self._alive()):
            problem = "`ray start` succeeded, and its raylet ended at once"
        if problem:
            self._failed(problem)
            return
        self.last_error = ""
        self._up_at = time.monotonic()
        _log.info("Ray is up again after %.1f s", time.monotonic() - began)
        self._set("up")

    async def _start(self) -> str:
        """Runs the node's `ray start`; "" when it has succeeded, else what it said last."""
        start = self._config.ray_start
        if start is None:
            return "the configuration does not say how"
        try:
            self._restore_temp_dir()
        except OSError as exc:
            return f"its temp dir cannot be used: {exc}"
        path = os.path.join(self._config.sky, "ray_start.log")
        with open(path, "wb") as log:
            process = await asyncio.create_subprocess_exec(
                *start.argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **start.env},
                cwd="/",
                start_new_session=True,
            )
        try:
            code = await asyncio.wait_for(process.wait(), _START_S)
        except asyncio.TimeoutError:
            await self._end_rest()
            return f"`ray start` did not end within {_START_S:.0f} s"
        if code == 0:
            return ""
        with open(path, "rb") as log:
            return f"`ray start` exited {code}: {log.read()[-_LAST_WORDS:].decode('utf-8', 'replace').strip()}"

    def _restore_temp_dir(self) -> None:
        """A node that has booted may have lost the temp dir, and with it the claim on it.

        Raises OSError; also when somebody else was quicker, whose directory Ray's sockets must not stand in.
        """
        folder, mark = self._config.temp_dir, os.path.join(self._config.sky, "cluster.json")
        if not folder or not os.path.exists(mark):
            return
        os.makedirs(folder, mode=0o700, exist_ok=True)
        found = os.lstat(folder)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise PermissionError(f"{folder} is no directory of this account")
        with open(mark, "rb") as file, contextlib.suppress(FileExistsError):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            with os.fdopen(os.open(os.path.join(folder, "cluster.json"), flags, 0o600), "wb") as copy:
                copy.write(file.read())


def _name(pid: int) -> str:
    """What a process of our Ray is, as far as that matters here."""
    try:
        with open(f"/proc/{pid}/comm") as file:
            name = file.read().strip()
    except OSError:
        return ""
    return name if name in ("raylet", "gcs_server") else ""
