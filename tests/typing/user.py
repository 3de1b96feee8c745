"""A user's program, which mypy reads in strict mode and nobody runs: the published types say what they should."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import assert_type

import skylib
from skylib import Client, Cluster, ClusterRecord, Job, JobRecord, JobStatus, LogLine, LogStream, Plan, Resources, Task
from skylib.errors import BringUpError, ClusterNotFound, JobFailed, SkyError
from skylib.events import Event, Phase


def on_event(event: Event) -> None:
    """A sink as a caller writes it."""
    if event.phase is Phase.FAILED:
        assert_type(event.seconds, float | None)


def tasks() -> Iterator[Task]:
    """Tasks from code, from a file and from text, with the forms that YAML takes."""
    yield Task(run="echo hello", resources=Resources(infra="ssh/lab", accelerators="A100:8", cpus="4+", memory="16+"))
    yield Task(run="echo hello", num_nodes=2, envs={"A": "1"}, secrets={"TOKEN": "x"}, workdir=".", name="hello")
    yield Task(run="echo hello", config={"provision": {"timeout_s": 1800}})
    yield Task(run="echo hello", resources=Resources(cpus=2, memory=4.5, accelerators={"A100": 8}, ports=[8080]))
    yield Task(file_mounts={"~/data": "./data"}, setup="true", run="true", resources=Resources(infra="local"))
    yield Task.from_yaml("task.yaml")
    yield Task.from_yaml(Path("task.yaml"))
    yield Task.from_yaml_str("run: echo hello")


def launch_and_watch(client: Client, task: Task) -> JobRecord:
    """The main job."""
    plan = client.plan(task, "train")
    assert_type(plan, Plan)
    assert_type(plan.price_per_hour, float | None)
    files = client.plan_sync(task)
    assert_type(files, skylib.SyncReport)
    assert_type(files.why_ignored(Path("build")), skylib.LeftOut | None)
    assert_type([tree.largest[0].bytes for tree in files], list[int])
    job = client.launch(plan, fast=True, idle_minutes_to_autostop=10, down=True, key="once", timeout_s=60, lease="2h")
    assert_type(job, Job)
    assert_type(job.id, int)
    for line in job.logs(follow=True):
        assert_type(line, LogLine)
        assert_type(line.text, str)
        assert_type(line.next_offset, int)
    assert_type(job.status(), JobStatus)
    return job.wait(timeout_s=10, check=False)


async def watch(job: Job) -> int:
    """Lines in an event loop."""
    async with job.logs(tail=100) as lines:
        assert_type(lines, LogStream)
        async for line in lines:
            assert_type(line, LogLine)
        return lines.offset


def verbs(client: Client) -> None:
    """Each verb gives one type, whatever its flags."""
    assert_type(client.runtime.prefetch(), skylib.PrefetchReceipt)
    assert_type(client.runtime.prefetch("linux-aarch64", "3.10").files, tuple[Path, ...])
    assert_type(client.status(), list[ClusterRecord])
    assert_type(client.status("train", refresh=True), list[ClusterRecord])
    assert_type(client.status(["a", "b"]), list[ClusterRecord])
    assert_type(client.exec("nvidia-smi", "train"), Job)
    assert_type(client.submit_many(["true", Task(run="true")], "train", keys=["a", None]), list[Job])
    assert_type(client.queue("train"), list[JobRecord])
    assert_type(client.job("train", 1), Job)
    assert_type(client.tail_logs("train", follow=False, tail=10), LogStream)
    assert_type(client.download_logs("train", [1, 2]), dict[int, Path])
    assert_type(client.start("train"), skylib.StartReceipt)
    assert_type(client.stop("train"), skylib.DownReceipt)
    assert_type(client.down("train", purge=True).clean, bool)
    assert_type(client.check(), list[skylib.InfraStatus])
    assert_type(client.discover("ssh/lab"), list[skylib.Discovered])
    assert_type([len(found.job_ids) for found in client.discover(["10.0.0.1"])], list[int])
    assert_type(client.adopt("train", cluster_id="1", hosts=["10.0.0.1"]), ClusterRecord)
    client.autostop("train", 5, down=True, wait_for="jobs", hook="echo bye", hook_timeout_s=60)
    client.cancel("train", all=True)
    client.cancel("train", 3)
    client.cancel("train", [3, 4])


def settings(client: Client) -> None:
    """Settings are typed, section by section."""
    assert_type(client.config.ssh.keepalive_s, float)
    assert_type(client.config.runtime.source, str)
    explained = client.config.set("ssh.keepalive_s", 5)
    assert_type(explained.key, str)
    assert_type(explained.hides[0].origin.line, int | None)
    assert_type(str(client.config.unset("ssh.keepalive_s")), str)
    assert_type(client.config.reload().ssh.keepalive_s, float)


def cluster(client: Client) -> None:
    """What a handle gives."""
    handle = client.cluster("train")
    assert_type(handle, Cluster)
    for done in handle.run("uptime", timeout_s=5):
        assert_type(done.stdout, bytes)
        assert_type(done.returncode, int | None)
    assert_type(handle.ssh_command(rank=1), str)
    assert_type([node.internal_ip for node in handle.nodes()], list[str])
    assert_type(Cluster.from_json(handle.to_json()), Cluster)


def errors(client: Client, task: Task) -> str | None:
    """Errors carry typed facts, and are caught by family."""
    try:
        client.launch(task, "train", retry_until_up=True)
    except BringUpError as error:
        assert_type(error.host, str | None)
        assert_type(error.retryable, bool)
        return error.hint
    except (ClusterNotFound, JobFailed) as error:
        return error.message
    except SkyError as error:
        return error.step
    return None


def main() -> None:
    """Everything together."""
    with Client("~/.sky", config={"ssh": {"connect_timeout_s": 5}}, events=on_event) as client:
        assert_type(client, Client)
        for task in tasks():
            launch_and_watch(client, task)
        verbs(client)
        settings(client)
        cluster(client)
