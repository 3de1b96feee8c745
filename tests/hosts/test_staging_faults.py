"""Transfers that break: what was on the hosts stays usable, the error says where, and the next sync completes them."""

from __future__ import annotations

import multiprocessing
import os
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from skylib.errors import StagingError
from skylib.events import Event, Phase
from skylib.models.node import HostAddress
from skylib.paths import SkyHome
from skylib.staging.plan import plan_sync
from skylib.staging.sync import SyncNode, sync
from skylib.transport.ssh import SshTransport
from tests.testbed import Host

pytestmark = pytest.mark.hosts
SUMS = "find . -type f -print0 | sort -z | xargs -0 -r sha256sum"
Connect = Callable[[Host], SyncNode]


def host_address(host: Host) -> tuple[HostAddress, str]:
    """How to reach a host, and its account's home there; can be sent to another process."""
    key = str(host.key_path)
    return HostAddress(kind="ssh", host=host.ip, user=host.user, port=host.port, identity_file=key), host.home


def open_node(place: tuple[HostAddress, str], home: Path) -> SyncNode:
    address, root = place
    return SyncNode(transport=SshTransport(address, home=SkyHome(home)), root=root)


@pytest.fixture
def connect(tmp_path: Path) -> Iterator[Connect]:
    """A node for a host; its connection is closed after the test."""
    opened: list[SyncNode] = []

    def open_(host: Host) -> SyncNode:
        opened.append(open_node(host_address(host), tmp_path / f".sky{len(opened)}"))
        return opened[-1]

    yield open_
    for node in opened:
        node.transport.close()


@pytest.fixture
def hosts(ssh_hosts: list[Host]) -> Iterator[list[Host]]:
    """The three hosts, without files of ours before and after."""
    for host in ssh_hosts:
        host.sh("rm -rf ~/sky_workdir ~/.sky", check=True)
    yield ssh_hosts
    for host in ssh_hosts:
        host.sh("rm -rf ~/sky_workdir ~/.sky", check=True)


def tree(path: Path, mark: str) -> Path:
    """A workdir of 40 files, each with `mark` and 100 kB that differ."""
    path.mkdir(exist_ok=True)
    for number in range(40):
        (path / f"file{number}").write_bytes(mark.encode() + os.urandom(100_000))
    return path


def on_host(host: Host) -> str:
    return host.sh(f"cd {shlex.quote(host.home)}/sky_workdir && {SUMS}", check=True).stdout


def here(path: Path) -> str:
    return subprocess.run(["bash", "-c", SUMS], cwd=path, check=True, capture_output=True, text=True).stdout


def send(place: tuple[HostAddress, str], home: Path, work: Path) -> None:
    """One sync, in a process of its own."""
    sync([open_node(place, home)], plan_sync(str(work), git=None))


def test_a_client_killed_while_it_sends_changes_nothing(hosts: list[Host], connect: Connect, tmp_path: Path) -> None:
    """The host keeps what it had; the next client's sync completes the tree."""
    host, work, node = hosts[0], tree(tmp_path / "work", "old"), connect(hosts[0])
    sync([node], plan_sync(str(work), git=None))
    before = on_host(host)
    tree(work, "new")
    with (work / "huge").open("wb") as file:
        file.truncate(20 * 2**30)
    client = multiprocessing.get_context("spawn").Process(target=send, args=(host_address(host), tmp_path / ".sky-x", work))
    client.start()
    deadline = time.monotonic() + 60
    while not host.sh("ls ~/.sky/incoming/*/0/sky_workdir/huge").stdout:
        assert client.is_alive()
        assert time.monotonic() < deadline
    client.kill()
    client.join(30)
    assert on_host(host) == before
    (work / "huge").unlink()
    sync([node], plan_sync(str(work), git=None))
    assert on_host(host) == here(work)


def test_a_full_disk_on_one_of_three_is_named(
    make_host: Callable[..., Host], hosts: list[Host], connect: Connect, tmp_path: Path
) -> None:
    """The two others get the tree, the full one keeps its own; the error names host and path."""
    full, work = make_host(), tree(tmp_path / "work", "old")
    nodes = [connect(host) for host in (*hosts[:2], full)]
    sync(nodes, plan_sync(str(work), git=None))
    before = on_host(full)
    tree(work, "new")
    full.fill_home(leave_bytes=1_000_000)
    with pytest.raises(StagingError, match="no space") as caught:
        sync(nodes, plan_sync(str(work), git=None))
    assert caught.value.host == full.ip
    assert (caught.value.path or "").startswith(f"{full.home}/sky_workdir")
    assert on_host(full) == before
    assert [on_host(host) for host in hosts[:2]] == [here(work)] * 2


def test_two_clients_that_sync_at_once_leave_whole_files(hosts: list[Host], connect: Connect, tmp_path: Path) -> None:
    """Every file on the host is one of the two clients' files whole, and one more sync gives exactly its tree."""
    works = [tree(tmp_path / name, name) for name in ("one", "two")]
    nodes = [connect(hosts[0]) for _work in works]
    errors: list[BaseException] = []

    def run(node: SyncNode, work: Path) -> None:
        try:
            sync([node], plan_sync(str(work), git=None))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=pair) for pair in zip(nodes, works, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not errors
    assert not any(thread.is_alive() for thread in threads)
    assert set(on_host(hosts[0]).splitlines()) <= set("".join(map(here, works)).splitlines())
    sync([nodes[0]], plan_sync(str(works[0]), git=None))
    assert on_host(hosts[0]) == here(works[0])


def test_a_connection_that_breaks_is_gone_on_with(hosts: list[Host], connect: Connect, tmp_path: Path) -> None:
    """The host's end of the connection dies while files are sent: the same call brings them all, most of them once."""
    (host, *_others) = hosts
    (tmp_path / "work").mkdir()
    for number in range(60):
        (tmp_path / f"work/file{number}").write_bytes(os.urandom(2_000_000))
    plan = plan_sync(str(tmp_path / "work"), git=None)
    ended: list[int] = []

    def end_session(event: Event) -> None:
        if event.phase is Phase.NOTE and event.facts.get("bytes", 0) and not ended:
            ended.extend(pid for pid, command in host.processes() if command.startswith("sshd: sky@"))
            host.sh("kill -KILL " + " ".join(map(str, ended)), user="root", check=True)

    (outcome,) = sync([connect(host)], plan, events=end_session)
    assert ended
    assert on_host(host) == subprocess.run(SUMS, shell=True, cwd=tmp_path / "work", capture_output=True, text=True).stdout
    assert outcome.bytes < 0.95 * plan.bytes
    assert host.sh("ls -A ~/.sky/incoming", check=True).stdout == ""
