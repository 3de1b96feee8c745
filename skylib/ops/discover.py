"""Asking machines which clusters they serve, whoever made them. Nothing is changed anywhere."""

from __future__ import annotations

import difflib
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import CancelledError
from typing import Any

import attrs

from skylib import __version__
from skylib.errors import AgentError, AgentVersionError, ConnectError, InvalidSpecError, SkyError, TransportError
from skylib.events import Event, EventSink, Phase, span
from skylib.facts.marks import look_at
from skylib.models.cluster import AutostopRecord
from skylib.models.discovered import ClusterHealth, Discovered, MemberState
from skylib.models.frozen_map import FrozenMap
from skylib.models.infra import Infra
from skylib.models.node import HostAddress
from skylib.ops.checks import named
from skylib.ops.marks import Answer, Merged, Place, merge
from skylib.providers.pool_file import pick_pools
from skylib.runtime.agent_client import AgentClient, bridge_command
from skylib.runtime.layout import TEMP_DIR
from skylib.runtime.teardown import layout_of
from skylib.session import Session
from skylib.transport.fanout import fanout

__all__ = ["Survey", "ask", "chosen", "discover", "survey", "with_health"]

_log = logging.getLogger(__name__)
LOOK_S = 20.0  # one command on one host, after the connection stands
AGENT_S = 10.0
_JITTER_S = 0.02
_LOCAL = "local"


@attrs.frozen(kw_only=True)
class Survey:
    """What was asked, and what came of it. places: every machine that this home has a name for."""

    places: tuple[Place, ...]
    answers: tuple[Answer, ...]
    merged: Merged


def discover(session: Session, hosts: str | Iterable[str] | None = None) -> list[Discovered]:
    """Clusters that the hosts tell of, by name. Raises InvalidSpecError, PoolNotFound, ConfigError; ConnectError when no
    host answered at all.
    """
    with session.operation("discover") as events:
        found = survey(session, hosts, events)
        _tell(found.merged, events)
        return list(with_health(session, found.merged.clusters, events))


def survey(session: Session, hosts: str | Iterable[str] | None, events: EventSink) -> Survey:
    """Every host asked once, all at once. Raises as `discover`."""
    hosts = hosts if isinstance(hosts, str) else named(hosts, field="hosts")
    places = _places(session, events)
    answers = ask(session, chosen(session, places, hosts), events)
    if answers and all(answer.look is None for answer in answers):
        told = {name.host: answer.error for answer in answers for name in answer.names}
        raise ConnectError(
            f"none of {len(answers)} hosts answered" if len(answers) > 1 else f"{next(iter(told))} did not answer",
            host=next(iter(told)),
            problems=told,
            evidence="\n".join(f"{host}: {error}" for host, error in told.items()),
            hint="clusters that they serve, if any, are not known for that reason; ask again when they answer",
        )
    return Survey(places=places, answers=answers, merged=merge(answers, places, known=_known(session)))


def ask(session: Session, wanted: Sequence[Place], events: EventSink) -> tuple[Answer, ...]:
    """One short command on each machine, however many names it has here. Errors become answers."""
    names: dict[HostAddress, tuple[Place, ...]] = {}
    for place in wanted:
        names[place.address] = (*names.get(place.address, ()), place)

    def look(address: HostAddress) -> Answer:
        with span(events, "discover.look", node=address.host):
            found = look_at(
                session.transport(address), local=address.kind == _LOCAL, temp_dir=TEMP_DIR, timeout_s=LOOK_S
            )
            return Answer(names=names[address], look=found)

    ssh = session.config.ssh
    outcomes = fanout(
        look, names, limit=ssh.parallel, jitter_s=_JITTER_S, patience_s=ssh.connect_timeout_s + LOOK_S + 5.0
    )
    answers = []
    for outcome in outcomes:
        error = outcome.error
        if error is None:
            answers.append(outcome.get())
            continue
        if not isinstance(error, (SkyError, TimeoutError, CancelledError)):
            raise error
        why = error.message if isinstance(error, SkyError) else "it did not answer in time"
        answers.append(Answer(names=names[outcome.item], error=why))
    return tuple(answers)


def with_health(session: Session, found: Sequence[Discovered], events: EventSink) -> tuple[Discovered, ...]:
    """The agents of those that run are asked, too."""
    return tuple(outcome.get() for outcome in fanout(lambda each: _ask_agent(session, each, events), found, limit=16))


def _ask_agent(session: Session, found: Discovered, events: EventSink) -> Discovered:
    """An agent that is asleep was woken to be read: the cluster does not run."""
    head = found.members[0]
    if head.state is not MemberState.ANSWERED or found.stopped:
        return found
    agent = AgentClient(
        session.transport(head.node.address),
        bridge_command(head.node.python, layout_of(head.node)),
        cluster=found.name,
        cluster_id=found.cluster_id,
        version=__version__,
        call_timeout_s=AGENT_S,
    )
    try:
        with span(events, "discover.agent", node=head.host, cluster=found.name):
            info = agent.call("info", answer_within_s=AGENT_S)
    except AgentVersionError as error:
        return _with_problem(found, head.host, error, ClusterHealth.CANNOT_TELL)
    except AgentError as error:
        return _with_problem(found, head.host, error, ClusterHealth.NOT_WHOLE)
    except TransportError as error:
        return _with_problem(found, head.host, error, ClusterHealth.CANNOT_TELL)
    finally:
        agent.close()
    if info.get("asleep"):
        return attrs.evolve(found, health=ClusterHealth.NOT_WHOLE, stopped=True)
    whole = bool(info.get("ray_ok")) and len(info.get("alive_ranks", ())) == len(found.members)
    stopping = bool(info.get("stopping"))
    timer = info.get("autostop")
    return attrs.evolve(
        found,
        health=ClusterHealth.UP if whole and not stopping else ClusterHealth.NOT_WHOLE,
        half_made=False,
        stopping=stopping,
        autostop=_timer(timer) if isinstance(timer, dict) else None,
        lease_s=info["lease_s"] if isinstance(info.get("lease_s"), (int, float)) else found.lease_s,
    )


def _timer(told: Mapping[str, Any]) -> AutostopRecord:
    """As an agent tells it; one of an older version says less."""
    known = {field.name for field in attrs.fields(AutostopRecord)}
    return AutostopRecord(**{name: value for name, value in told.items() if name in known})


def _with_problem(found: Discovered, host: str, error: SkyError, health: ClusterHealth) -> Discovered:
    return attrs.evolve(found, health=health, problems=FrozenMap({**found.problems, host: error.message}))


def _known(session: Session) -> set[str]:
    return set(session.store.names().values())


def _places(session: Session, events: EventSink) -> tuple[Place, ...]:
    """Every host of every pool, and this machine."""
    context = session.provider_context(events)
    found = [
        Place(infra=pool.infra, host=host.name, address=host.address)
        for pool in context.pools().values()
        for host in pool.hosts
    ]
    here = Place(infra=_LOCAL, host=context.machine, address=HostAddress(kind=_LOCAL, host=context.machine))
    return (*found, here)


def chosen(session: Session, places: Sequence[Place], hosts: str | Iterable[str] | None) -> tuple[Place, ...]:
    """Those that are meant: all; an infra's; or by name. Raises InvalidSpecError, PoolNotFound."""
    if hosts is None:
        return tuple(places)
    if isinstance(hosts, str):
        infra = _infra(hosts)
        if infra is not None:
            if infra.cloud == "ssh":
                context = session.provider_context(lambda event: None)
                pick_pools(context.pools(), infra, file=session.home.ssh_node_pools)  # says which there are
            return tuple(p for p in places if p.infra == str(infra) or p.infra.startswith(f"{infra}/"))
        hosts = [hosts]
    found: list[Place] = []
    for name in hosts:
        same = [place for place in places if name == place.host or (name == _LOCAL and place.infra == _LOCAL)]
        if not same:
            near = difflib.get_close_matches(str(name), [place.host for place in places], n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"hosts are named in {session.home.ssh_node_pools}"
            raise InvalidSpecError(f"no pool has a host {name!r}", field="hosts", hint=hint)
        found += same
    return tuple(found)


def _infra(text: str) -> Infra | None:
    """The infra that is meant; None when it is a host's name."""
    try:
        infra = Infra.parse(text)
    except InvalidSpecError:
        return None
    return infra if infra.cloud in ("ssh", _LOCAL) else None


def _tell(merged: Merged, events: EventSink) -> None:
    """Machines whose trouble is no cluster's: they may serve one that nobody else tells of."""
    for host, problem in merged.problems.items():
        _log.warning("%s: %s; clusters that it may serve are not known", host, problem)
        facts = {"node": host, "problem": problem}
        events(Event(step="discover.problem", phase=Phase.NOTE, at=time.time(), facts=facts))
