"""What verbs that act on nodes give back."""

from __future__ import annotations

import time
from enum import Enum
from pathlib import Path

import attrs

from skylib.models.cluster import ClusterRecord, ClusterStatus

__all__ = ["DownReceipt", "InfraStatus", "NodeReceipt", "PrefetchReceipt", "Reconciled", "Settled", "StartReceipt"]


@attrs.frozen(kw_only=True)
class NodeReceipt:
    """What was taken away on one node.

    ended: pids of processes that were running and are gone. ports_closed: TCP ports of ours that were open and are shut.
    paths_removed: absolute. leftovers: what is still there, in words; empty when nothing is. error: why the node could
    not be cleaned, "" when it was.
    """

    rank: int
    host: str
    ended: tuple[int, ...] = ()
    ports_closed: tuple[int, ...] = ()
    paths_removed: tuple[str, ...] = ()
    leftovers: tuple[str, ...] = ()
    error: str = ""

    @property
    def clean(self) -> bool:
        return not self.leftovers and not self.error


@attrs.frozen(kw_only=True)
class DownReceipt:
    """What `down` (or `stop`) did, node by node. released: the hosts are free for other clusters."""

    cluster_name: str
    nodes: tuple[NodeReceipt, ...] = ()
    released: bool = True
    logs_kept: str = ""

    @property
    def clean(self) -> bool:
        return all(node.clean for node in self.nodes)


@attrs.frozen(kw_only=True)
class StartReceipt:
    """What `start` gives back. cluster: as it is now. actions: what was done, in words, in order; none when all was well."""

    cluster: ClusterRecord
    actions: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.cluster.name

    @property
    def status(self) -> ClusterStatus:
        return self.cluster.status


@attrs.frozen(kw_only=True)
class InfraStatus:
    """Whether nodes can be had there. reason: why not, "" when usable. hosts: names of what can be used, or is in use."""

    infra: str
    usable: bool
    reason: str = ""
    hosts: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class PrefetchReceipt:
    """Ray's packages for one kind of node, kept under the home.

    platform: the kind, by the oldest C library that they serve: "manylinux_2_17_x86_64". python: "3.11". files: all
    that a node is sent: wheels, their list with hashes, and uv's program. bytes: of all files. made: the wheels were not
    here before, or not whole.
    """

    platform: str
    python: str
    ray_version: str
    directory: Path
    files: tuple[Path, ...]
    bytes: int
    made: bool


class Settled(str, Enum):
    """What was done about an operation whose process died.

    KEPT: nothing, since it cannot be told how far it came; it is looked at again. NOTED: nothing was to be done. BUSY:
    another operation is on the cluster now.
    """

    FINISHED = "finished"
    UNDONE = "undone"
    KEPT = "kept"
    NOTED = "noted"
    BUSY = "busy"


@attrs.frozen(kw_only=True, repr=False)
class Reconciled:
    """One operation that was found begun and not ended. pid, host, begun_at (unix seconds): who began it, and when.

    why: in words. status: of the cluster now, None when there is none. job_id: the job that it had queued, if that is
    known. blocks: launch, start and the like refuse the cluster until this is settled; down(purge=True) forgets it.
    """

    cluster: str
    operation: str
    pid: int
    host: str
    begun_at: float
    done: Settled
    why: str
    status: ClusterStatus | None = None
    job_id: int | None = None
    blocks: bool = False

    @property
    def began(self) -> str:
        """Who, and when, in words."""
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.begun_at))
        return f"pid {self.pid} on {self.host} at {at}"

    def __repr__(self) -> str:
        now = self.status.value if self.status is not None else "gone"
        return f"<Reconciled {self.cluster!r}: {self.operation} by {self.began}: {self.done.value}, now {now}: {self.why}>"
