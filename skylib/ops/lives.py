"""Which life of a cluster's name is meant: a name may be used again when its cluster is gone."""

from __future__ import annotations

import attrs

from skylib.errors import ClusterNotUp
from skylib.models.cluster import ClusterRecord, ClusterStatus, check_is_text
from skylib.ops.look import look, next_status, note
from skylib.session import Session

__all__ = ["Life", "life_of", "require_up"]

_ASKABLE = (ClusterStatus.UP, ClusterStatus.AUTOSTOPPING, ClusterStatus.UNREACHABLE, ClusterStatus.INIT)


@attrs.frozen(kw_only=True)
class Life:
    """One cluster: standing (record is what is known of it now) or gone (record is None)."""

    name: str
    cluster_id: str
    record: ClusterRecord | None

    @property
    def askable(self) -> ClusterRecord | None:
        """The record, when the cluster's agent may answer; one that a launch is still making has no jobs yet."""
        record = self.record
        if record is None or not record.nodes or record.status not in _ASKABLE:
            return None
        return None if record.status is ClusterStatus.INIT and not record.ray_port else record


def life_of(session: Session, name: str, cluster_id: str | None = None) -> Life:
    """That life of the name; by default the one that stands, else the newest. Raises ClusterNotFound, InvalidSpecError."""
    record = session.store.cluster(check_is_text(name))
    if cluster_id:
        return Life(name=name, cluster_id=cluster_id, record=record if _is(record, cluster_id) else None)
    if record is not None:
        return Life(name=name, cluster_id=record.cluster_id, record=record)
    for past in session.store.history(name=name):
        return Life(name=name, cluster_id=past.cluster_id, record=None)
    raise session.not_found(name)


def _is(record: ClusterRecord | None, cluster_id: str) -> bool:
    return record is not None and record.cluster_id == cluster_id


def require_up(session: Session, name: str) -> ClusterRecord:
    """The record of a cluster that takes jobs; one that was not whole, or not reached, when it was last seen is asked again.

    Raises ClusterNotFound, ClusterNotUp.
    """
    record = session.require(name)
    hint = f"client.start({name!r}) brings it up"
    broken = record.status is ClusterStatus.INIT and bool(record.ray_port) and bool(record.nodes)
    if record.status is ClusterStatus.UNREACHABLE or broken:
        seen = look(session, record)
        found = next_status(record.status, record.num_nodes, seen) if seen is not None else record.status
        if found is ClusterStatus.UP:
            record = note(session, record, found) or session.require(name)
        if not broken:
            hint = f"client.status({name!r}, refresh=True) asks it again; unreachable is not gone"
    if record.status is not ClusterStatus.UP:
        raise ClusterNotUp(
            f"cluster {name!r} is {record.status.value}",
            cluster=name,
            status=record.status,
            since=record.status_since,
            hint=hint,
        )
    return record
