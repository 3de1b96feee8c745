"""From what machines say to clusters: marks merged by cluster id, and the record that each makes. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import attrs

from skylib.facts.marks import FoundMark, Look, Root
from skylib.models.cluster import ClusterRecord, ClusterStatus, NodeRecord
from skylib.models.discovered import ClusterHealth, Discovered, DiscoveredMember, MemberState
from skylib.models.frozen_map import FrozenMap
from skylib.models.mark import ClusterMark, JobIds, MarkMember
from skylib.models.node import HostAddress
from skylib.runtime.layout import ENV_NAME, TEMP_DIR

__all__ = ["Answer", "Merged", "Place", "adopted_status", "merge", "record_of"]


@attrs.frozen(kw_only=True)
class Place:
    """A machine that this home can name. infra: "ssh/<pool>" or "local"; host: its name there."""

    infra: str
    host: str
    address: HostAddress


@attrs.frozen(kw_only=True)
class Answer:
    """What came of asking one machine: a look, or why there is none. names: every name that this home has for it."""

    names: tuple[Place, ...]
    look: Look | None = None
    error: str = ""

    @property
    def local(self) -> bool:
        return self.names[0].infra == "local"


@attrs.frozen(kw_only=True)
class Merged:
    """clusters: by name, then id. problems: by host, of machines whose trouble is no known cluster's."""

    clusters: tuple[Discovered, ...]
    problems: Mapping[str, str]


@attrs.frozen(kw_only=True)
class _Sighting:
    """One cluster.json. root: the node's. lost: it is not there, but Ray's temp dir has the same."""

    mark: ClusterMark
    answer: Answer
    look: Look
    root: Root
    lost: bool = False

    @property
    def rank(self) -> int | None:
        """Which member this is; schema 1 does not say, so it is told by the root (`local`), or by host or IP."""
        if self.mark.rank is not None and not self.answer.local:
            return self.mark.rank
        for member in self.mark.members:
            if member.root != self.root.path:
                continue
            if self.answer.local or any(member.host == p.host or member.ip == p.address.host for p in self.answer.names):
                return member.rank
        return None


def merge(answers: Sequence[Answer], places: Sequence[Place], *, known: Iterable[str] = ()) -> Merged:
    """places: all machines that this home has a name for, asked or not. known: cluster ids that its state has.

    One machine's rubbish is that machine's problem. The head's mark counts where marks differ in what is the cluster's,
    and each member's own in what is the member's.
    """
    answers = _each_machine_once(answers)
    sightings: dict[str, list[_Sighting]] = {}
    problems: dict[str, str] = {}
    for answer in answers:
        name = answer.names[0].host
        if answer.look is None:
            problems[name] = answer.error
            continue
        own = [*_own_marks(answer, answer.look)]
        broken = [each.mark for each in answer.look.roots.values() if each.mark is not None and each.mark.mark is None]
        broken += [mark for mark in answer.look.temp_marks if mark.mark is None and answer.local]
        if broken:
            problems[name] = "; ".join(f"{mark.path}: {mark.problem}" for mark in broken)
        for sighting in own:
            sightings.setdefault(sighting.mark.cluster_id, []).append(sighting)
    ids = frozenset(known)
    clusters = [_cluster(found, answers, places, known=cluster_id in ids) for cluster_id, found in sightings.items()]
    told = {member.host for cluster in clusters for member in cluster.members}
    return Merged(
        clusters=tuple(sorted(clusters, key=lambda each: (each.name, each.cluster_id))),
        problems=FrozenMap({host: text for host, text in problems.items() if host not in told}),
    )


def _each_machine_once(answers: Sequence[Answer]) -> list[Answer]:
    """A machine that pools name twice, and an account that was asked twice, are one answer with all its names."""
    found: dict[object, Answer] = {}
    for answer in answers:
        look = answer.look
        key = (answer.local, look.machine, look.uid, look.home) if look is not None and look.machine else object()
        first = found.get(key)
        found[key] = answer if first is None else attrs.evolve(first, names=(*first.names, *answer.names))
    return list(found.values())


def _own_marks(answer: Answer, look: Look) -> Iterable[_Sighting]:
    """The marks that are about this infra: an account may be an SSH host of somebody, and have a `local` cluster."""
    stands = False
    for root in look.roots.values():
        stands = stands or root.mark is not None
        if root.mark is not None and root.mark.mark is not None and _is_about(root.mark.mark, answer):
            yield _Sighting(mark=root.mark.mark, answer=answer, look=look, root=root)
    for found in () if stands else look.temp_marks:
        if found.mark is not None and _is_about(found.mark, answer):
            for member in found.mark.members:
                if answer.local or (member.root == look.home and member.rank == found.mark.rank):
                    root = Root(path=member.root)
                    yield _Sighting(mark=found.mark, answer=answer, look=look, root=root, lost=True)


def _is_about(mark: ClusterMark, answer: Answer) -> bool:
    return (mark.infra == "local") == answer.local


def _cluster(
    found: Sequence[_Sighting], answers: Sequence[Answer], places: Sequence[Place], *, known: bool
) -> Discovered:
    """One cluster of all its sightings, which is at least one."""
    problems: dict[str, str] = {}
    by_rank: dict[int, _Sighting] = {}
    for sighting in found:
        host = sighting.answer.names[0].host
        if sighting.rank is None:
            problems[host] = "its cluster.json does not say which member it is"
        elif sighting.rank in by_rank:
            other = by_rank[sighting.rank].answer.names[0].host
            problems[host] = f"it says that it is rank {sighting.rank}, as {other} does"
        else:
            by_rank[sighting.rank] = sighting
    first = by_rank[min(by_rank)] if by_rank else found[0]
    mark = first.mark
    for sighting in by_rank.values():
        if _differs(sighting.mark, mark):
            problems.setdefault(sighting.answer.names[0].host, f"its cluster.json differs from that of rank {first.rank}")
    infra = _infra(mark, by_rank.values(), places)
    members = tuple(_member(each, mark, infra, by_rank.get(each.rank), answers, places) for each in mark.members)
    for member in members:
        if member.detail:
            problems.setdefault(member.host, member.detail)
    job_ids = JobIds()
    for sighting in found:
        job_ids |= sighting.mark.job_ids
    looks = [sighting.look for sighting in found]
    runs = any(look.running.get(mark.cluster_id, 0) for look in looks)
    head = by_rank.get(0)
    return Discovered(
        name=mark.name,
        cluster_id=mark.cluster_id,
        infra=infra,
        owner=mark.owner,
        home=mark.home,
        known=known,
        health=ClusterHealth.NOT_WHOLE if head and (head.lost or not runs) else ClusterHealth.CANNOT_TELL,
        stopped=head is not None and not runs,
        half_made=head is None or not head.root.jobs,
        stopping=False,
        launched_at=mark.launched_at,
        members=members,
        ray_port=mark.ray_port,
        dashboard_port=mark.dashboard_port,
        versions=mark.versions,
        job_ids=job_ids,
        resources=mark.resources,
        autostop=mark.autostop,
        lease_s=mark.lease_s,
        problems=FrozenMap(problems),
    )


def _differs(mark: ClusterMark, head: ClusterMark) -> bool:
    """In what all members of a cluster must have alike."""
    return (mark.name, mark.infra, [(m.rank, m.root, m.ip) for m in mark.members]) != (
        head.name,
        head.infra,
        [(m.rank, m.root, m.ip) for m in head.members],
    )


def _infra(mark: ClusterMark, found: Iterable[_Sighting], places: Sequence[Place]) -> str:
    """What this home calls the place: as the mark does when it has such a pool, else the pool of most that answered."""
    if mark.infra == "local" or any(place.infra == mark.infra for place in places):
        return mark.infra
    counts: dict[str, int] = {}
    for sighting in found:
        for infra in {place.infra for place in sighting.answer.names}:
            counts[infra] = counts.get(infra, 0) + 1
    return max(sorted(counts), key=lambda infra: counts[infra]) if counts else mark.infra


def _member(
    told: MarkMember,
    mark: ClusterMark,
    infra: str,
    sighting: _Sighting | None,
    answers: Sequence[Answer],
    places: Sequence[Place],
) -> DiscoveredMember:
    if sighting is not None:
        place = _preferred(sighting.answer.names, infra)
        own = sighting.mark.member(told.rank) or told
        node = _node(own, mark, place.host, place.address, sighting.look)
        state, detail = MemberState.ANSWERED, ""
        if sighting.lost:
            count = sighting.look.running.get(mark.cluster_id, 0)
            state, detail = MemberState.LOST, f"its files in {told.root} are gone; {count} of its processes run"
        return DiscoveredMember(rank=told.rank, host=place.host, state=state, node=node, detail=detail)
    named = _place_of(told, infra, places)
    address = named.address if named is not None else _told_address(told)
    host = named.host if named is not None else told.host
    answer = next((each for each in answers if any(_same(name.address, address) for name in each.names)), None)
    state, detail = _state(answer, mark)
    return DiscoveredMember(rank=told.rank, host=host, state=state, node=_node(told, mark, host, address), detail=detail)


def _state(answer: Answer | None, mark: ClusterMark) -> tuple[MemberState, str]:
    """Of a member that has no mark of this cluster."""
    if answer is None:
        return MemberState.NOT_ASKED, ""
    if answer.look is None:
        return MemberState.SILENT, answer.error
    others: list[FoundMark] = [root.mark for root in answer.look.roots.values() if root.mark is not None]
    others = [each for each in others if each.mark is None or each.mark.cluster_id != mark.cluster_id]
    if others and not answer.local:
        other = others[0]
        if other.mark is None:
            return MemberState.OTHER, f"{other.path}: {other.problem}"
        return MemberState.OTHER, f"it serves cluster {other.mark.name!r} ({other.mark.cluster_id})"
    return MemberState.UNMARKED, "it has no cluster.json of this cluster"


def _preferred(names: Sequence[Place], infra: str) -> Place:
    return next((place for place in names if place.infra == infra), names[0])


def _place_of(member: MarkMember, infra: str, places: Sequence[Place]) -> Place | None:
    """This home's name for a member that did not answer: of the same name in that pool, or of the same address."""
    there = [place for place in places if place.infra == infra]
    if infra == "local":
        return there[0] if there else None
    told = _told_address(member)
    same = [place for place in there if place.host == member.host]
    same += [place for place in (*there, *places) if _same(place.address, told)]
    return same[0] if same else None


def _same(one: HostAddress, other: HostAddress) -> bool:
    """Whether both lead to the same account, as far as their words say: no user means whichever is configured."""
    users = {one.user, other.user} - {None}
    return (one.kind, one.host, one.port or 22) == (other.kind, other.host, other.port or 22) and len(users) < 2


def _told_address(member: MarkMember) -> HostAddress:
    return member.address or HostAddress(kind="ssh", host=member.ip)


def _node(
    member: MarkMember, mark: ClusterMark, host: str, address: HostAddress, look: Look | None = None
) -> NodeRecord:
    """The record of a member. A mark of schema 1 says neither temp dir nor environment: the usual ones are meant."""
    temp_dir = member.temp_dir or TEMP_DIR
    if not member.temp_dir and look is not None:
        for found in look.temp_marks:
            if found.mark is not None and found.mark.cluster_id == mark.cluster_id:
                temp_dir = found.path.rpartition("/")[0]
    env = member.env or f"{member.root}/{ENV_NAME}"
    return NodeRecord(
        rank=member.rank,
        host=host,
        address=address,
        internal_ip=member.ip,
        root=member.root,
        temp_dir=temp_dir,
        env=env,
        python=member.python or f"{env}/bin/python",
        cpus=member.cpus,
        memory_gib=member.memory_gib,
        gpus=member.gpus,
        price_per_hour=member.price_per_hour,
        custom=member.custom,
        runtime_digest=member.runtime_digest,
    )


def adopted_status(found: Discovered) -> ClusterStatus:
    """What a cluster is taken up as. While any member could not be asked nobody knows; a look at it later tells."""
    if any(each.state in (MemberState.SILENT, MemberState.NOT_ASKED) for each in found.members):
        return ClusterStatus.UNREACHABLE
    if found.stopping:
        return ClusterStatus.AUTOSTOPPING
    if found.health is ClusterHealth.UP:
        return ClusterStatus.UP
    return ClusterStatus.STOPPED if found.stopped and not found.half_made else ClusterStatus.INIT


def record_of(found: Discovered, *, at: float, owner: str) -> ClusterRecord:
    """The cluster as this home's state has it from now on. at: now; the time of its launch is kept."""
    return ClusterRecord(
        name=found.name,
        cluster_id=found.cluster_id,
        status=adopted_status(found),
        status_since=at,
        infra=found.infra,
        num_nodes=len(found.members),
        launched_at=found.launched_at or at,
        nodes=tuple(each.node for each in found.members),
        resources=found.resources,
        ray_port=found.ray_port,
        dashboard_port=found.dashboard_port,
        ray_version=found.versions.get("ray", ""),
        autostop=found.autostop,
        lease_s=found.lease_s,
        owner=owner,
        last_use="adopt",
    )
