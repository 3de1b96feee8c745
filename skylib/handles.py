"""Handles: a cluster or a job by name, usable here, in another process, or after a trip through JSON or pickle.

A handle holds no socket and no record: home, cluster name and job id are all there is, and each call asks anew. Elsewhere
it reads that home's configuration: `db` in config.yaml and $SKYLIB_DB count there, what a Client was given does not, since
it holds a password. The handle knows the database by name only, for the error when its cluster is not found.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from skylib.errors import InvalidSpecError
from skylib.jobs.polling import Cancelled
from skylib.jobs.stream import LogStream
from skylib.models.cluster import ClusterRecord, NodeRecord
from skylib.models.job import JobRecord, JobStatus
from skylib.models.task import Task
from skylib.models.transfers import Fetched
from skylib.ops import batch, execute, joblogs, status, transfers
from skylib.ops.lives import life_of
from skylib.ops.nodes import run_on_all, ssh_command
from skylib.session import Session
from skylib.staging.sync import SyncOutcome
from skylib.transport.base import Completed

__all__ = ["Cluster", "Job"]


class _Handle:
    """What both kinds share: a home, and a session that is opened on first use and never travels."""

    __slots__ = ("_database", "_home", "_session", "cluster_name")

    def __init__(
        self, home: str | Path, cluster_name: str, session: Session | None = None, database: str | None = None
    ) -> None:
        self._home = str(Path(home).expanduser().absolute())
        self.cluster_name = cluster_name
        self._session = session
        self._database = database

    @property
    def home(self) -> str:
        """The home whose state knows the cluster."""
        return self._home

    def _open(self) -> Session:
        if self._session is None:
            self._session = Session(self._home)
            self._session.expected_database = self._database
        return self._session

    def _state(self) -> dict[str, str]:
        """The database that the cluster is in, "host/name", if it is in one: for recipes."""
        known = self._database or (self._session.database_name if self._session is not None else None)
        return {"database": known} if known else {}


class Job(_Handle):
    """One job of one cluster. cluster_id: of the life of the cluster's name that it belongs to."""

    __slots__ = ("adopted", "cluster_id", "id")

    def __init__(
        self,
        home: str | Path,
        cluster_name: str,
        job_id: int,
        *,
        cluster_id: str | None = None,
        adopted: bool = False,
        session: Session | None = None,
        database: str | None = None,
    ) -> None:
        super().__init__(home, cluster_name, session, database)
        self.id = job_id
        self.cluster_id = cluster_id
        self.adopted = adopted

    def record(self) -> JobRecord:
        """The job as it is now; as it was seen last, when the cluster is stopped or gone. Raises JobNotFound."""
        return execute.job(self._open(), self.cluster_name, self.id, cluster_id=self.cluster_id)

    def status(self) -> JobStatus:
        """Its status now."""
        return self.record().status

    def wait(self, timeout_s: float | None = None, *, check: bool = True) -> JobRecord:
        """Block until it has ended and its outputs are fetched. Raises JobFailed when `check` and it did not succeed.

        `fetched` of the record says what came; outputs that do not come are no error here, and tried again at the next
        contact. Raises TransportTimeout when it has not ended by then.
        """
        session = self._open()
        return execute.wait(
            session, self.cluster_name, self.id, timeout_s=timeout_s, check=check, cluster_id=self.cluster_id
        )

    def logs(self, *, follow: bool = True, offset: int = 0, tail: int | None = None) -> LogStream:
        """Lines as they come, until it has ended, for `for` and `async for`; a job that waits is waited for.

        offset: any line's next_offset, to resume there. tail: begin with the last so many lines that are there. follow:
        False gives what is there now. A line in pieces (`partial`) counts as so many lines.
        """
        session = self._open()
        return joblogs.tail_logs(
            session, self.cluster_name, self.id, follow=follow, offset=offset, tail=tail, cluster_id=self.cluster_id
        )

    def cancel(self) -> Cancelled | None:
        """End all its processes on all nodes; None when it had ended before."""
        done = execute.cancel(self._open(), self.cluster_name, [self.id], cluster_id=self.cluster_id)
        return done[0] if done else None

    def to_json(self) -> str:
        """A recipe for the same handle elsewhere."""
        return json.dumps(
            {
                "home": self._home,
                "cluster_name": self.cluster_name,
                "cluster_id": self.cluster_id,
                "job_id": self.id,
                "adopted": self.adopted,
                **self._state(),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Job:
        """The handle that `to_json` described. Raises InvalidSpecError for another text."""
        recipe = _recipe(text, ("home", "cluster_name", "job_id"))
        return _job(
            recipe["home"],
            recipe["cluster_name"],
            recipe["job_id"],
            recipe.get("cluster_id"),
            bool(recipe.get("adopted")),
            recipe.get("database"),
        )

    def __reduce__(self) -> tuple[object, ...]:
        return _job, (self._home, self.cluster_name, self.id, self.cluster_id, self.adopted, *self._state().values())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Job):
            return NotImplemented
        return self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> tuple[object, ...]:
        return self._home, self.cluster_name, self.cluster_id, self.id

    def __repr__(self) -> str:
        return f"Job(cluster={self.cluster_name!r}, id={self.id})"


def _job(
    home: str, cluster_name: str, job_id: int, cluster_id: str | None, adopted: bool, database: str | None = None
) -> Job:
    return Job(home, cluster_name, job_id, cluster_id=cluster_id, adopted=adopted, database=database)


def _recipe(text: str, wanted: tuple[str, ...]) -> dict[str, Any]:
    try:
        recipe = json.loads(text)
    except (TypeError, ValueError) as error:
        raise InvalidSpecError(f"this is not the JSON of a handle: {error}", field="text") from error
    missing = [name for name in wanted if not isinstance(recipe, dict) or name not in recipe]
    if missing:
        raise InvalidSpecError(f"this JSON of a handle lacks {', '.join(missing)}", field="text")
    return dict(recipe)


class Cluster(_Handle):
    """One cluster."""

    __slots__ = ()

    @property
    def name(self) -> str:
        return self.cluster_name

    def record(self, *, refresh: bool = False) -> ClusterRecord:
        """What is known of it; `refresh` asks its nodes first. Raises ClusterNotFound."""
        found = status.status(self._open(), [self.cluster_name], refresh_first=refresh)
        return found[0] if found else self._open().require(self.cluster_name)

    def nodes(self) -> tuple[NodeRecord, ...]:
        """Its nodes, the head first."""
        return self.record().nodes

    def queue(self) -> list[JobRecord]:
        """All its jobs, oldest first."""
        return execute.queue(self._open(), self.cluster_name)

    def job(self, job_id: int) -> Job:
        """A handle on one of its jobs. Raises JobNotFound."""
        session = self._open()
        found = execute.job(session, self.cluster_name, job_id)
        life = life_of(session, self.cluster_name).cluster_id
        return Job(self._home, self.cluster_name, found.job_id, cluster_id=life, session=session)

    def exec(self, task_or_command: Task | str, *, key: str | None = None) -> Job:
        """Submit a task or a command line; no provisioning, no setup, of the files the workdir alone; see Client.exec."""
        done = execute.exec_(self._open(), task_or_command, self.cluster_name, key=key)
        return Job(
            self._home,
            self.cluster_name,
            done.job_id,
            cluster_id=done.cluster_id,
            adopted=done.adopted,
            session=self._session,
        )

    def submit_many(self, tasks: Iterable[Task | str], *, keys: Sequence[str | None] | None = None) -> list[Job]:
        """Submit many tasks or command lines in one round trip, all or none; see Client.submit_many."""
        session = self._open()
        return [
            Job(
                self._home,
                self.cluster_name,
                done.job_id,
                cluster_id=done.cluster_id,
                adopted=done.adopted,
                session=session,
            )
            for done in batch.submit_all(session, tasks, self.cluster_name, keys=keys)
        ]

    def run(self, command: str, *, timeout_s: float | None = None) -> tuple[Completed, ...]:
        """Run a shell line at once on every node, past the queue; one Completed per node, in rank order."""
        return run_on_all(self._open(), self.cluster_name, command, timeout_s=timeout_s)

    def get(self, remote: str, local: str | os.PathLike[str], *, rank: int = 0) -> Fetched:
        """Fetch from the node of that rank: one file, a directory with all in it, or what a pattern matches.

        remote: relative to sky_workdir, `~/path` or absolute; `*`, `?`, `[...]` as in a shell, `**` for any directories.
        local: a file's new name, or the directory that it goes into where that stands or the text ends with "/"; else the
        directory itself, where matches of a pattern keep their path below its last plain directory.
        What is here with the same mode, size and time is not fetched again; what the node does not have stays. Modes,
        times and links are kept, but for links that lead out of what is fetched: those are told and left out.
        Raises StagingError (host, path) when nothing matches or something cannot be read or written, InvalidSpecError,
        ClusterNotFound, TransportError.
        """
        return transfers.get(self._open(), self.cluster_name, remote, local, rank=rank)

    def put(
        self, local: str | os.PathLike[str], remote: str, *, ranks: Iterable[int] | None = None
    ) -> tuple[SyncOutcome, ...]:
        """Bring a file or directory to nodes (None: all of them) by the rules of file_mounts; what each was given.

        remote: the new path itself, `~/path`, absolute, or relative to sky_workdir; ignore files of a directory count.
        Raises StagingError (host, path), InvalidSpecError, ClusterNotFound, ClusterNotUp, ClusterBusy, TransportError.
        """
        return transfers.put(self._open(), self.cluster_name, local, remote, ranks=ranks)

    def ssh_command(self, rank: int = 0) -> str:
        """What to type for a shell on that node. Raises InvalidSpecError for a rank it does not have."""
        return ssh_command(self._open(), self.cluster_name, rank)

    def to_json(self) -> str:
        """A recipe for the same handle elsewhere."""
        return json.dumps({"home": self._home, "cluster_name": self.cluster_name, **self._state()})

    @classmethod
    def from_json(cls, text: str) -> Cluster:
        """The handle that `to_json` described. Raises InvalidSpecError for another text."""
        recipe = _recipe(text, ("home", "cluster_name"))
        return cls(recipe["home"], recipe["cluster_name"], database=recipe.get("database"))

    def __reduce__(self) -> tuple[object, ...]:
        return Cluster, (self._home, self.cluster_name, None, *self._state().values())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Cluster):
            return NotImplemented
        return (self._home, self.cluster_name) == (other._home, other.cluster_name)

    def __hash__(self) -> int:
        return hash((self._home, self.cluster_name))

    def __repr__(self) -> str:
        return f"Cluster({self.cluster_name!r})"
