"""A task's files on their way: found and checked before anything is touched, then brought to every node."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from skylib.errors import InvalidSpecError
from skylib.events import Event, EventSink, Phase, span
from skylib.models.cluster import ClusterRecord
from skylib.models.node import HostAddress
from skylib.models.sync_report import TreeReport
from skylib.models.task import Task
from skylib.ops.sources import local_sources
from skylib.session import Session
from skylib.staging.plan import SyncPlan, plan_sync
from skylib.staging.report import report, warnings_about
from skylib.staging.snapshot import Snapshots
from skylib.staging.sync import SyncNode, sync

__all__ = ["check_targets", "deliver", "deliver_to", "files_digest", "prepare_files", "report_files", "staged_files"]

_STAGING_WAIT_S = 1800.0
_GIB = 1 << 30


def prepare_files(session: Session, task: Task, events: EventSink) -> SyncPlan:
    """What goes where. Raises StagingError for a source that is missing or cannot be read, InvalidSpecError for a target."""
    with _scanned(session, task, events, workdir_only=False) as plan:
        return plan


def report_files(
    session: Session, task: Task, events: EventSink
) -> tuple[tuple[TreeReport, ...], tuple[str, ...]]:
    """Each source with what goes of it and what stays here, and warnings. Raises as `prepare_files` does."""
    with _scanned(session, task, events, workdir_only=False) as plan:
        return report(plan), warnings_about(plan)


@contextmanager
def _scanned(session: Session, task: Task, events: EventSink, *, workdir_only: bool) -> Iterator[SyncPlan]:
    """What was fetched from elsewhere stays for the length of the `with` block."""
    folder = _folder(session).with_name("sources")
    with local_sources(session, task, folder, events, workdir_only=workdir_only) as (workdir, mounts):
        with span(events, "files.scan") as step:
            plan = plan_sync(workdir, mounts)
            step.note(files=plan.files, bytes=plan.bytes)
            for warning in warnings_about(plan):
                events(Event(step="files.scan", phase=Phase.NOTE, at=time.time(), facts={"warning": warning}))
        yield plan


@contextmanager
def staged_files(session: Session, task: Task, events: EventSink, *, workdir_only: bool = False) -> Iterator[SyncPlan]:
    """A snapshot of what goes where, which nothing changes or removes for the length of the `with` block.

    Raises as `prepare_files` does, and StagingError when there is no room for the snapshot in the home.
    """
    began_ns = time.time_ns()
    with ExitStack() as used:
        with _scanned(session, task, events, workdir_only=workdir_only) as plan:
            if plan:
                snapshots = _snapshots(session)
                plan = used.enter_context(snapshots.staged(plan, scanned_ns=began_ns, events=events))
        yield plan


def _snapshots(session: Session) -> Snapshots:
    def hold(scope: str) -> AbstractContextManager[object]:
        return session.file_locks.hold(scope, operation="staging", timeout_s=_STAGING_WAIT_S)

    max_bytes = session.config.staging.max_gib * _GIB
    return Snapshots(_folder(session), hold=hold, max_bytes=max_bytes)


def _folder(session: Session) -> Path:
    name = session.user_hash
    if not re.fullmatch(r"\w[\w.-]{0,99}", name, re.ASCII):  # $SKYPILOT_USER_ID can be anything
        name = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return session.home.staged_mounts(name)


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


def files_digest(session: Session, files: SyncPlan, events: EventSink) -> str:
    """Equal for equal targets, names, modes and content. A snapshot's content is read once."""
    snapshots = _snapshots(session)
    whole = hashlib.sha256()
    for tree in files.trees:
        whole.update(f"{tree.mount.dst}\0{snapshots.content_digest(tree, events)}\n".encode("utf-8", "surrogateescape"))
    return whole.hexdigest()
