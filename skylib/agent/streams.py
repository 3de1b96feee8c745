"""The verbs about logs: a job's merged log as a stream, and what files there are of it."""

from __future__ import annotations

import asyncio
import os
from typing import Any, Callable, Dict, Mapping, Optional

from .engine import Engine
from .merged import MergedReader, NoLine
from .refused import Refused
from .server import Send

__all__ = ["LogVerbs"]


class LogVerbs:
    """asleep: whether nothing changes any more, since the cluster is stopped."""

    def __init__(self, engine: Engine, asleep: Callable[[], bool]) -> None:
        self._engine = engine
        self._asleep = asleep

    async def logs(self, args: Mapping[str, Any], send: Send) -> Dict[str, Any]:
        """Lines until the job has ended and all is told; without `follow`, those that are there now."""
        job = self._engine.find(args.get("job_id"))
        reader = MergedReader(job.log_dir, _count(args, "offset") or 0, batch=bool(args.get("batch")))
        last = _count(args, "tail")
        try:
            reader.check()
        except NoLine as exc:
            raise Refused("bad_offset", str(exc), offset=reader.offset, end=exc.end, begins=exc.begins) from exc
        if last is not None:
            await asyncio.get_event_loop().run_in_executor(None, reader.go_to_last, last)  # it may be all of a long log
            await send([{"start": reader.offset}])
        limit = None if args.get("follow", True) else reader.end()
        changed = self._engine.listen(job.job_id)
        try:
            while True:
                changed.clear()
                over = job.is_terminal or self._asleep() or limit is not None
                items = reader.read(limit=limit)
                if items:
                    await send(items)
                    await asyncio.sleep(0)
                elif over:
                    break
                else:
                    await changed.wait()
        finally:
            self._engine.unlisten(job.job_id, changed)
        return {"job": self._engine.show(job), "offset": reader.offset}

    async def log_files(self, args: Mapping[str, Any], send: Send) -> Dict[str, Any]:
        """What lies in the job's log directory on the head."""
        job = self._engine.find(args.get("job_id"))
        files = []
        for folder, _, names in os.walk(job.log_dir):
            for name in names:
                path = os.path.join(folder, name)
                files.append({"name": os.path.relpath(path, job.log_dir), "bytes": os.stat(path).st_size})
        return {"log_dir": job.log_dir, "files": sorted(files, key=lambda file: str(file["name"]))}


def _count(args: Mapping[str, Any], name: str) -> Optional[int]:
    """Raises Refused "invalid" for what is no number of bytes or lines."""
    value = args.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise Refused("invalid", f"{name} must be a whole number that is not negative, not {value!r}")
    return value
