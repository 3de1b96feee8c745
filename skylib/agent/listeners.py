"""Who waits for news of which job."""

from __future__ import annotations

import asyncio
from typing import Dict, List

__all__ = ["Listeners"]


class Listeners:
    """Events by job id; 0 is the cluster itself. For one event loop."""

    def __init__(self) -> None:
        self._events: Dict[int, List[asyncio.Event]] = {}

    def tell(self, job_id: int) -> None:
        """The job or its log has changed."""
        for event in self._events.get(job_id, ()):
            event.set()

    def listen(self, job_id: int) -> asyncio.Event:
        """Set whenever the job or its log changes. To be given back to `unlisten`."""
        event = asyncio.Event()
        self._events.setdefault(job_id, []).append(event)
        return event

    def unlisten(self, job_id: int, event: asyncio.Event) -> None:
        """An event that is not there is none of our business."""
        events = self._events.get(job_id, [])
        if event in events:
            events.remove(event)
        if not events:
            self._events.pop(job_id, None)
