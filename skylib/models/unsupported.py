"""Which of a task's fields skylib acts on, and which it must refuse rather than ignore."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from skylib.models.autostop import JobRecovery
from skylib.models.resources import Resources
from skylib.models.task import Task
from skylib.models.task_parts import StorageMount, is_bucket_url

__all__ = ["RESOURCES_ACTED_ON", "RESOURCES_NOT_YET", "TASK_ACTED_ON", "TASK_NOT_YET", "unsupported_fields"]

TASK_ACTED_ON = frozenset(
    {
        *("name", "workdir", "num_nodes", "resources", "envs", "secrets", "file_mounts", "setup", "run", "config"),
        *("outputs", "timeout_s"),
    }
)
TASK_NOT_YET = frozenset(
    {
        "managed_secrets",
        "volumes",
        "service",
        "pool",
        "event_callback",
        "inputs",
        "api_server_access",
    }
)
RESOURCES_ACTED_ON = frozenset(
    {"infra", "cpus", "memory", "accelerators", "any_of", "ordered", "autostop", "max_hourly_cost", "job_recovery"}
)
RESOURCES_NOT_YET = frozenset(
    {
        "accelerator_args",
        "instance_type",
        "use_spot",
        "disk_size",
        "disk_tier",
        "network_tier",
        "local_disk",
        "image_id",
        "ports",
        "labels",
        "priority",
        "priority_class",
        "volumes",
    }
)
_TASK = Task()
_RESOURCES = Resources()


def unsupported_fields(task: Task) -> tuple[str, ...]:
    """Names of the fields that the task sets and that nothing acts on yet; empty is good.

    Dotted ("resources.use_spot"), with what makes a value unsupported in brackets ("file_mounts[/data] (bucket URL)").
    """
    return tuple(_in_task(task))


def _in_task(task: Task) -> Iterator[str]:
    for field in attrs.fields(Task):
        value = getattr(task, field.name)
        if field.name in TASK_NOT_YET and value != getattr(_TASK, field.name):
            yield field.name
        elif field.name == "resources":
            yield from _in_all(task.resources)
        elif field.name == "file_mounts":
            yield from _in_mounts(task)
        elif field.name == "outputs":
            yield from (f"outputs[{path}] (size)" for path, each in task.outputs.items() if not isinstance(each, str))


def _in_mounts(task: Task) -> Iterator[str]:
    for destination, source in task.file_mounts.items():
        if isinstance(source, StorageMount):
            yield f"file_mounts[{destination}] (storage)"
        elif is_bucket_url(source):
            yield f"file_mounts[{destination}] (bucket URL)"


def _in_all(resources: Resources) -> Iterator[str]:
    base = list(_in_resources(resources))
    yield from (f"resources.{name}" for name in base)
    for choice in ("any_of", "ordered"):
        for index, entry in enumerate(getattr(resources, choice)):
            yield from (f"resources.{choice}[{index}].{name}" for name in _in_resources(entry) if name not in base)


def _in_resources(resources: Resources) -> Iterator[str]:
    for field in attrs.fields(Resources):
        value = getattr(resources, field.name)
        if field.name in RESOURCES_NOT_YET and value != getattr(_RESOURCES, field.name):
            yield field.name
        elif field.name == "job_recovery" and value is not None:
            yield from _in_recovery(value)


def _in_recovery(recovery: JobRecovery) -> Iterator[str]:
    """Own machines are not preempted, so no strategy is needed; codes alone do not say how often."""
    if recovery.strategy not in (None, "NONE"):
        yield f"job_recovery.strategy ({recovery.strategy})"
    if recovery.recover_on_exit_codes and not recovery.max_restarts_on_errors:
        yield "job_recovery.recover_on_exit_codes (without max_restarts_on_errors)"
