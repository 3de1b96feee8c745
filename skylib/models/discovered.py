"""Clusters as their nodes tell of them, whoever made them: what discover returns, and what adopt makes a record of."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

import attrs

from skylib.models.cluster import AutostopRecord, NodeRecord
from skylib.models.frozen_map import FrozenMap
from skylib.models.mark import JobIds

__all__ = ["ClusterHealth", "Discovered", "DiscoveredMember", "MemberState"]


class MemberState(str, Enum):
    """What asking a member's host gave.

    ANSWERED: its cluster.json is this cluster's. SILENT: the host did not answer, which does not mean that it is gone.
    NOT_ASKED: it was not among the hosts. UNMARKED: it answered and has no cluster.json. OTHER: it has another cluster's,
    or one that cannot be read.
    """

    ANSWERED = "answered"
    SILENT = "silent"
    NOT_ASKED = "not asked"
    UNMARKED = "unmarked"
    OTHER = "other"
    LOST = "lost"


class ClusterHealth(str, Enum):
    """UP: the agent answers, and Ray has all members. CANNOT_TELL: the head did not answer, or speaks another protocol."""

    UP = "up"
    NOT_WHOLE = "not whole"
    CANNOT_TELL = "cannot tell"


@attrs.frozen(kw_only=True)
class DiscoveredMember:
    """One node as the marks have it. node: as a record would have it, reached as this home reaches its host.

    detail: why it did not answer, or whose mark it has, "" otherwise.
    """

    rank: int
    host: str
    state: MemberState
    node: NodeRecord
    detail: str = ""


@attrs.frozen(kw_only=True, repr=False)
class Discovered:
    """One cluster that nodes tell of. infra: as this home calls it. owner: client hash of the home that has it; home: where.

    known: this home's state has it. stopped: nothing of it runs. half_made: it was begun and has never had a job table.
    stopping: the nodes are about to stop by themselves. job_ids: of all jobs it is known to have had. problems: by host,
    in words. Times are unix seconds.
    """

    name: str
    cluster_id: str
    infra: str
    owner: str
    home: str
    known: bool = False
    health: ClusterHealth = ClusterHealth.CANNOT_TELL
    stopped: bool = False
    half_made: bool = False
    stopping: bool = False
    launched_at: float = 0.0
    members: tuple[DiscoveredMember, ...] = ()
    ray_port: int = 0
    dashboard_port: int = 0
    versions: Mapping[str, str] = attrs.field(factory=FrozenMap)
    job_ids: JobIds = attrs.field(factory=JobIds)
    resources: Mapping[str, object] = attrs.field(factory=dict, eq=False)
    autostop: AutostopRecord | None = None
    lease_s: float | None = None
    problems: Mapping[str, str] = attrs.field(factory=FrozenMap)

    @property
    def answered(self) -> tuple[str, ...]:
        """Hosts of the members whose cluster.json is this cluster's."""
        return tuple(each.host for each in self.members if each.state is MemberState.ANSWERED)

    @property
    def missing(self) -> tuple[str, ...]:
        """Hosts of the other members."""
        return tuple(each.host for each in self.members if each.state is not MemberState.ANSWERED)

    def __repr__(self) -> str:
        words = [f"{self.name!r}", self.infra, self.health.value, f"{len(self.answered)}/{len(self.members)} members"]
        words += ["stopped"] if self.stopped else []
        words += [f"jobs {_cut(str(self.job_ids))}"] if self.job_ids else []
        words += [f"{len(self.problems)} problems"] if self.problems else []
        return f"<Discovered {', '.join(words)}, {'known' if self.known else 'not known'} here, {self.cluster_id}>"


def _cut(text: str) -> str:
    return text if len(text) <= 30 else text[:27] + "..."
