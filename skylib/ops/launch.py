"""The main verb: a cluster that stands, its files in place, the job in its queue."""

from __future__ import annotations

import random
import secrets
import time

import attrs

from skylib.errors import ClusterBusy, NoCapacityError
from skylib.events import Event, EventSink, Phase
from skylib.jobs.submit import Submitted, job_spec, setup_hash, submit
from skylib.models.autostop import Autostop
from skylib.models.cluster import AutostopRecord, ClusterRecord, ClusterStatus, check_cluster_name
from skylib.models.plan import Plan
from skylib.models.task import Task
from skylib.ops.checks import check_task, refuse_misfit
from skylib.ops.files import deliver, deliver_to, files_digest, prepare_files
from skylib.ops.provision import choose, make, revive, take_away
from skylib.session import Session
from skylib.staging.plan import SyncPlan

__all__ = ["Options", "autostop_of", "launch", "name_for"]

FIRST_RETRY_S = 2.0
LONGEST_RETRY_S = 30.0


@attrs.frozen(kw_only=True)
class Options:
    """How to launch; see Client.launch."""

    key: str | None = None
    idle_minutes: int | None = None
    down: bool = False
    retry_until_up: bool = False
    fast: bool = False
    no_setup: bool = False
    timeout_s: float | None = None


def name_for(session: Session, task: Task) -> str:
    """A name for a cluster that was given none: sky-<4 hex>-<user>."""
    user = "".join(char for char in session.user.lower() if char.isalnum()) or "user"
    return check_cluster_name(f"sky-{secrets.token_hex(2)}-{user[:40]}")


def autostop_of(task: Task, options: Options) -> AutostopRecord | None:
    """The timer that a launch sets; None leaves what the cluster has. An idle time of 0 counts as one minute."""
    wanted: Autostop | None = task.resources.autostop
    down = options.down or bool(wanted and wanted.enabled and wanted.down)
    if options.idle_minutes is not None:
        if options.idle_minutes < 0:
            return None
        return AutostopRecord(idle_minutes=max(1, options.idle_minutes), down=down)
    if wanted is not None:
        return AutostopRecord(idle_minutes=wanted.idle_minutes, down=down) if wanted.enabled else None
    return AutostopRecord(idle_minutes=1, down=True) if options.down else None


def launch(session: Session, asked: Task | Plan, name: str | None, options: Options) -> tuple[str, Submitted]:
    """The cluster's name, and the job as the agent took it."""
    started = time.monotonic()
    task = asked.task if isinstance(asked, Plan) else asked
    if isinstance(asked, Plan):
        name = name or asked.cluster_name
    check_task(task)
    cluster = check_cluster_name(name) if name is not None else name_for(session, task)
    with session.operation("launch", cluster) as events:
        files = prepare_files(task, events)
        while True:
            try:
                with session.hold(cluster, "launch", options.timeout_s):
                    record = _standing(session, asked, task, cluster, files, options, events, started)
                    return cluster, _submit(session, task, record, files, options)
            except NoCapacityError as full:
                if not options.retry_until_up or isinstance(full, ClusterBusy):
                    raise
                _wait_for_capacity(events, full, options, started)


def _standing(
    session: Session,
    asked: Task | Plan,
    task: Task,
    name: str,
    files: SyncPlan,
    options: Options,
    events: EventSink,
    started: float,
) -> ClusterRecord:
    """The cluster, UP and with the task's files on it."""
    record = session.store.cluster(name)
    if record is not None and _half_made(session, record):
        take_away(session, record, events)
        record = session.store.cluster(name)
    autostop = autostop_of(task, options)
    if record is None:
        context = session.provider_context(events)
        only = asked.chosen if isinstance(asked, Plan) and asked.chosen else None
        placement = choose(session, task, context, only=only)
        timeout_s = session.config.provision.timeout_s
        if options.timeout_s is not None:
            timeout_s = max(1.0, options.timeout_s - (time.monotonic() - started))
        return make(
            session,
            task,
            name,
            placement,
            context,
            autostop=autostop,
            beside=lambda places: deliver_to(session, files, places, events),
            timeout_s=timeout_s,
        )
    refuse_misfit(task, record)
    record = revive(session, record, events)
    deliver(session, files, record, events)
    if autostop is not None and autostop != record.autostop:
        session.agent(record).call("autostop", idle_minutes=autostop.idle_minutes, down=autostop.down)
        record = attrs.evolve(record, autostop=autostop)
        session.store.save_cluster(record)
    return record


def _half_made(session: Session, record: ClusterRecord) -> bool:
    """A launch that died before the cluster was ever up: we hold its lock, so nobody is at it."""
    begun = [intent for intent in session.store.open_intents(record.name) if intent.operation == "launch"]
    return record.status is ClusterStatus.INIT and (bool(begun) or not record.nodes)


def _submit(session: Session, task: Task, record: ClusterRecord, files: SyncPlan, options: Options) -> Submitted:
    wants_setup = bool(task.setup) and not options.no_setup
    digest = ""
    if wants_setup:
        digest = setup_hash(task, files_digest=files_digest(files), runtime_digest=record.ray_version)
    spec = job_spec(
        task,
        record,
        user=session.user,
        key=options.key,
        setup=wants_setup,
        setup_digest=digest,
        skip_setup_if_done=options.fast,
    )
    return submit(session.agent(record), spec, record)


def _wait_for_capacity(events: EventSink, full: NoCapacityError, options: Options, started: float) -> None:
    """Sleep a while before the next try; raises `full` again when the time for all of it is over."""
    waited = time.monotonic() - started
    pause_s = min(LONGEST_RETRY_S, FIRST_RETRY_S + waited / 4) * random.uniform(0.8, 1.2)
    if options.timeout_s is not None and waited + pause_s > options.timeout_s:
        raise full
    facts = {"reason": full.message, "pause_s": round(pause_s, 1)}
    events(Event(step="provision.wait_for_capacity", phase=Phase.NOTE, at=time.time(), facts=facts))
    time.sleep(pause_s)
