"""What is refused before anything is touched."""

from __future__ import annotations

from skylib.errors import InvalidSpecError
from skylib.models.cluster import ClusterRecord
from skylib.models.task import Task
from skylib.models.unsupported import unsupported_fields
from skylib.optimizer.fit import fits_cluster

__all__ = ["check_task", "refuse_misfit"]


def check_task(task: Task) -> None:
    """Raises InvalidSpecError that names every field of the task which skylib does not act on yet."""
    names = unsupported_fields(task)
    if names:
        raise InvalidSpecError(
            f"skylib does not act on these fields yet: {', '.join(names)}",
            field=names[0],
            fields=names,
            hint="remove them from the task; nothing is ignored silently",
        )
    if not task.run and not task.setup:
        raise InvalidSpecError("the task has neither run nor setup: there is nothing to do", field="run")


def refuse_misfit(task: Task, record: ClusterRecord) -> None:
    """Raises InvalidSpecError that says what the task asks for and the standing cluster does not have."""
    reasons = fits_cluster(record, task.resources, task.num_nodes)
    if reasons:
        raise InvalidSpecError(
            f"the task does not fit cluster {record.name!r}: " + "; ".join(reasons),
            field="resources",
            cluster=record.name,
            reasons=tuple(reasons),
        )
