"""What becomes of an operation whose process died: decided from its intent, the record, and what the nodes say. Pure."""

from __future__ import annotations

from enum import Enum

import attrs

from skylib.models.cluster import ClusterRecord, ClusterStatus
from skylib.ops.look import Seen
from skylib.state.base import IntentRecord

__all__ = ["Act", "Decision", "decide", "never_up", "stands_whole"]

_STOPPED = ClusterStatus.STOPPED


class Act(str, Enum):
    """FINISH: do the rest of it. UNDO: take away what it made. KEEP: it cannot be told, so nothing is touched and the
    intent stays open. NOTE: nothing is to be done; say what came of it.
    """

    FINISH = "finish"
    UNDO = "undo"
    KEEP = "keep"
    NOTE = "note"


@attrs.frozen(kw_only=True)
class Decision:
    """why: for the user. blocks: while this is open no verb goes on with the cluster, but for `down`."""

    act: Act
    why: str
    blocks: bool = False


def decide(intent: IntentRecord, record: ClusterRecord | None, seen: Seen | None) -> Decision:
    """record: what is known of the name now; None: no such cluster. seen: what its nodes say, `reached` meaning all hosts;
    None when nobody could say anything: it has no nodes yet, or its agent is of another version.
    """
    if intent.operation == "clean":
        return Decision(act=Act.FINISH, why="what a purge had to leave was looked for once more")
    if record is None or record.cluster_id != intent.details.get("cluster_id"):
        return _without_record(intent)
    choose = _BY_OPERATION.get(intent.operation)
    if choose is None:
        return Decision(act=Act.KEEP, why=f"this skylib does not know the operation {intent.operation!r}")
    return choose(intent, record, seen)


def never_up(record: ClusterRecord) -> bool:
    """Whether no launch of it was ever complete: its ports are written down when Ray has answered."""
    return not record.ray_port


def stands_whole(record: ClusterRecord, seen: Seen | None) -> bool:
    """Agent and Ray answer, and all ranks are there."""
    return seen is not None and seen.agent and seen.ray_ok and not seen.stopping and seen.alive == record.num_nodes


def _without_record(intent: IntentRecord) -> Decision:
    if intent.operation == "launch" and intent.details.get("new"):
        return Decision(act=Act.UNDO, why="nothing is left of what it began")
    if intent.operation in ("down", "release"):
        return Decision(act=Act.NOTE, why="the cluster is gone, as was asked")
    if intent.operation == "adopt":
        return Decision(act=Act.NOTE, why="it had not been taken up")
    return Decision(act=Act.NOTE, why="the cluster is gone")


def _launch(intent: IntentRecord, record: ClusterRecord, seen: Seen | None) -> Decision:
    if not intent.details.get("new") or not never_up(record):
        return _job(intent, record, seen)
    if not record.nodes:
        return Decision(act=Act.UNDO, why="it had not touched any host")
    if seen is not None and not seen.reached:
        return _cannot_tell()
    if stands_whole(record, seen):
        return Decision(act=Act.FINISH, why=f"the cluster stands: Ray has all {record.num_nodes} nodes")
    return Decision(act=Act.UNDO, why="the cluster does not stand", blocks=True)


def _start(intent: IntentRecord, record: ClusterRecord, seen: Seen | None) -> Decision:
    if stands_whole(record, seen) and (seen is None or seen.reached):
        return Decision(act=Act.FINISH, why=f"the cluster stands: Ray has all {record.num_nodes} nodes")
    if not intent.details.get("anew"):
        return Decision(act=Act.NOTE, why="agents may have been started anew; nothing was ended")
    if seen is not None and not seen.reached:
        return _cannot_tell()
    return Decision(act=Act.UNDO, why="the cluster does not stand; its files are kept", blocks=True)


def _stop(intent: IntentRecord, record: ClusterRecord, seen: Seen | None) -> Decision:
    if record.status is _STOPPED:
        return Decision(act=Act.NOTE, why="the cluster is stopped, as was asked")
    if seen is not None and not seen.reached:
        return _cannot_tell()
    return Decision(act=Act.FINISH, why="the cluster was to stop", blocks=True)


def _down(intent: IntentRecord, record: ClusterRecord, seen: Seen | None) -> Decision:
    if intent.details.get("purge"):
        return Decision(act=Act.FINISH, why="the cluster was to be forgotten, whatever its nodes say", blocks=True)
    if seen is not None and not seen.reached:
        return _cannot_tell()
    asked = "had given itself up" if intent.operation == "release" else "was to go"
    return Decision(act=Act.FINISH, why=f"the cluster {asked}", blocks=True)


def _autostop(intent: IntentRecord, record: ClusterRecord, seen: Seen | None) -> Decision:
    if record.status is _STOPPED or (seen is not None and (seen.stopping or seen.stopped)):
        what = "lease" if intent.operation == "lease" else "timer"
        return Decision(act=Act.NOTE, why=f"the cluster stops or has stopped: its {what} is not changed")
    if seen is None or not seen.reached or not seen.agent:
        return Decision(act=Act.KEEP, why="the agent does not answer; it is told when it does")
    return Decision(act=Act.FINISH, why="the agent answers")


def _job(intent: IntentRecord, record: ClusterRecord, seen: Seen | None) -> Decision:
    if record.status is _STOPPED or (seen is not None and seen.stopped):
        return Decision(act=Act.NOTE, why="the cluster is stopped: its queue is known again when it is started")
    if seen is None or not seen.agent:
        return Decision(act=Act.KEEP, why="the agent does not answer: what became of the job cannot be told")
    return Decision(act=Act.NOTE, why="the cluster is as it was")


def _adopt(intent: IntentRecord, record: ClusterRecord, seen: Seen | None) -> Decision:
    if record.status is not ClusterStatus.INIT:
        return Decision(act=Act.NOTE, why="the cluster is taken up")
    why = "it is not known how much of it was taken up: it is forgotten here, and goes on as it was; adopt it again"
    return Decision(act=Act.UNDO, why=why)


def _cannot_tell() -> Decision:
    return Decision(act=Act.KEEP, why="not every host can be reached: nothing is touched before", blocks=True)


_BY_OPERATION = {
    "launch": _launch,
    "start": _start,
    "stop": _stop,
    "down": _down,
    "release": _down,
    "autostop": _autostop,
    "lease": _autostop,
    "exec": _job,
    "cancel": _job,
    "adopt": _adopt,
}
