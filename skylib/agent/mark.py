"""Keeps this node's cluster.json up to date: ids of the jobs that it knows and, on the head, the timer.

cluster.json is what is left of a cluster when its maker's state is lost. It is written seldom, however many jobs come,
and nothing waits for it or fails with it: what could not be written is written later.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import time
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Tuple

from .config import AgentConfig

__all__ = ["MarkKeeper", "ids_in", "ranges", "rewrite"]

_log = logging.getLogger(__name__)
_PAUSE_S = 1.0
_SHARE = 20.0  # at most one part in so many of the time goes into writing
_MAX_RANGES = 8192


def ranges(ids: Iterable[int]) -> str:
    """ "1-5,7": in order, each once; the newest ones when there are too many ranges."""
    found: List[Tuple[int, int]] = []
    for number in sorted(set(ids)):
        if found and number == found[-1][1] + 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in found[-_MAX_RANGES:])


def ids_in(task_ids: Iterable[str], cluster: str) -> List[int]:
    """The job ids in names like sky-<time>_<cluster>_<id>; other names are passed over."""
    found = []
    for name in task_ids:
        head, _, number = name.rpartition("_")
        if head.startswith("sky-") and head.endswith(f"_{cluster}") and number.isdigit() and number.isascii():
            found.append(int(number))
    return found


def rewrite(config: AgentConfig, changes: Mapping[str, Any]) -> bool:
    """Puts `changes` into this node's cluster.json; False when somebody else is at it just now.

    A file that is not there, cannot be read or is another cluster's stays as it is. Raises OSError.
    """
    path = os.path.join(config.sky, "cluster.json")
    folder = os.open(config.sky, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass  # a file system without locks
        try:
            with open(path, "rb") as file:
                mark = json.loads(file.read().decode())
        except (FileNotFoundError, ValueError):
            return True
        if not isinstance(mark, dict) or mark.get("cluster_id") != config.cluster_id:
            return True
        if any(name not in mark or mark[name] != value for name, value in changes.items()):
            _replace(path, os.path.join(config.sky, "agent", "cluster.json.new"), {**mark, **changes})
        return True
    finally:
        os.close(folder)


def _replace(path: str, beside: str, mark: Mapping[str, Any]) -> None:
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(json.dumps(mark, indent=1).encode())
        os.replace(beside, path)
    except OSError:
        os.unlink(beside)
        raise


class MarkKeeper:
    """facts: what the head puts into its mark, asked in the event loop; None on a worker, which looks which jobs it ran."""

    def __init__(
        self, config: AgentConfig, facts: Optional[Callable[[], Dict[str, Any]]], *, pause_s: float = _PAUSE_S
    ) -> None:
        self._config = config
        self._facts = facts
        self._pause_s = pause_s
        self._changed = asyncio.Event()
        self._changed.set()
        self._looked_at: Optional[int] = None
        self._failed = ""

    def touch(self) -> None:
        """There is something new; it is written down within moments."""
        self._changed.set()

    async def run(self) -> None:
        """For good: writes what has changed, then rests."""
        while True:
            if self._facts is not None:
                await self._changed.wait()
            began = time.monotonic()
            await self.write()
            await asyncio.sleep(max(self._pause_s, _SHARE * (time.monotonic() - began)))

    async def write(self) -> None:
        """What there is to write, if anything, in another thread. A failure is told in the log, and tried again."""
        self._changed.clear()
        given = self._facts() if self._facts is not None else None
        try:
            done = await asyncio.get_event_loop().run_in_executor(None, self._write, given)
            self._failed = ""
        except Exception as exc:  # boundary: no job and no agent may fail with this file
            done = False
            if str(exc) != self._failed:
                self._failed = str(exc)
                _log.warning("cluster.json cannot be written, trying again: %s", exc)
        if not done:
            self._looked_at = None
            self._changed.set()

    def _write(self, given: Optional[Dict[str, Any]]) -> bool:
        if given is not None:
            return rewrite(self._config, {**given, "job_ids": ranges(given["job_ids"])})
        try:
            changed_at = os.stat(self._config.jobs_state).st_mtime_ns
        except FileNotFoundError:
            return True
        if changed_at == self._looked_at:
            return True
        self._looked_at = changed_at
        ids = ids_in(os.listdir(self._config.jobs_state), self._config.cluster)
        return rewrite(self._config, {"job_ids": ranges(ids)})
