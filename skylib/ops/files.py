"""A task's files on their way: found and checked before anything is touched, then brought to every node."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from skylib.errors import InvalidSpecError
from skylib.events import EventSink, span
from skylib.models.cluster import ClusterRecord
from skylib.models.node import HostAddress
from skylib.models.task import Task
from skylib.session import Session
from skylib.staging.plan import SyncPlan, plan_sync
from skylib.staging.sync import SyncNode, sync

__all__ = ["check_targets", "deliver", "deliver_to", "files_digest", "prepare_files"]


def prepare_files(task: Task, events: EventSink, *, workdir_only: bool = False) -> SyncPlan:
    """What goes where. Raises StagingError for a source that is missing or cannot be read, InvalidSpecError for a target."""
    with span(events, "files.scan") as step:
        plan = plan_sync(task.workdir, None if workdir_only else task.file_mounts)
        step.note(files=plan.files, bytes=plan.bytes)
        return plan


def check_targets(task: Task, infra: str) -> None:
    """Raises InvalidSpecError for a mount into `~` on this machine: that is the user's own home, and not the node's."""
    if infra != "local":
        return
    for target in task.file_mounts:
        if target == "~" or target.startswith("~/"):
            raise InvalidSpecError(
                f"{target}: on local, ~ is your own home, where nothing is put",
                field=f"file_mounts[{target}]",
                hint="mount to a relative path, which lies in the node's sky_workdir, or to /tmp/...",
            )


def deliver(session: Session, files: SyncPlan, record: ClusterRecord, events: EventSink) -> None:
    """To all nodes of a standing cluster, at once."""
    deliver_to(session, files, [(node.address, node.root) for node in record.nodes], events)


def deliver_to(session: Session, files: SyncPlan, nodes: Sequence[tuple[HostAddress, str]], events: EventSink) -> None:
    """To nodes given as address and root; nothing to send costs no round trip. Raises StagingError with host and path."""
    if not files:
        return
    with span(events, "files.deliver", nodes=len(nodes)) as step:
        targets = [SyncNode(transport=session.transport(address), root=root) for address, root in nodes]
        outcomes = sync(targets, files, events=events)
        step.note(bytes=sum(outcome.bytes for outcome in outcomes), skipped=sum(outcome.skipped for outcome in outcomes))


def files_digest(files: SyncPlan) -> str:
    """Equal for equal targets, names, modes and content."""
    whole = hashlib.sha256()
    for tree in files.trees:
        whole.update(f"{tree.mount.dst}\0{tree.manifest.digest()}\n".encode("utf-8", "surrogateescape"))
    return whole.hexdigest()
