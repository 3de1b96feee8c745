"""The files that a job's ranks wrote, from every node, brought home."""

from __future__ import annotations

from pathlib import Path

from skylib.models.cluster import ClusterRecord, NodeRecord
from skylib.models.job import JobRecord
from skylib.session import Session
from skylib.transport.command import Command
from skylib.transport.fanout import fanout

__all__ = ["fetch_job_files"]


def fetch_job_files(session: Session, record: ClusterRecord, job: JobRecord, target: Path) -> None:
    """Each rank's own log files into target/node<rank>/. A node that holds none of the job gives none.

    Raises StagingError, TransportError.
    """
    folder = job.log_dir.rstrip("/").rsplit("/", 1)[-1]
    if not folder:
        return

    def fetch(node: NodeRecord) -> None:
        transport = session.transport(node.address)
        source = f"{node.root}/sky_logs/{folder}/tasks"
        listed = transport.run(Command.sh('cd "$1" 2>/dev/null && ls -A || true', source)).check()
        for name in listed.stdout.decode("utf-8", "surrogateescape").splitlines():
            transport.get(f"{source}/{name}", target / f"node{node.rank}" / name)

    for outcome in fanout(fetch, record.nodes):
        if outcome.error is not None:
            raise outcome.error
