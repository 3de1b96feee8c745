"""What jobs go through when something dies: each fault with what may come of those that run and of those that wait.

The cluster is shared; a user's own Ray runs tasks on its head and on its first worker throughout. In the suite are the
faults that are likely; `-m slow` runs all of them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import attrs
import pytest

import skylib
from skylib import JobStatus
from tests.faults import CLUSTER, Load, Site
from tests.lab import eventually, make_lab, remove_home
from tests.testbed import Host
from tests.user_ray import UserRay

LOST_S = 15.0  # a node that is gone fails its gangs within this
STOPPED_S = 2.0  # the first rank that fails ends the others within this
WHOLE_S = 120.0  # by then a cluster is whole again, on a machine that is busy


@attrs.frozen(kw_only=True)
class End:
    """How a job that does not go on has to end. reason, rank: of its first cause. within_s: of the fault."""

    status: JobStatus
    reason: str
    rank: int | None
    within_s: float | None = None
    signal: int | None = None


@attrs.frozen(kw_only=True)
class Fault:
    """make: does it, and returns when it is done. mend: what a person would do about it; most need nobody. lasts: the jobs
    come to their end before it is mended.

    gang, solos (by rank of the node): how they end, when not SUCCEEDED with all their lines. unheard: of these nodes'
    ranks lines may be missing. queued: how the job that waited ends, when it does not run in the end. users_rays: ranks
    whose user's Ray dies of it.
    """

    name: str
    make: Callable[[Site, Load], object]
    mend: Callable[[Site], object] = lambda site: None
    lasts: bool = False
    gang: End | None = None
    solos: Mapping[int, End] = attrs.field(factory=dict)
    unheard: tuple[int, ...] = ()
    queued: End | None = None
    users_rays: tuple[int, ...] = ()


def lost(rank: int, *, within_s: float | None = LOST_S) -> End:
    return End(status=JobStatus.FAILED_DRIVER, reason="lost", rank=rank, within_s=within_s)


def agent(rank: int) -> Callable[[Site, Load], None]:
    return lambda site, load: site.kill(rank, site.agent(rank))


def agent_and_guardian(rank: int) -> Callable[[Site, Load], None]:
    return lambda site, load: site.kill(rank, site.guardian(rank), site.agent(rank))


def ray_program(rank: int, program: str) -> Callable[[Site, Load], None]:
    def make(site: Site, load: Load) -> None:
        old = site.ray(rank, program)
        site.kill(rank, old)
        eventually(lambda: site.ray(rank, program) not in (0, old), within_s=WHOLE_S, what=f"another {program}")

    return make


def sshd(*, listener: bool) -> Callable[[Site, Load], None]:
    def make(site: Site, load: Load) -> None:
        for rank, host in enumerate(site.hosts):
            lines = [(pid, line) for pid, line in host.processes() if line.startswith("sshd")]
            site.kill(rank, *[pid for pid, line in lines if ("[listener]" in line) == listener])
        for host in site.hosts:
            host.wait_ssh()

    return make


def ray_stop(*ranks: int) -> Callable[[Site, Load], None]:
    def make(site: Site, load: Load) -> None:
        for rank in ranks:
            site.hosts[rank].sh("env -u SKYLIB_CLUSTER_ID ~/skypilot-runtime/bin/ray stop", timeout_s=90, check=True)

    return make


def cut(rank: int, seconds: float) -> Callable[[Site, Load], None]:
    def make(site: Site, load: Load) -> None:
        site.hosts[rank].cut()
        try:
            time.sleep(seconds)
        finally:
            site.hosts[rank].restore()

    return make


def crash(*ranks: int) -> Callable[[Site, Load], None]:
    return lambda site, load: [site.hosts[rank].crash() for rank in ranks]


def boot(site: Site) -> None:
    for host in site.hosts:
        host.boot()
    assert site.client.start(CLUSTER).actions


def disk_full(rank: int) -> Fault:
    """A job that goes on without its output, or ends well by its own account, has not succeeded."""
    end = End(status=JobStatus.FAILED, reason="disk_full", rank=rank)
    return Fault(
        name=f"disk of node {rank} filled",
        make=lambda site, load: site.fill(rank),
        mend=lambda site: site.unfill(rank),
        lasts=True,
        gang=end,
        solos={rank: attrs.evolve(end, rank=0)},
        queued=end,
        unheard=(rank,),
    )


REBOOTED = End(status=JobStatus.FAILED_DRIVER, reason="lost", rank=None)

SAMPLE = (
    Fault(name="raylet of a worker", make=ray_program(1, "raylet")),
    Fault(name="ray stop on the head", make=ray_stop(0), users_rays=(0,)),
    Fault(name="link cut for 5 s", make=cut(2, 5)),
)
ON_DEMAND = (
    Fault(name="agent of the head", make=agent(0)),
    Fault(name="GCS", make=ray_program(0, "gcs_server")),
    Fault(
        name="shell of a rank",
        make=lambda site, load: site.kill(2, load.shells[2]),
        gang=End(status=JobStatus.FAILED, reason="signal", rank=2, signal=9, within_s=STOPPED_S),
    ),
    Fault(name="agent of a worker", make=agent(1)),
    Fault(name="agent of the head and its guardian", make=agent_and_guardian(0)),
    Fault(name="raylet of the head", make=ray_program(0, "raylet")),
    Fault(name="sshd of every connection", make=sshd(listener=False)),
    Fault(name="sshd that listens", make=sshd(listener=True)),
    Fault(name="ray stop on a worker", make=ray_stop(1), users_rays=(1,)),
    Fault(name="ray stop everywhere", make=ray_stop(0, 1, 2), users_rays=(0, 1)),
    Fault(name="worker crashed", make=crash(2), mend=boot, gang=lost(2), solos={2: lost(0)}, unheard=(2,)),
    Fault(
        name="head crashed",
        make=crash(0),
        mend=boot,
        gang=REBOOTED,
        solos=dict.fromkeys(range(3), REBOOTED),
        queued=REBOOTED,
        unheard=(0, 1, 2),
        users_rays=(0,),
    ),
    Fault(name="worker cut off for 60 s", make=cut(2, 60), gang=lost(2), solos={2: lost(0)}, unheard=(2,)),
    disk_full(2),
)


@pytest.fixture(scope="module")
def site(warm_hosts: list[Host], wheels: Path) -> Iterator[Site]:
    """The cluster, with a Ray of the user's own on two of its nodes."""
    with tempfile.TemporaryDirectory(prefix="skylib-faults-") as scratch:
        lab = make_lab(Path(scratch, "sky"), warm_hosts, wheels=wheels)
        lab.client.launch(lab.task("true", num_nodes=3), CLUSTER).wait()
        by_ip = {host.ip: host for host in warm_hosts}
        hosts = tuple(by_ip[node.internal_ip] for node in lab.client.cluster(CLUSTER).nodes())
        rays = tuple(UserRay.install(host, "2.9.3") for host in hosts[:2])
        yield Site(lab=lab, hosts=hosts, rays=rays)
        for host in hosts:
            host.restore()
            host.unfill_home()
            host.boot()
            host.sh("rm -f ~/faults-*")
        for ray in rays:
            ray.remove()
        lab.client.down(CLUSTER, purge=True)
        lab.assert_nothing_left()
        remove_home(lab)


def cases() -> list[object]:
    rest = [pytest.param(fault, id=fault.name, marks=pytest.mark.slow) for fault in ON_DEMAND]
    return [*(pytest.param(fault, id=fault.name) for fault in SAMPLE), *rest]


@pytest.mark.parametrize("fault", cases())
def test_a_fault(site: Site, fault: Fault):
    """What ran, what waited, and the user's own Ray come out of it as the table says; the cluster is whole again."""
    site.wait_whole(within_s=WHOLE_S)
    site.keep_users_rays()
    load = site.load()
    before = site.ticking()
    at = time.time()
    fault.make(site, load)
    if fault.lasts:
        site.let_go()
    if fault.gang is not None and site.hosts[0].is_up:
        load.gang.wait(timeout_s=LOST_S + WHOLE_S, check=False)
    if fault.lasts:
        load.queued.wait(timeout_s=WHOLE_S, check=False)
    fault.mend(site)
    site.wait_whole(within_s=WHOLE_S)
    site.let_go()
    check_gang(site, load, fault, at)
    for rank, job in enumerate(load.solos):
        check(job.wait(timeout_s=60, check=False), fault.solos.get(rank), at)
        if rank not in fault.solos:
            check_lines([line.text for line in job.logs()])
    check(load.queued.wait(timeout_s=60, check=False), fault.queued, at)
    alive = {ray.host.name for rank, ray in enumerate(site.rays) if rank not in fault.users_rays}
    eventually(lambda: all(site.ticking()[name] > before[name] for name in alive), what="tasks of the user's own Ray")


@pytest.mark.slow
def test_a_full_disk_on_the_head_hides_no_end(site: Site):
    """What ends while nothing can be written down is told when there is room again, and nothing is told that is not so."""
    site.wait_whole(within_s=WHOLE_S)
    load = site.load()
    site.hosts[0].fill_home()
    site.let_go()
    for rank in (1, 2):
        eventually(lambda rank=rank: site.processes_of(rank, load.gang) == [], what=f"the gang's end on node {rank}")
    site.hosts[0].unfill_home()
    for job in (load.gang, *load.solos, load.queued):
        record = job.wait(timeout_s=WHOLE_S, check=False)
        if record.status is not JobStatus.SUCCEEDED:
            assert "disk" in record.cause, record
        elif record.job_id != load.queued.id:
            for rank in range(record.num_nodes):
                check_lines([line.text for line in job.logs() if line.rank == rank])
    site.wait_whole(within_s=WHOLE_S)
    assert site.client.exec("echo again", CLUSTER).wait(timeout_s=60).status is JobStatus.SUCCEEDED


def check_gang(site: Site, load: Load, fault: Fault, at: float) -> None:
    record = load.gang.wait(timeout_s=60, check=False)
    check(record, fault.gang, at)
    assert load.watcher.whole(), load.watcher.error
    for rank in range(3):
        if rank not in fault.unheard:
            check_lines(load.watcher.texts(rank), ended=fault.gang is None)
    for rank in range(3):
        eventually(lambda rank=rank: site.processes_of(rank, load.gang) == [], what=f"nothing of the gang on node {rank}")


def check(record: skylib.JobRecord, end: End | None, at: float) -> None:
    """at: when the fault began; the hosts' clocks are this machine's."""
    if end is None:
        assert (record.status, record.cause) == (JobStatus.SUCCEEDED, ""), record
        return
    cause = record.first_cause
    assert record.status is end.status, record
    assert cause is not None, record
    assert (cause.reason, cause.rank, cause.signal) == (end.reason, end.rank, end.signal), record
    if cause.rank is not None:
        assert cause.node
        assert cause.node in record.cause
    if end.within_s is not None:
        assert record.ended_at is not None
        assert record.ended_at - at <= end.within_s, record


def check_lines(texts: list[str], *, ended: bool = True) -> None:
    """Each line once and in order; to the last one, when the rank came to its end."""
    ticks = [text for text in texts if text.startswith("tick ")]
    assert ticks == [f"tick {number}" for number in range(len(ticks))]
    assert texts[0].startswith("begun ")
    if ended:
        assert texts[-1] == f"ended {len(ticks)}"
