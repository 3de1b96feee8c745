"""Many jobs at once: one round trip, all of them or none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from skylib.errors import InvalidSpecError
from skylib.jobs.submit import Submitted, job_spec, key_for, submit_many
from skylib.models.cluster import ClusterRecord
from skylib.models.resources import Resources
from skylib.models.task import Task
from skylib.ops.checks import check_task, refuse_misfit
from skylib.ops.execute import as_task, deliver_workdir, finish_left
from skylib.ops.lives import require_up
from skylib.ops.outputs import expect
from skylib.session import Session

__all__ = ["submit_all"]


def submit_all(
    session: Session, tasks: Iterable[Task | str], name: str, *, keys: Sequence[str | None] | None = None
) -> list[Submitted]:
    """Queue every task on a cluster that is UP, in order; what the agent made of each, in the same order.

    The workdir, which all must share, is brought up to date once; no setup, no other files. keys: one a task.
    Raises InvalidSpecError with `index`, the place of the task at fault; then none is queued.
    """
    if isinstance(tasks, (str, Task)) or not isinstance(tasks, Iterable):
        raise InvalidSpecError("tasks must be several tasks or command lines; exec takes one", field="tasks")
    wanted = [_at(index, each) for index, each in enumerate(tasks)]
    given = _keys(keys, len(wanted))
    if not wanted:
        require_up(session, name)
        return []
    first = wanted[0]
    session = session.tuned(first)
    record = require_up(session, name)
    _check(wanted, record)
    with session.operation("submit_many", name) as events:
        record = finish_left(session, record, "submit_many", events)
        details = {"jobs": len(wanted), "key": given[0]}
        with session.intent("exec", name, cluster_id=record.cluster_id, **details):
            record = deliver_workdir(session, first, record, "submit_many", events)
            specs = [
                job_spec(task, record, user=session.user, key=key, setup=False, client=session.user_hash)
                for task, key in zip(wanted, given, strict=True)
            ]
            submitted, seen = submit_many(session.agent(record), specs, record)
        for task, each in zip(wanted, submitted, strict=True):
            expect(session, task, record, [each])
    session.store.save_jobs(record.cluster_id, seen)
    return submitted


def _at(index: int, task: Task | str) -> Task:
    try:
        return as_task(task)
    except InvalidSpecError as error:
        raise _of(error, index) from None


def _of(error: InvalidSpecError, index: int) -> InvalidSpecError:
    """The same error, of that one of the tasks."""
    facts = {name: value for name, value in vars(error).items() if name != "message"}
    field = facts.get("field")
    facts.update(index=index, field=f"tasks[{index}].{field}" if field and field != "task" else f"tasks[{index}]")
    return InvalidSpecError(f"tasks[{index}]: {error.message}", **facts)


def _keys(keys: Sequence[str | None] | None, count: int) -> list[str]:
    if keys is None:
        keys = [None] * count
    if isinstance(keys, (str, bytes)) or not isinstance(keys, Sequence) or len(keys) != count:
        raise InvalidSpecError(f"keys must be as many as the tasks, {count}", field="keys")
    found = []
    for index, key in enumerate(keys):
        try:
            found.append(key_for(key))
        except InvalidSpecError as error:
            raise InvalidSpecError(f"keys[{index}]: {error.message}", field=f"keys[{index}]", index=index) from None
    return found


def _check(tasks: Sequence[Task], record: ClusterRecord) -> None:
    """Each kind of resources is compared with the cluster once: there may be thousands of one kind."""
    first = tasks[0]
    seen: set[int] = set()
    fitting: set[tuple[Resources, int]] = set()
    for index, task in enumerate(tasks):
        if id(task) in seen:
            continue
        seen.add(id(task))
        try:
            check_task(task)
            if task.workdir != first.workdir:
                raise InvalidSpecError("its workdir is another than that of tasks[0]: one call has one", field="workdir")
            if task.config != first.config:
                raise InvalidSpecError("its config is another than that of tasks[0]: one call has one", field="config")
            if (task.resources, task.num_nodes) not in fitting:
                refuse_misfit(task, record)
                fitting.add((task.resources, task.num_nodes))
        except InvalidSpecError as error:
            raise _of(error, index) from None
