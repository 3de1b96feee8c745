"""Every field is either acted on or refused by name."""

from __future__ import annotations

import attrs
import pytest

from skylib.models.resources import Resources
from skylib.models.task import Task
from skylib.models.unsupported import (
    RESOURCES_ACTED_ON,
    RESOURCES_NOT_YET,
    TASK_ACTED_ON,
    TASK_NOT_YET,
    unsupported_fields,
)


def test_every_field_of_task_is_in_exactly_one_set():
    """No field of Task is silently ignored."""
    assert {field.name for field in attrs.fields(Task)} == TASK_ACTED_ON | TASK_NOT_YET
    assert not TASK_ACTED_ON & TASK_NOT_YET


def test_every_field_of_resources_is_in_exactly_one_set():
    """No field of Resources is silently ignored."""
    assert {field.name for field in attrs.fields(Resources)} == RESOURCES_ACTED_ON | RESOURCES_NOT_YET
    assert not RESOURCES_ACTED_ON & RESOURCES_NOT_YET


_TASK_CASES = {
    "managed_secrets": ["A"],
    "volumes": {"/x": "v"},
    "service": {"replicas": 1},
    "pool": {"workers": 1},
    "event_callback": "echo",
    "inputs": {"a": 1},
    "api_server_access": False,
}
_RESOURCES_CASES = {
    "accelerator_args": {"tpu_vm": True},
    "instance_type": "m5.large",
    "use_spot": True,
    "disk_size": 100,
    "disk_tier": "low",
    "network_tier": "best",
    "local_disk": "nvme:500+",
    "image_id": "docker:ubuntu",
    "ports": 80,
    "labels": {"a": "b"},
    "priority": 1,
    "priority_class": "high",
    "volumes": [{"path": "/x"}],
}


@pytest.mark.parametrize("name", sorted(TASK_NOT_YET))
def test_fields_of_task_not_acted_on(name):
    """A field that nothing acts on is named when it is set."""
    assert unsupported_fields(Task(run="x", **{name: _TASK_CASES[name]})) == (name,)


@pytest.mark.parametrize("name", sorted(RESOURCES_NOT_YET))
def test_fields_of_resources_not_acted_on(name):
    """A field of resources that nothing acts on is named when it is set, in the base or in an alternative."""
    wanted = {name: _RESOURCES_CASES[name]}
    assert unsupported_fields(Task(resources=wanted)) == (f"resources.{name}",)
    inside = Resources(any_of=[{"cpus": 1}, wanted])
    assert unsupported_fields(Task(resources=inside)) == (f"resources.any_of[1].{name}",)
    inherited = Resources(ordered=[{"cpus": 1}, {"cpus": 2}], **wanted)
    assert unsupported_fields(Task(resources=inherited)) == (f"resources.{name}",)


@pytest.mark.parametrize(
    "task",
    [
        Task(),
        Task(
            name="x",
            workdir="~/code",
            num_nodes=3,
            envs={"A": "1"},
            secrets={"B": "2"},
            file_mounts={"/x": "./y"},
            setup="echo",
            run="echo",
            config={"provision": {"timeout_s": 60}},
        ),
        Task(resources={"infra": "ssh/lab", "cpus": "4+", "memory": "16+", "accelerators": ["A100", "V100"]}),
        Task(resources={"use_spot": False, "labels": {}, "ports": [], "job_recovery": None, "max_hourly_cost": 2}),
        Task(resources={"autostop": {"idle_minutes": 5, "down": True}, "any_of": [{"infra": "local"}]}),
        Task(outputs={"results/*": "./results"}),
        Task(config={}, inputs={}, api_server_access=True, timeout_s=60),
        Task(resources={"job_recovery": {"strategy": "none", "max_restarts_on_errors": 2, "recover_on_exit_codes": 33}}),
    ],
)
def test_fields_acted_on(task):
    """What is acted on, and what is at its default, is not refused."""
    assert unsupported_fields(task) == ()


@pytest.mark.parametrize(
    ("task", "names"),
    [
        (Task(file_mounts={"/x": "https://a.blob.core.windows.net/b"}), ("file_mounts[/x] (bucket URL)",)),
        (Task(file_mounts={"/x": "s3://b", "/y": "./y"}), ("file_mounts[/x] (bucket URL)",)),
        (Task(outputs={"s3://b": 2, "r/*": "./here"}), ("outputs[s3://b] (size)",)),
        (Task(file_mounts={"/x": {"source": "./y"}}), ("file_mounts[/x] (storage)",)),
        (Task(resources={"job_recovery": "failover"}), ("resources.job_recovery.strategy (FAILOVER)",)),
        (
            Task(resources={"job_recovery": {"recover_on_exit_codes": [3]}}),
            ("resources.job_recovery.recover_on_exit_codes (without max_restarts_on_errors)",),
        ),
        (Task(resources={"use_spot": True}, service={}), ("resources.use_spot", "service")),
    ],
)
def test_values_not_acted_on(task, names):
    """Of a field that is acted on, the values that are not are named with the reason."""
    assert unsupported_fields(task) == names
