"""Verbs about single files: from a node of a cluster to here, and from here to its nodes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from skylib.errors import InvalidSpecError, StagingError
from skylib.events import span
from skylib.models.cluster import ClusterRecord, NodeRecord
from skylib.models.task import Task
from skylib.models.transfers import Fetched
from skylib.ops.execute import finish_left
from skylib.ops.files import check_targets
from skylib.ops.holding import hold
from skylib.ops.lives import require_up
from skylib.ops.outputs import wanted_on
from skylib.session import Session
from skylib.staging.fetch import fetch
from skylib.staging.plan import plan_sync
from skylib.staging.sync import SyncNode, SyncOutcome, sync

__all__ = ["get", "local_path", "put"]

PathText = str | os.PathLike[str]


def get(session: Session, name: str, remote: str, local: PathText, *, rank: int = 0) -> Fetched:
    """Fetch one file, a directory or what a pattern matches from the node of that rank; see Cluster.get."""
    here = local_path(local)
    record = session.require(name)
    node = _node(record, rank)
    wanted = wanted_on(record, node, remote, here, into=here.is_dir() or os.fspath(local).endswith("/"))
    with session.operation("get", name) as events:
        found = fetch(session.transport(node.address), [wanted], events=events)
    if found.missing:
        raise StagingError(
            f"{remote} is not there, or not to be seen by this account, on {node.host}",
            host=node.host,
            path=f"{wanted.base.rstrip('/')}/{wanted.path}",
            step="staging.fetch",
            hint="paths are relative to sky_workdir, ~/path or absolute",
        )
    return found


def put(
    session: Session, name: str, local: PathText, remote: str, *, ranks: Iterable[int] | None = None
) -> tuple[SyncOutcome, ...]:
    """Bring a file or directory to nodes, as a file mount; see Cluster.put."""
    source = os.fspath(local_path(local)) + ("/" if os.fspath(local).endswith("/") else "")
    if not isinstance(remote, str):
        raise InvalidSpecError(f"remote is a path on a node, not {type(remote).__name__}", field="remote")
    try:
        plan = plan_sync(None, {remote: source}, mirror=False)
        record = require_up(session, name)
        check_targets(Task(file_mounts={remote: source}), record.infra)
    except InvalidSpecError as error:
        error.__dict__["field"] = "remote"
        raise
    wanted = _ranks(record, ranks)
    with session.operation("put", name) as events:
        record = finish_left(session, record, "put", events)
        with hold(session, name, "put", events):  # nothing is sent to hosts that a down beside us gives back
            record = require_up(session, name)
            nodes = [_node(record, rank) for rank in wanted]
            with span(events, "files.deliver", nodes=len(nodes)) as step:
                targets = [SyncNode(transport=session.transport(node.address), root=node.root) for node in nodes]
                outcomes = sync(targets, plan, events=events)
                step.note(bytes=sum(each.bytes for each in outcomes), skipped=sum(each.skipped for each in outcomes))
                return outcomes


def _ranks(record: ClusterRecord, ranks: Iterable[int] | None) -> list[int]:
    if ranks is None:
        return [node.rank for node in record.nodes]
    if isinstance(ranks, (str, bytes)) or not isinstance(ranks, Iterable):
        raise InvalidSpecError(f"ranks are numbers of nodes, not {ranks!r:.80}", field="ranks")
    return [_node(record, rank, "ranks").rank for rank in dict.fromkeys(ranks)]


def local_path(local: PathText) -> Path:
    """An absolute path here; a relative one starts at the current directory. Raises InvalidSpecError."""
    text = os.fspath(local) if isinstance(local, (str, os.PathLike)) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise InvalidSpecError(f"local is a path here, not {local!r:.80}", field="local")
    return Path(os.path.abspath(os.path.expanduser(text)))


def _node(record: ClusterRecord, rank: int, field: str = "rank") -> NodeRecord:
    if isinstance(rank, bool) or not isinstance(rank, int) or not 0 <= rank < len(record.nodes):
        last = len(record.nodes) - 1
        raise InvalidSpecError(
            f"cluster {record.name!r} has no rank {rank!r:.80}", field=field, hint=f"ranks go from 0 to {last}"
        )
    return record.nodes[rank]
