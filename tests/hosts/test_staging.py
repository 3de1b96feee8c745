"""Files on real SSH hosts, under an ordinary account."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from skylib.errors import ConnectError, StagingError
from skylib.models.node import HostAddress
from skylib.paths import SkyHome
from skylib.staging.plan import plan_sync
from skylib.staging.sync import SyncNode, SyncOutcome, sync
from skylib.transport.ssh import SshTransport
from tests.testbed import Host

pytestmark = pytest.mark.hosts
MakeHost = Callable[..., Host]
LISTING = r"""find . -mindepth 1 -type d -printf '%p %m\0' -o -type l -printf '%p %l\0' -o -printf '%p %m %s\0' | sort -z
find . -type f -print0 | sort -z | xargs -0 -r sha256sum -z"""


@pytest.fixture
def home(tmp_path: Path) -> SkyHome:
    return SkyHome(tmp_path / ".sky")


@pytest.fixture
def connect(home: SkyHome) -> Iterator[Callable[[Host], SyncNode]]:
    """A node for a host; its connection is closed after the test."""
    opened: list[SshTransport] = []

    def open_(host: Host) -> SyncNode:
        address = HostAddress(kind="ssh", host=host.ip, user=host.user, port=host.port, identity_file=str(host.key_path))
        opened.append(SshTransport(address, home=home))
        return SyncNode(transport=opened[-1], root=host.home)

    yield open_
    for transport in opened:
        transport.close()


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A workdir with names, links and modes of every kind."""
    root = tmp_path / "work"
    (root / "sub/deep").mkdir(parents=True)
    (root / "empty").mkdir(mode=0o750)
    for name in ("a", "sub/b", "sub/deep/new\nline", "'quoted' \"twice\" $x `y`", "-rf", "*", "n" * 255, "sub/" + "m" * 200):
        (root / name).write_text(name)
    Path(os.fsdecode(os.fsencode(root) + b"/\xff\xfe")).write_text("bytes")
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    (root / "big").write_bytes(os.urandom(2_000_000))
    (root / "link").symlink_to("sub/b")
    return root


def on_host(host: Host, path: str) -> str:
    return host.sh(f"cd {shlex.quote(path)} && {LISTING}", check=True).stdout


def here(path: Path) -> str:
    done = subprocess.run(["bash", "-c", LISTING], cwd=path, check=True, capture_output=True)
    return done.stdout.decode(errors="replace")


@pytest.fixture
def clean_hosts(ssh_hosts: list[Host]) -> Iterator[list[Host]]:
    """The three hosts, without files of ours before and after."""
    clean = "rm -rf ~/sky_workdir ~/.sky ~/mnt /tmp/staged"
    for host in ssh_hosts:
        host.sh(clean, check=True)
    yield ssh_hosts
    for host in ssh_hosts:
        host.sh(clean, check=True)


def test_a_tree_reaches_three_hosts(clean_hosts: list[Host], connect: Callable[[Host], SyncNode], work: Path) -> None:
    """Every host has the tree, byte for byte, with modes and links; again, nothing is sent; an edit goes alone."""
    nodes = [connect(host) for host in clean_hosts]
    first = sync(nodes, plan_sync(str(work), {"~/mnt/one": str(work / "a"), "/tmp/staged/x": str(work / "sub")}))
    assert [outcome.skipped for outcome in first] == [False] * 3
    for host in clean_hosts:
        assert on_host(host, "sky_workdir") == here(work)
        assert on_host(host, "/tmp/staged/x") == here(work / "sub")
        assert host.sh("cat ~/mnt/one; ls -A ~/.sky/incoming; ls -Ad /tmp/.sky-incoming*").stdout == "a"
    assert all(outcome.skipped for outcome in sync(nodes, plan_sync(str(work))))
    (work / "sub/b").write_text("edited")
    assert [outcome.files for outcome in sync(nodes, plan_sync(str(work)))] == [1, 1, 1]
    assert {on_host(host, "sky_workdir") for host in clean_hosts} == {here(work)}


def test_a_full_disk_is_named_and_changes_nothing(
    make_host: MakeHost, connect: Callable[[Host], SyncNode], work: Path
) -> None:
    """One of two hosts has no room: the error has host, path and cause; what was there stays, the other is served."""
    good, full = make_host(), make_host()
    nodes = [connect(good), connect(full)]
    sync(nodes, plan_sync(str(work)))
    before = on_host(full, "sky_workdir")
    (work / "a").write_text("edited")
    (work / "big").write_bytes(os.urandom(3_000_000))
    full.fill_home(leave_bytes=1_000_000)
    with pytest.raises(StagingError) as caught:
        sync(nodes, plan_sync(str(work)))
    assert caught.value.host == full.ip
    assert caught.value.path == f"{full.home}/sky_workdir/big"
    assert "no space" in caught.value.message
    assert on_host(full, "sky_workdir") == before
    assert full.sh("ls -A ~/.sky/incoming").stdout == ""
    assert on_host(good, "sky_workdir") == here(work)
    full.unfill_home()
    assert [outcome.skipped for outcome in sync(nodes, plan_sync(str(work)))] == [True, False]
    assert on_host(full, "sky_workdir") == here(work)


def test_a_directory_that_may_not_be_written_is_named(
    clean_hosts: list[Host], connect: Callable[[Host], SyncNode], work: Path
) -> None:
    """A place that belongs to somebody else: permission denied, with host and path."""
    host = clean_hosts[0]
    host.sh(
        "mkdir -p ~sky/mnt/theirs && chown root:root ~sky/mnt/theirs && chmod 755 ~sky/mnt/theirs", user="root", check=True
    )
    try:
        with pytest.raises(StagingError, match="permission denied") as caught:
            sync([connect(host)], plan_sync(None, {"~/mnt/theirs/x": str(work)}))
        assert caught.value.host == host.ip
        assert (caught.value.path or "").startswith(f"{host.home}/mnt/theirs")
    finally:
        host.sh("rm -rf ~sky/mnt", user="root", check=True)


def test_absolute_targets_get_a_link_or_a_reason(
    clean_hosts: list[Host], connect: Callable[[Host], SyncNode], work: Path
) -> None:
    """The link is made where the account may; else the error says what is in the way."""
    host = clean_hosts[0]
    node = connect(host)
    host.sh(
        "mkdir /srv/open && chmod 777 /srv/open && mkdir /srv/open/taken /srv/shut && ln -s /etc /srv/open/theirs",
        user="root",
        check=True,
    )
    try:
        outcome: SyncOutcome
        (outcome,) = sync([node], plan_sync(None, {"/srv/open/new/data": str(work)}))
        assert not outcome.skipped
        assert on_host(host, "/srv/open/new/data/") == here(work)
        assert host.sh("readlink /srv/open/new/data").stdout.strip() == f"{host.home}/.sky/file_mounts/srv/open/new/data"
        assert sync([node], plan_sync(None, {"/srv/open/new/data": str(work)}))[0].skipped
        for dst, reason in (
            ("/srv/open/taken", "something that is no link"),
            ("/srv/open/theirs", "a link to /etc"),
            ("/srv/shut/x/y", "may not write in /srv/shut"),
        ):
            with pytest.raises(StagingError, match=reason) as caught:
                sync([node], plan_sync(str(work), {dst: str(work)}))
            assert (caught.value.host, caught.value.path) == (host.ip, dst)
        assert host.sh("ls -A ~/sky_workdir").stdout == ""
    finally:
        host.sh("rm -rf /srv/open /srv/shut", user="root", check=True)


def test_a_host_that_crashes_meanwhile_keeps_what_it_had(
    make_host: MakeHost, connect: Callable[[Host], SyncNode], work: Path
) -> None:
    """A transfer that breaks off changes no file; the next sync completes it."""
    host = make_host()
    node = connect(host)
    sync([node], plan_sync(str(work)))
    before = on_host(host, "sky_workdir")
    (work / "a").write_text("edited")
    with (work / "huge").open("wb") as file:
        file.truncate(20 * 2**30)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(sync, [node], plan_sync(str(work)))
        deadline = time.monotonic() + 30
        while not host.sh("ls ~/.sky/incoming/*/0/sky_workdir/huge").stdout and time.monotonic() < deadline:
            assert not running.done()
        host.crash()
        with pytest.raises(ConnectError):
            running.result(timeout=60)
        (work / "huge").unlink()
        host.boot()
    assert on_host(host, "sky_workdir") == before
    assert not sync([node], plan_sync(str(work)))[0].skipped
    assert on_host(host, "sky_workdir") == here(work)


def test_an_archive_that_lacks_its_end_is_not_taken(
    clean_hosts: list[Host], connect: Callable[[Host], SyncNode], work: Path
) -> None:
    """A file here that cannot be sent leaves the hosts as they were; what had arrived is kept until the next sync."""
    host = clean_hosts[0]
    node = connect(host)
    sync([node], plan_sync(str(work)))
    before = on_host(host, "sky_workdir")
    (work / "a").write_text("edited")
    (work / "sub/b").write_text("edited")
    plan = plan_sync(str(work))
    (work / "sub/b").unlink()
    (work / "sub/b").symlink_to("/etc/hostname")
    with pytest.raises(StagingError, match="replaced"):
        sync([node], plan)
    assert on_host(host, "sky_workdir") == before
    assert all(name.startswith("rest-") for name in host.sh("ls -A ~/.sky/incoming").stdout.split())
    sync([node], plan_sync(str(work)))
    assert on_host(host, "sky_workdir") == here(work)
    assert host.sh("ls -A ~/.sky/incoming").stdout == ""
