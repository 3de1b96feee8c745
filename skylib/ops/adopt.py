"""Taking up a cluster that this home's state does not have, from what its nodes say."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable

import attrs

from skylib.errors import ClusterBusy, ClusterNotFound, ConnectError, InvalidSpecError, SkyError
from skylib.events import EventSink, span
from skylib.jobs import polling
from skylib.models.cluster import ClusterRecord, ClusterStatus, NodeRecord, check_cluster_name
from skylib.models.discovered import Discovered, DiscoveredMember, MemberState
from skylib.ops.discover import Survey, ask, survey, with_health
from skylib.ops.holding import hold
from skylib.ops.keeping import bring_logs_home
from skylib.ops.marks import Place, merge, record_of
from skylib.ops.status import status
from skylib.runtime.adopted import change_owner, restore_files
from skylib.session import Session
from skylib.state.transitions import no_capacity
from skylib.transport.fanout import fanout

__all__ = ["adopt"]

_EVENTS = 1000  # of the name, in which the end of a life is looked for


def adopt(
    session: Session, name: str, *, cluster_id: str | None = None, hosts: str | Iterable[str] | None = None
) -> ClusterRecord:
    """The record of a cluster that nodes tell of: made, with its claims and the jobs that its agent knows.

    One that is known already, by the same id, is looked at and returned.
    """
    check_cluster_name(name)
    with session.operation("adopt", name) as events, hold(session, name, "adopt", events):
        known = session.store.cluster(name)
        if known is None:
            asked = survey(session, hosts, events)
            found = _the_one(name, cluster_id, asked.merged.clusters)
            if found is None:
                raise _not_found(name, cluster_id, asked)
            (found,) = with_health(session, [_with_all_asked(session, found, asked, events)], events)
            return _take_up(session, found, events)
        wanted = cluster_id or _id_there(session, known, hosts, events)
        if wanted != known.cluster_id:
            raise _taken(known, wanted)
    seen = status(session, [name], refresh_first=True)
    return seen[0] if seen else session.require(name)


def _id_there(
    session: Session, known: ClusterRecord, hosts: str | Iterable[str] | None, events: EventSink
) -> str:
    """The id that hosts tell of under a name that is known here; when none does, that which is known."""
    try:
        found = _the_one(known.name, None, survey(session, hosts, events).merged.clusters)
    except ConnectError:
        found = None
    return found.cluster_id if found is not None else known.cluster_id


def _the_one(name: str, cluster_id: str | None, found: Iterable[Discovered]) -> Discovered | None:
    """The cluster that is meant, if it is there. Raises InvalidSpecError when there are several."""
    same = [each for each in found if each.name == name and cluster_id in (None, each.cluster_id)]
    if len(same) > 1:
        ids = {each.cluster_id: f"on {', '.join(each.answered)}, of {each.home or 'an unknown home'}" for each in same}
        raise InvalidSpecError(
            f"{len(same)} clusters are called {name!r}: {', '.join(ids)}",
            field="cluster_id",
            cluster=name,
            cluster_ids=tuple(ids),
            evidence="\n".join(f"{number}: {where}" for number, where in ids.items()),
            hint=f"say which: client.adopt({name!r}, cluster_id={same[0].cluster_id!r})",
        )
    return same[0] if same else None


def _not_found(name: str, cluster_id: str | None, asked: Survey) -> ClusterNotFound:
    names = tuple(sorted({each.name for each in asked.merged.clusters}))
    problems = asked.merged.problems
    others = f"clusters there: {', '.join(names)}" if names else "client.discover() lists those that hosts tell of"
    return ClusterNotFound(
        f"no host that answered tells of a cluster {name!r}" + (f" with id {cluster_id}" if cluster_id else ""),
        cluster=name,
        known=names,
        problems=dict(problems),
        evidence="\n".join(f"{host}: {problem}" for host, problem in problems.items()) or None,
        hint=others,
    )


def _taken(known: ClusterRecord, cluster_id: str) -> ClusterBusy:
    return ClusterBusy(
        f"this home has another cluster {known.name!r} ({known.cluster_id})",
        cluster=known.name,
        status=known.status,
        since=known.launched_at,
        holder=known.cluster_id,
        retryable=False,
        hint=f"client.down({known.name!r}) first, or adopt {cluster_id} with another home: skylib.Client(home)",
    )


def _with_all_asked(session: Session, found: Discovered, asked: Survey, events: EventSink) -> Discovered:
    """Members that were not among the hosts are asked, too: where this home, or else the mark, says that they are."""
    extra = [_place(each, found) for each in found.members if each.state is MemberState.NOT_ASKED]
    if not extra:
        return found
    answers = (*asked.answers, *ask(session, extra, events))
    places = (*asked.places, *(place for place in extra if place not in asked.places))
    merged = merge(answers, places)
    return next(each for each in merged.clusters if each.cluster_id == found.cluster_id)


def _place(member: DiscoveredMember, found: Discovered) -> Place:
    """A key file that is not on this machine is not the one: that of a member which answered is, or whichever fits."""
    address = member.node.address
    if address.identity_file and not os.path.exists(os.path.expanduser(address.identity_file)):
        answered = (each.node.address for each in found.members if each.state is MemberState.ANSWERED)
        keys = (each.identity_file for each in answered if each.identity_file)
        address = attrs.evolve(address, identity_file=next(keys, None))
    return Place(infra=found.infra, host=member.host, address=address)


def _take_up(session: Session, found: Discovered, events: EventSink) -> ClusterRecord:
    """Written down with its hosts before anything else: usage in this home begins now, when it is up."""
    record = _with_pythons(record_of(found, at=session.clock(), owner=session.user_hash), found)
    _refuse_unfit(session, record)
    with session.intent("adopt", record.name, cluster_id=record.cluster_id):
        try:
            return _write_down(session, record, found, events)
        except BaseException:  # half of it would be worse than none; the cluster itself goes on
            session.store.forget_cluster(record.name, record.cluster_id)
            raise


def _write_down(session: Session, record: ClusterRecord, found: Discovered, events: EventSink) -> ClusterRecord:
    with span(events, "adopt.claim", cluster=record.name, status=record.status.value):
        session.store.begin_launch(record, again=True)
        hosts = sorted({node.host for node in record.nodes})
        session.store.claim_hosts(record.infra, hosts, record.name, record.cluster_id, session.clock())
    with span(events, "adopt.files", cluster=record.name) as step:
        step.note(problems=_restore(session, record, found))
    with span(events, "adopt.jobs", cluster=record.name) as step:
        step.note(missing=_bring_jobs(session, record, found))
    with span(events, "adopt.marks", cluster=record.name) as step:
        step.note(problems=_own(session, record, found))
    return session.store.settle(record.name, record.status, at=session.clock(), cluster_id=record.cluster_id)


def _refuse_unfit(session: Session, record: ClusterRecord) -> None:
    """Raises before anything is written what would be raised after it."""
    held = {host: by for (infra, host), by in session.store.claims(record.infra).items() if by != record.name}
    hosts = {node.host for node in record.nodes}
    if hosts & held.keys():
        raise no_capacity(record.infra, {host: held[host] for host in sorted(hosts & held.keys())}, len(hosts))
    for life in session.store.history(name=record.name):
        if life.cluster_id == record.cluster_id and life.ended_at is not None and not _only_missed(session, record):
            raise ClusterBusy(
                f"this home has taken cluster {record.name!r} ({record.cluster_id}) down before",
                cluster=record.name,
                holder=None,
                since=life.ended_at,
                retryable=False,
                hint=f"client.down({record.name!r}, purge=True) ends what is left of it on its hosts",
            )


def _only_missed(session: Session, record: ClusterRecord) -> bool:
    """Whether that life ended since nothing of it was found, or by itself, and not because somebody took it down."""
    ends = [
        event.details
        for event in session.store.events(record.name, limit=_EVENTS)
        if event.cluster_id == record.cluster_id and event.kind == "status" and event.details.get("to") is None
    ]
    return bool(ends) and bool(ends[-1].get("reason"))


def _bring_jobs(session: Session, record: ClusterRecord, found: Discovered) -> str:
    """The jobs that its agent knows; of one that is stopped, their logs, too. What is missing, in words."""
    if found.members[0].state is not MemberState.ANSWERED:
        return "the head did not answer"
    if record.status is ClusterStatus.STOPPED:
        missing = bring_logs_home(session, record)
        session.forget_agent(record.cluster_id)
        return missing
    try:
        session.store.save_jobs(record.cluster_id, polling.queue(session.agent(record), record.name))
    except SkyError as error:
        return error.message
    return ""


def _own(session: Session, record: ClusterRecord, found: Discovered) -> dict[str, str]:
    """Nodes that answered name this home from now on; why others do not, by host."""

    def change(node: NodeRecord) -> None:
        home = str(session.home.root)
        change_owner(session.transport(node.address), node, record.cluster_id, owner=record.owner, home=home)

    return _on_each(session, record, found, MemberState.ANSWERED, change)


def _with_pythons(record: ClusterRecord, found: Discovered) -> ClusterRecord:
    """Of a `local` cluster whose files are gone its Python is, too: the one that runs this ends what runs of it."""
    if record.infra != "local" or os.path.exists(record.head.python):
        return record
    return attrs.evolve(record, nodes=tuple(attrs.evolve(node, python=sys.executable) for node in record.nodes))


def _restore(session: Session, record: ClusterRecord, found: Discovered) -> dict[str, str]:
    """Nodes whose files are gone get those that end and start a cluster; what could not be had, by host."""

    def restore(node: NodeRecord) -> None:
        restore_files(session.transport(node.address), node, record, home=str(session.home.root), user=session.user)

    return _on_each(session, record, found, MemberState.LOST, restore)


def _on_each(
    session: Session, record: ClusterRecord, found: Discovered, state: MemberState, act: Callable[[NodeRecord], None]
) -> dict[str, str]:
    """Errors of nodes, by host; one that has trouble keeps no cluster from being known."""
    nodes = [record.nodes[each.rank] for each in found.members if each.state is state]
    problems: dict[str, str] = {}
    for outcome in fanout(act, nodes, limit=session.config.ssh.parallel):
        if isinstance(outcome.error, SkyError):
            problems[outcome.item.host] = outcome.error.message
        else:
            outcome.get()
    return problems
