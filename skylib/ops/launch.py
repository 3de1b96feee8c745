"""The main verb: a cluster that stands, its files in place, the job in its queue."""

from __future__ import annotations

import math
import random
import secrets
import time
import uuid
from collections.abc import Callable

import attrs

from skylib.errors import InvalidSpecError, NoCapacityError, ProvisionError
from skylib.events import Event, EventSink, Phase
from skylib.jobs.submit import Submitted, job_spec, key_for, setup_hash, submit
from skylib.models.autostop import Autostop
from skylib.models.cluster import AutostopRecord, ClusterRecord, ClusterStatus, check_cluster_name
from skylib.models.converters import boolean
from skylib.models.plan import Plan
from skylib.models.spec_errors import within
from skylib.models.task import Task
from skylib.ops.checks import check_task, patience, refuse_misfit
from skylib.ops.cleanup import take_away
from skylib.ops.files import check_targets, deliver, deliver_to, files_digest, staged_files
from skylib.ops.holding import hold
from skylib.ops.outputs import expect
from skylib.ops.provision import choose, make
from skylib.ops.revive import revive
from skylib.ops.timer import kept_busy, minutes_of, set_lease, set_timer
from skylib.session import Session
from skylib.staging.plan import SyncPlan

__all__ = ["Options", "autostop_of", "launch", "name_for"]

FIRST_RETRY_S = 2.0
LONGEST_RETRY_S = 30.0


@attrs.frozen(kw_only=True)
class Options:
    """How to launch; see Client.launch. Raises InvalidSpecError for what cannot be meant."""

    key: str | None = None
    idle_minutes: int | None = None
    down: bool = False
    retry_until_up: bool = False
    fast: bool = False
    no_setup: bool = False
    timeout_s: float | None = None
    lease_s: float | None = None

    def __attrs_post_init__(self) -> None:
        for name in ("down", "retry_until_up", "fast", "no_setup"):
            with within(name):
                boolean(getattr(self, name))
        with within("idle_minutes_to_autostop"):
            if self.idle_minutes is not None:
                minutes_of(self.idle_minutes)
        if self.timeout_s is not None:
            patience(self.timeout_s)


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
        return _timer(options.idle_minutes or 1, down, wanted) if options.idle_minutes >= 0 else None
    if wanted is not None:
        return _timer(wanted.idle_minutes, down, wanted) if wanted.enabled else None
    return AutostopRecord(idle_minutes=1, down=True) if options.down else known


def _timer(idle_minutes: float, down: bool, wanted: Autostop | None) -> AutostopRecord:
    """With what the task says of the rest."""
    if wanted is None or not wanted.enabled:
        return AutostopRecord(idle_minutes=idle_minutes, down=down)
    return AutostopRecord(
        idle_minutes=idle_minutes,
        down=down,
        wait_for=wanted.wait_for,
        hook=wanted.hook,
        hook_timeout_s=wanted.hook_timeout if wanted.hook is not None else None,
    )


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
    session = session.tuned(task)
    cluster = check_cluster_name(name) if name is not None else name_for(session, task)
    started = time.monotonic()

    def left_s(otherwise: float) -> float:
        """What remains of the caller's time."""
        return otherwise if options.timeout_s is None else max(0.0, options.timeout_s - (time.monotonic() - started))

    with session.operation("launch", cluster) as events, staged_files(session, task, events) as files:
        work = _Work(
            asked=asked,
            task=task,
            name=cluster,
            files=files,
            options=options,
            key=key_for(options.key),
            events=events,
            left_s=left_s,
        )
        while True:
            try:
                with hold(session, cluster, "launch", events, left_s(session.config.locks.timeout_s)):
                    return cluster, _launch(session, work)
            except NoCapacityError as full:
                if not options.retry_until_up:
                    raise
                _wait_for_capacity(events, full, started, left_s(math.inf))


@attrs.frozen(kw_only=True)
class _Work:
    """One launch. left_s: what remains of the caller's time, or the argument when that is not limited."""

    asked: Task | Plan
    task: Task
    name: str
    files: SyncPlan
    options: Options
    key: str
    events: EventSink
    left_s: Callable[[float], float]


def _launch(session: Session, work: _Work) -> Submitted:
    """The cluster, UP and with the task's files on it, and the job in its queue."""
    name, asked = work.name, work.asked
    record = session.store.cluster(name)
    if record is not None and record.status is ClusterStatus.INIT and not record.nodes:
        take_away(session, record, work.events, touched=False)  # nobody is at it: we hold the lock
        record = session.store.cluster(name)
    if isinstance(asked, Plan) and asked.exists != (record is not None):
        was, now = ("stood", "is gone") if asked.exists else ("did not exist", "exists")
        raise ProvisionError(
            f"the plan is out of date: cluster {name!r} {was} then and {now} now", cluster=name, hint="plan again"
        )
    if record is None:
        return _on_new(session, work)
    refuse_misfit(work.task, record)
    check_targets(work.task, record.infra)
    facts = {"cluster_id": record.cluster_id, "new": False, "was": record.status.value, "key": work.key}
    with session.intent("launch", name, **facts):
        record = revive(session, record, work.events, may_end_jobs=False).cluster
        with kept_busy(session, record):
            deliver(session, work.files, record, work.events)
        timer = autostop_of(work.task, work.options, record.autostop)
        if timer != record.autostop:
            record = set_timer(session, record, timer)
        if work.options.lease_s is not None:
            record = set_lease(session, record, work.options.lease_s)
        return _submit(session, work, record)


def _on_new(session: Session, work: _Work) -> Submitted:
    context = session.provider_context(work.events)
    only = work.asked.chosen if isinstance(work.asked, Plan) else None
    placement = choose(session, work.task, context, only=only)
    check_targets(work.task, placement.infra)
    cluster_id = str(uuid.uuid4())
    with session.intent("launch", work.name, cluster_id=cluster_id, new=True, key=work.key) as intent:
        record = make(
            session,
            work.task,
            work.name,
            placement,
            context,
            cluster_id=cluster_id,
            intent=intent,
            autostop=autostop_of(work.task, work.options),
            lease_s=work.options.lease_s,
            beside=lambda places: deliver_to(session, work.files, places, work.events),
            timeout_s=max(1.0, work.left_s(session.config.provision.timeout_s)),
        )
        return _submit(session, work, record)


def _submit(session: Session, work: _Work, record: ClusterRecord) -> Submitted:
    task, options = work.task, work.options
    wants_setup = bool(task.setup) and not options.no_setup
    digest = ""
    if wants_setup:
        content = files_digest(session, work.files, work.events)
        digest = setup_hash(task, files_digest=content, runtime_digest=record.head.runtime_digest)
    spec = job_spec(
        task,
        record,
        user=session.user,
        key=work.key,
        setup=wants_setup,
        setup_digest=digest,
        skip_setup_if_done=options.fast,
        client=session.user_hash,
    )
    done = submit(session.agent(record), spec, record)
    expect(session, task, record, [done])
    return done


def _wait_for_capacity(events: EventSink, full: NoCapacityError, started: float, left_s: float) -> None:
    """Sleep a while before the next try; raises `full` again when the time for all of it is over."""
    waited = time.monotonic() - started
    pause_s = min(LONGEST_RETRY_S, FIRST_RETRY_S + waited / 4) * random.uniform(0.8, 1.2)
    if pause_s > left_s:
        raise full
    facts = {"reason": full.message, "pause_s": round(pause_s, 1)}
    events(Event(step="provision.wait_for_capacity", phase=Phase.NOTE, at=time.time(), facts=facts))
    time.sleep(pause_s)
