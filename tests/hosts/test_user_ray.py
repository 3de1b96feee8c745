"""The user's own Ray lives beside ours on every node, inside and outside of jobs, and neither meets the other."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import skylib
from tests.lab import Lab, make_lab
from tests.testbed import Host
from tests.user_ray import USERS_PORT, VERSIONS, UserRay, said

NOT_FOUND = "Could not find any running Ray instance"


OTHERS = [pytest.param(version, marks=pytest.mark.slow) for version in VERSIONS[1:]]


@pytest.fixture(scope="module", params=[VERSIONS[0], *OTHERS])
def rays(request: pytest.FixtureRequest, shared: Lab) -> Iterator[list[UserRay]]:
    """An environment with Ray of the account's own on each node of the cluster, the head first; none is started."""
    with ThreadPoolExecutor() as pool:
        made = list(pool.map(lambda host: UserRay.install(host, request.param), in_order(shared)))
        yield made
        list(pool.map(UserRay.remove, made))


def in_order(lab: Lab) -> list[Host]:
    """The cluster's hosts, the head first."""
    hosts = {host.ip: host for host in lab.hosts}
    return [hosts[node.internal_ip] for node in lab.client.cluster("shared").nodes()]


def ours(lab: Lab) -> dict[str, set[int]]:
    """Our Ray's processes and our agents on each host."""
    lines = {host.name: host.processes("sky") for host in lab.hosts}
    return {name: {pid for pid, line in told if "skypilot" in line and "own-" not in line} for name, told in lines.items()}


def by_ssh(lab: Lab, line: str) -> list[dict[str, object]]:
    """What CONNECT said on each node, in a shell over SSH."""
    done = lab.client.cluster("shared").run(line, timeout_s=120)
    return [each for one in done for each in said(one.stdout.decode())]


def in_a_job(lab: Lab, line: str, num_nodes: int = 3) -> list[dict[str, object]]:
    """What CONNECT said in each rank of a job, by default on all nodes."""
    job = lab.client.exec(lab.task(line, num_nodes=num_nodes), "shared")
    text = "\n".join(entry.text for entry in job.logs())
    assert job.wait(check=False).status is skylib.JobStatus.SUCCEEDED, text
    return said(text)


@pytest.mark.parametrize("where", [by_ssh, in_a_job])
def test_auto_without_a_ray_of_ones_own_fails_clearly(shared: Lab, rays: list[UserRay], where):
    """`ray.init(address="auto")` says at once that there is no Ray, on the head and on workers: it does not see ours."""
    told = where(shared, rays[0].connect("auto"))
    assert [NOT_FOUND in str(one.get("refused")) for one in told] == [True] * 3, told
    assert max(float(one["seconds"]) for one in told) < 10


def test_commands_without_a_ray_of_ones_own_fail_clearly(shared: Lab, rays: list[UserRay]):
    """`ray status` and `ray job submit` do not see ours either."""
    assert NOT_FOUND in rays[0].ray("status")
    assert NOT_FOUND in rays[1].ray("job submit -- echo never-printed")


def test_init_without_an_address_starts_ones_own(shared: Lab, rays: list[UserRay]):
    """`ray.init()` makes a Ray that is not ours, works, and is gone after `ray.shutdown()`; our processes stay."""
    before = ours(shared)
    told = in_a_job(shared, rays[0].connect(), num_nodes=1)
    told += said(rays[1].host.sh(rays[1].connect(), timeout_s=120).stdout)
    assert [one.get("answer") for one in told] == [[0, 1, 4]] * 2, told
    assert [one["nodes"] for one in told] == [1, 1]
    assert {host: pids - ours(shared)[host] for host, pids in before.items()} == dict.fromkeys(before, set())
    assert all(USERS_PORT not in host.listening_ports() for host in shared.hosts)


@pytest.mark.timeout(900)
def test_ones_own_ray_is_found_on_head_and_worker(shared: Lab, rays: list[UserRay]):
    """With `ray start --head` on the default ports "auto", commands and `ray.init()` find it, in jobs and outside.

    It is ended by `pkill -f "ray start --head --port 6379"`, which touches nothing of ours.
    """
    before = ours(shared)
    asleep = shared.client.exec(shared.task("sleep 900", num_nodes=3), "shared")
    with ThreadPoolExecutor() as pool:
        list(pool.map(UserRay.start, rays[:2]))
        told = by_ssh(shared, rays[0].connect("auto"))[:2]
        told += in_a_job_on(shared, rays[:2])
        assert [str(one.get("joined")).rpartition(":")[2] for one in told] == [str(USERS_PORT)] * 6, told
        assert [one["nodes"] for one in told] == [1] * 6
        submitted = list(pool.map(lambda ray: ray.ray("job submit -- echo from-the-users-ray"), rays[:2]))
        assert all("from-the-users-ray" in text and "succeeded" in text for text in submitted), submitted
        statuses = [ray.ray("status") for ray in rays[:2]]
        assert all("skylib" not in text and "1 node_" in text for text in statuses), statuses
        list(pool.map(UserRay.end, rays[:2]))
    assert {host: pids - ours(shared)[host] for host, pids in before.items()} == dict.fromkeys(before, set())
    assert asleep.status() is skylib.JobStatus.RUNNING
    asleep.cancel()


def in_a_job_on(lab: Lab, rays: list[UserRay]) -> list[dict[str, object]]:
    """What CONNECT said in the ranks that are on these hosts, with "auto" and without an address."""
    names = " ".join(ray.host.name for ray in rays)
    both = f"{rays[0].connect('auto')}; {rays[0].connect()}"
    return in_a_job(lab, f'case " {names} " in *" $(hostname) "*) {both};; esac')


def test_what_ray_stop_looks_for_is_on_no_process_of_a_job_or_of_an_agent(shared: Lab, rays: list[UserRay]):
    """`ray stop` finds Ray's own processes and standing actors alone, by its own list of names."""
    job = shared.client.exec(shared.task("echo $$ $PPID; sleep 900", num_nodes=3), "shared")
    lines = [line for _, line in zip(range(3), job.logs(), strict=False)]
    numbers = {line.rank: {int(word) for word in line.text.split()} for line in lines}
    for rank, ray in enumerate(rays):
        found = ray.host.sh(f"{ray.env}/bin/python -c '{_RAY_STOP_FINDS}'", timeout_s=60, check=True).stdout
        pids = {int(line.split(" ", 1)[0]): line.split(" ", 1)[1] for line in found.splitlines()}
        assert any("raylet" in line for line in pids.values())
        assert not numbers[rank] & set(pids)
        assert [line for line in pids.values() if ".pyz" in line or "skylib_agent" in line] == []
    job.cancel()


_RAY_STOP_FINDS = """
import ray, psutil, subprocess
from ray.autoscaler._private.constants import RAY_PROCESSES
for process in psutil.process_iter(["name", "cmdline"]):
    line = subprocess.list2cmdline(process.info["cmdline"] or [])
    if any(keyword in (process.info["name"] if by_name else line) for keyword, by_name in RAY_PROCESSES):
        print(process.pid, line.replace("\\n", " "))
"""


def test_the_users_ray_works_before_during_and_after(make_warm_host, wheels, tmp_path):
    """A Ray that was there before takes `ray job submit` before, beside and after our cluster."""
    host = make_warm_host()
    lab = make_lab(tmp_path / "sky", [host], wheels=wheels)
    ray = UserRay.install(host, "2.9.3")
    ray.start()
    submit = "job submit -- echo from-the-users-ray"
    assert "from-the-users-ray" in ray.ray(submit)
    lab.client.launch(lab.task("true"), "beside").wait()
    assert "from-the-users-ray" in ray.ray(submit)
    lab.client.exec("true", "beside").wait()
    lab.client.down("beside")
    assert "from-the-users-ray" in ray.ray(submit)
    assert 6379 in host.listening_ports()
    assert 6380 not in host.listening_ports()
    ray.remove()
    lab.assert_nothing_left()
