"""Faults of a cluster on real hosts, and the jobs that are under way while they happen.

A `Site` is a standing cluster of three hosts that are its nodes in order of rank; `Load` is what runs and waits on it.
What a fault may do to that is said in tests/hosts/test_faults.py.
"""

from __future__ import annotations

import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs

import skylib
from skylib.models.job import LogLine
from tests.lab import Lab, eventually
from tests.testbed import Host
from tests.user_ray import UserRay

__all__ = ["CLUSTER", "Load", "Site", "Watcher"]

CLUSTER = "faults"
_GO = "~/faults-go"
_PAD = "~/faults-pad"
# Where there is a pad: more to print than others on a full disk may give up meanwhile.
_PADDED = f"[ ! -e {_PAD} ] || printf '%01048576d\\n' 0 || exit 1\n"
# Takes what others give up.
_FILL = "(while :; do cat /dev/zero >> ~/faults-filler; sleep 0.01; done) >/dev/null 2>&1 & echo $! > /tmp/faults-filler.pid"
# Prints its shell's pid and a line each 0.1 s, until it is let go; then how many they were.
_TICK = f"""\
echo "begun $(hostname) $$"
i=0
while [ ! -e {_GO} ]; do echo "tick $i"; i=$((i + 1)); sleep 0.1; done
{_PADDED}echo "ended $i"
"""


class Watcher:
    """Follows a job's log in a thread of its own from begin to end. error: what ended it otherwise."""

    def __init__(self, job: skylib.Job) -> None:
        self.lines: list[LogLine] = []
        self.error: BaseException | None = None
        self._job = job
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        try:
            for line in self._job.logs():
                self.lines.append(line)
        except BaseException as error:  # boundary: a thread; the test looks at it
            self.error = error

    def texts(self, rank: int = 0) -> list[str]:
        """What that rank printed, as far as it has come."""
        return [line.text for line in list(self.lines) if line.rank == rank]

    def whole(self, *, within_s: float = 60.0) -> bool:
        """Whether it came to the log's normal end. Waits for the thread."""
        self._thread.join(within_s)
        return not self._thread.is_alive() and self.error is None


@attrs.frozen(kw_only=True)
class Load:
    """gang: a rank on each node, running. solos: one job on each node, running, by the node's rank. queued: a gang that
    wants all there is, so it waits until the others are over. shells: pid of each rank of the gang, on its host.
    """

    gang: skylib.Job
    solos: tuple[skylib.Job, ...]
    queued: skylib.Job
    watcher: Watcher
    shells: tuple[int, ...]


@attrs.frozen(kw_only=True)
class Site:
    """hosts: by rank of the node. rays: the user's own Ray on 6379 of some of them, which runs tasks all the time."""

    lab: Lab
    hosts: tuple[Host, ...]
    rays: tuple[UserRay, ...]

    @property
    def client(self) -> skylib.Client:
        return self.lab.client

    def load(self) -> Load:
        """Fills the cluster. Returns when gang and solos have printed and the other one waits."""
        for host in self.hosts:
            host.sh(f"rm -f {_GO}")
        cpus = self.client.cluster(CLUSTER).nodes()[0].cpus
        gang = self.client.exec(self._task(_TICK, cpus / 2, num_nodes=3), CLUSTER)
        watcher = Watcher(gang)
        eventually(lambda: all(len(watcher.texts(rank)) > 2 for rank in range(3)), what="three ranks that print")
        solos = [self.client.exec(self._task(_TICK, cpus / 2), CLUSTER) for _ in self.hosts]
        where: dict[int, skylib.Job] = {}
        for job in solos:
            first = next(line for line in job.logs() if line.text.startswith("begun "))
            where[[host.name for host in self.hosts].index(first.text.split()[1])] = job
        queued = self.client.exec(self._task(_PADDED + "echo queued", cpus, num_nodes=3), CLUSTER)
        assert queued.status() is skylib.JobStatus.PENDING
        shells = tuple(int(watcher.texts(rank)[0].split()[2]) for rank in range(3))
        return Load(gang=gang, solos=tuple(where[rank] for rank in range(3)), queued=queued, watcher=watcher, shells=shells)

    def _task(self, run: str, cpus: float, **fields: object) -> skylib.Task:
        return self.lab.task(run, resources=skylib.Resources(infra="ssh/lab", cpus=cpus), **fields)

    def fill(self, rank: int) -> None:
        """The disk of that node is full, and what ends there has something to print."""
        self.hosts[rank].sh(f"touch {_PAD}", check=True)
        self.hosts[rank].fill_home()
        self.hosts[rank].sh(_FILL, check=True)

    def unfill(self, rank: int) -> None:
        self.hosts[rank].sh(f"kill $(cat /tmp/faults-filler.pid); rm -f ~/faults-filler {_PAD}", check=True)
        self.hosts[rank].unfill_home()

    def let_go(self) -> None:
        """The ticking jobs on hosts that are up come to their end."""
        for host in self.hosts:
            if host.is_up:
                host.sh(f"touch {_GO}")

    # --- who is who

    def agent(self, rank: int) -> int:
        """Pid of the node's agent; 0 when there is none."""
        return self._holder(rank).get("pid", 0)

    def guardian(self, rank: int) -> int:
        """Pid of the process that looks after the node's agent."""
        return (self._holder(rank).get("guardian") or [0])[0]

    def _holder(self, rank: int) -> dict[str, int]:
        text = self.hosts[rank].sh("cat ~/.sky/agent.lock 2>/dev/null; true").stdout
        holder = json.loads(text) if text.strip() else {}
        alive = any(pid == holder.get("pid") for pid, _ in self.hosts[rank].processes("sky"))
        return holder if alive else {}

    def ray(self, rank: int, program: str) -> int:
        """Pid of our Ray's process on the node by the name of its file ("raylet", "gcs_server"); 0 when there is none."""
        for pid, line in self.hosts[rank].processes("sky"):
            if re.match(rf"/home/sky/skypilot-runtime/\S*/{program}( |$)", line):
                return pid
        return 0

    def processes_of(self, rank: int, job: skylib.Job) -> list[str]:
        """Command lines of what a job has left on a node."""
        marked = f"SKYPILOT_TASK_ID={job.record().task_id}".encode()
        host = self.hosts[rank]
        found = []
        for pid, line in host.processes("sky"):
            try:
                environ = Path(f"/proc/{host.init_pid}/root/proc/{pid}/environ").read_bytes()
            except OSError:
                continue
            if marked in environ.split(b"\0"):
                found.append(line)
        return found

    def kill(self, rank: int, *pids: int) -> None:
        """kill -9 on the node's host."""
        assert all(pids), "somebody to kill is not there"
        self.hosts[rank].sh(f"kill -9 {' '.join(map(str, pids))}", user="root", check=True)

    # --- how it is

    def missing(self) -> list[str]:
        """What a whole cluster would have: agents and raylets everywhere, a GCS, and Ray's word that all nodes are there."""
        lacks = [f"agent of node {rank}" for rank in range(3) if not self.agent(rank)]
        lacks += [f"raylet of node {rank}" for rank in range(3) if not self.ray(rank, "raylet")]
        lacks += [] if self.ray(0, "gcs_server") else ["GCS"]
        if not lacks:
            (record,) = self.client.status([CLUSTER], refresh=True)
            lacks += [] if record.status is skylib.ClusterStatus.UP else [repr(record)]
        return lacks

    def wait_whole(self, *, within_s: float) -> None:
        """Returns when nothing is missing; fails with what is."""
        deadline = time.monotonic() + within_s
        while lacks := self.missing():
            assert time.monotonic() < deadline, f"still missing after {within_s:g} s: {lacks}"
            time.sleep(0.2)

    def ticking(self) -> dict[str, int]:
        """How many tasks each user's Ray has done."""
        return {ray.host.name: ray.ticks("all") for ray in self.rays if ray.host.is_up}

    def keep_users_rays(self) -> None:
        """Starts each user's Ray that is not there, with its tasks."""
        gone = [ray for ray in self.rays if not ray.runs_tasks()]
        with ThreadPoolExecutor() as pool:
            list(pool.map(_begin, gone))


def _begin(ray: UserRay) -> None:
    ray.end_all()
    ray.start()
    ray.run_tasks("all")
