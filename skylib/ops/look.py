"""What the nodes of a cluster say when they are asked, and what follows from it for its status."""

from __future__ import annotations

import attrs

from skylib.errors import AgentError, AgentVersionError, TransportError
from skylib.models.cluster import ClusterRecord, ClusterStatus
from skylib.ops.lives import stopped_by_itself
from skylib.session import Session

__all__ = ["Seen", "look", "next_status"]


@attrs.frozen(kw_only=True)
class Seen:
    """What asking a cluster gave. reached: the head's host answered. agent: the agent did. alive: ranks that Ray has.

    stopped: the node says that it stopped by itself; released: and that the hosts are to be given back. stopping: it is
    about to.
    """

    reached: bool
    agent: bool = False
    ray_ok: bool = False
    alive: int = 0
    stopped: bool = False
    released: bool = False
    stopping: bool = False


def next_status(known: ClusterStatus, wanted: int, seen: Seen) -> ClusterStatus | None:
    """The status after a look; None when the cluster gave itself up. Unreachable is not gone, and what was stopped does
    not come up by itself.
    """
    if known is ClusterStatus.STOPPED:
        return ClusterStatus.STOPPED
    if not seen.reached:
        return ClusterStatus.UNREACHABLE
    if seen.stopping:
        return ClusterStatus.AUTOSTOPPING
    if seen.agent and seen.ray_ok and seen.alive == wanted:
        return ClusterStatus.UP
    if seen.stopped and not seen.agent:
        return None if seen.released else ClusterStatus.STOPPED
    return ClusterStatus.INIT


def look(session: Session, record: ClusterRecord) -> Seen | None:
    """None when the answer says nothing: the agent is of another version."""
    try:
        info = session.agent(record).call("info", answer_within_s=20.0)
    except AgentVersionError:
        return None
    except TransportError:
        return Seen(reached=False)
    except AgentError:
        return _look_without_agent(session, record)
    if info.get("asleep"):  # woken to be read, and nothing else
        return _look_without_agent(session, record)
    return Seen(
        reached=True,
        agent=True,
        ray_ok=bool(info.get("ray_ok")),
        alive=len(info.get("alive_ranks", ())),
        stopping=bool(info.get("stopping")),
    )


def _look_without_agent(session: Session, record: ClusterRecord) -> Seen:
    try:
        said = stopped_by_itself(session, record)
    except TransportError:
        return Seen(reached=False)
    if said is None:
        return Seen(reached=True)
    return Seen(reached=True, stopped=True, released=bool(said.get("down")))
