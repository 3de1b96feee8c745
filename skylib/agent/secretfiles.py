"""Secrets of jobs that have not ended: on the head's disk only, one 0600 file a job."""

from __future__ import annotations

import json
import os
from typing import Any, Container, Dict, Mapping

from .supervisor import write_file

__all__ = ["SecretFiles"]


class SecretFiles:
    """folder: made, 0700, when there is a first secret to keep."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def keep(self, job_id: int, secrets: Mapping[str, Any]) -> None:
        """Nothing is written when there are none. Raises OSError."""
        if secrets:
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            write_file(self._path(job_id), json.dumps(secrets).encode())

    def read(self, job_id: int) -> Dict[str, str]:
        """Raises OSError or ValueError when they cannot be read."""
        with open(self._path(job_id), "rb") as file:
            return {str(name): str(value) for name, value in json.loads(file.read().decode()).items()}

    def drop(self, job_id: int) -> None:
        """The job has ended, or there is none. Raises OSError."""
        try:
            os.unlink(self._path(job_id))
        except FileNotFoundError:
            pass

    def keep_only(self, job_ids: Container[int]) -> None:
        """All others go: an agent that died may have left them behind. Raises OSError."""
        for name in os.listdir(self._folder) if os.path.isdir(self._folder) else []:
            number = name.partition(".")[0]
            if number.isdigit() and int(number) not in job_ids:
                os.unlink(os.path.join(self._folder, name))

    def _path(self, job_id: int) -> str:
        return os.path.join(self._folder, f"{job_id}.json")
