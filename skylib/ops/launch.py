"""The main verb: a cluster that stands, its files in place, the job in its queue."""

from __future__ import annotations

import math
import random
import secrets
import time
from collections.abc import Callable

import attrs

from skylib.errors import InvalidSpecError, NoCapacityError, ProvisionError
from skylib.events import Event, EventSink, Phase
from skylib.jobs.submit import Submitted, job_spec, setup_hash, submit
from skylib.models.autostop import Autostop
from skylib.models.cluster import AutostopRecord, ClusterRecord, ClusterStatus, check_cluster_name
from skylib.models.plan import Plan
from skylib.models.task import Task
from skylib.ops.checks import check_task, refuse_misfit
from skylib.ops.cleanup import take_away
from skylib.ops.files import check_targets, deliver, deliver_to, files_digest, prepare_files
from skylib.ops.lifecycle import kept_busy, set_timer
from skylib.ops.provision import choose, make
from skylib.ops.revive import revive
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


def autostop_of(task: Task, options: Options, known: AutostopRecord | None = None) -> AutostopRecord | None:
    """The timer that the cluster has after the launch; None: no timer. known: the one it has, kept when nobody says.

    An idle time of 0 counts as one minute, a negative one and `autostop: false` mean never.
    """
    wanted: Autostop | None = task.resources.autostop
    down = options.down or bool(wanted and wanted.enabled and wanted.down)
    if options.idle_minutes is not None:
        return AutostopRecord(idle_minutes=options.idle_minutes or 1, down=down) if options.idle_minutes >= 0 else None
    if wanted is not None:
        return AutostopRecord(idle_minutes=wanted.idle_minutes, down=down) if wanted.enabled else None
    return AutostopRecord(idle_minutes=1, down=True) if options.down else known


def launch(session: Session, asked: Task | Plan, name: str | None, options: Options) -> tuple[str, Submitted]:
    """The cluster's name, and the job as the agent took it."""
    task = asked.task if isinstance(asked, Plan) else asked
    if not isinstance(task, Task):
        raise InvalidSpecError(f"expected a Task or a Plan, got {type(task).__name__}", field="task")
    if isinstance(asked, Plan):
        if name not in (None, asked.cluster_name):
            raise InvalidSpecError(f"the plan is for cluster {asked.cluster_name!r}, not {name!r}", field="cluster_name")
        name = asked.cluster_name
    check_task(task)
    cluster = check_cluster_name(name) if name is not None else name_for(session, task)
    started = time.monotonic()

    def left_s(otherwise: float) -> float:
        """What remains of the caller's time."""
        return otherwise if options.timeout_s is None else max(0.0, options.timeout_s - (time.monotonic() - started))

    with session.operation("launch", cluster) as events:
        files = prepare_files(task, events)
        while True:
            try:
                with session.hold(cluster, "launch", left_s(session.config.locks.timeout_s)):
                    record = _standing(session, asked, task, cluster, files, options, events, left_s)
                    return cluster, _submit(session, task, record, files, options)
            except NoCapacityError as full:
                if not options.retry_until_up:
                    raise
                _wait_for_capacity(events, full, started, left_s(math.inf))


def _standing(
    session: Session,
    asked: Task | Plan,
    task: Task,
    name: str,
    files: SyncPlan,
    options: Options,
    events: EventSink,
    left_s: Callable[[float], float],
) -> ClusterRecord:
    """The cluster, UP and with the task's files on it."""
    record = session.store.cluster(name)
    if record is not None and _half_made(session, record):
        take_away(session, record, events)
        record = session.store.cluster(name)
    if isinstance(asked, Plan) and asked.exists != (record is not None):
        was, now = ("stood", "is gone") if asked.exists else ("did not exist", "exists")
        raise ProvisionError(
            f"the plan is out of date: cluster {name!r} {was} then and {now} now", cluster=name, hint="plan again"
        )
    if record is None:
        context = session.provider_context(events)
        placement = choose(session, task, context, only=asked.chosen if isinstance(asked, Plan) else None)
        check_targets(task, placement.infra)
        return make(
            session,
            task,
            name,
            placement,
            context,
            autostop=autostop_of(task, options),
            beside=lambda places: deliver_to(session, files, places, events),
            timeout_s=max(1.0, left_s(session.config.provision.timeout_s)),
        )
    refuse_misfit(task, record)
    check_targets(task, record.infra)
    record = revive(session, record, events, may_end_jobs=False)
    with kept_busy(session, record):
        deliver(session, files, record, events)
    timer = autostop_of(task, options, record.autostop)
    return record if timer == record.autostop else set_timer(session, record, timer)


def _half_made(session: Session, record: ClusterRecord) -> bool:
    """A launch that died before the cluster was ever up: we hold its lock, so nobody is at it."""
    begun = [
        intent
        for intent in session.store.open_intents(record.name)
        if intent.operation == "launch" and intent.details.get("cluster_id") == record.cluster_id
    ]
    return record.status is ClusterStatus.INIT and (bool(begun) or not record.nodes)


def _submit(session: Session, task: Task, record: ClusterRecord, files: SyncPlan, options: Options) -> Submitted:
    wants_setup = bool(task.setup) and not options.no_setup
    digest = ""
    if wants_setup:
        digest = setup_hash(task, files_digest=files_digest(files), runtime_digest=record.head.runtime_digest)
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


def _wait_for_capacity(events: EventSink, full: NoCapacityError, started: float, left_s: float) -> None:
    """Sleep a while before the next try; raises `full` again when the time for all of it is over."""
    waited = time.monotonic() - started
    pause_s = min(LONGEST_RETRY_S, FIRST_RETRY_S + waited / 4) * random.uniform(0.8, 1.2)
    if pause_s > left_s:
        raise full
    facts = {"reason": full.message, "pause_s": round(pause_s, 1)}
    events(Event(step="provision.wait_for_capacity", phase=Phase.NOTE, at=time.time(), facts=facts))
    time.sleep(pause_s)
