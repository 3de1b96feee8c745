"""A pool of real hosts with a client on it, and the look whether anything is left behind."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import attrs

import skylib
from skylib.models.job import LogLine
from skylib.session import Session
from tests.testbed import Host, pool_yaml

__all__ = ["Lab", "eventually", "first_lines", "make_lab", "ranks_text", "texts"]


def eventually(condition: Callable[[], bool], *, within_s: float = 30.0, what: str = "it") -> None:
    """Wait until `condition` holds; fail when it does not within the bound."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true within {within_s:g} s")
        time.sleep(0.05)


def texts(lines: Sequence[LogLine]) -> list[str]:
    """What was printed, without who printed it."""
    return [line.text for line in lines]


def first_lines(job: skylib.Job, count: int) -> list[LogLine]:
    """That many lines of a job that goes on, as soon as they are there."""
    eventually(lambda: len(list(job.logs(follow=False))) >= count, what=f"{count} lines of {job}")
    return list(job.logs(follow=False))[:count]


def ranks_text(lines: Sequence[LogLine]) -> list[tuple[int, str]]:
    """(rank, text) of each line, in order of rank; lines of one rank stay in their order."""
    return sorted(((line.rank, line.text) for line in lines), key=lambda pair: pair[0])


@attrs.frozen(kw_only=True, eq=False)
class Lab:
    """A home whose pool `lab` has the hosts, and a client of it. config: what the client was given."""

    home: Path
    hosts: tuple[Host, ...]
    client: skylib.Client
    config: Mapping[str, object] = attrs.field(factory=dict)

    def task(self, run: str = "echo hello", **fields: object) -> skylib.Task:
        """A task for this pool."""
        resources = fields.pop("resources", None) or skylib.Resources(infra="ssh/lab")
        return skylib.Task(run=run, resources=resources, **fields)  # type: ignore[arg-type]

    def pool(self, text: str) -> None:
        """Another content for the pool file."""
        self.home.joinpath("ssh_node_pools.yaml").write_text(text)

    def ours(self, host: Host) -> list[str]:
        """Command lines of the account's processes, but for sshd's own."""
        return [line for _, line in host.processes("sky") if not line.startswith("sshd")]

    def by_rank(self, cluster: str) -> list[Host]:
        """The hosts that are the cluster's nodes, the head first."""
        ips = [node.internal_ip for node in self.client.cluster(cluster).nodes()]
        return [next(host for host in self.hosts if host.ip == ip) for ip in ips]

    def assert_nothing_left(self) -> None:
        """No record, no held host, no process, no mark on any host that is up."""
        assert self.client.status() == []
        store = Session(self.home, config=self.config).store
        assert store.claims() == {}
        assert store.open_intents() == []
        store.close()
        for host in self.hosts:
            if not host.is_up:
                continue
            eventually(lambda host=host: self.ours(host) == [], what=f"no process on {host.name}: {self.ours(host)}")
            left = host.sh(
                "ls -d ~/.sky/cluster.json ~/.sky/agent ~/sky_workdir /tmp/ray_skypilot* 2>/dev/null; true"
            ).stdout
            assert left.strip() in ("", b""), left


def make_lab(
    home: Path, hosts: Sequence[Host], *, wheels: Path | None = None, config: dict[str, object] | None = None
) -> Lab:
    """A fresh home for a pool of these hosts. wheels: a kept wheelhouse that the home uses."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    home.joinpath("ssh_node_pools.yaml").write_text(pool_yaml(hosts))
    if wheels is not None:
        home.joinpath("runtime").mkdir(mode=0o700, exist_ok=True)
        home.joinpath("runtime", "wheels").symlink_to(wheels)
    return Lab(home=home, hosts=tuple(hosts), client=skylib.Client(home, config=config), config=config or {})


def copy_runtime(source: Host, target: Host) -> None:
    """Give a host the private environment that another one has."""
    target.copy_home(source)


def remove_home(lab: Lab) -> None:
    """Close the client and remove its home."""
    lab.client.close()
    shutil.rmtree(lab.home, ignore_errors=True)
