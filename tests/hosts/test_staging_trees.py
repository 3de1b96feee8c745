"""Random trees, synced to a real SSH host, changed and synced again."""

from __future__ import annotations

import os
import random
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from skylib.models.node import HostAddress
from skylib.paths import SkyHome
from skylib.staging.plan import plan_sync
from skylib.staging.sync import SyncNode, sync
from skylib.transport.ssh import SshTransport
from tests.testbed import Host

pytestmark = pytest.mark.hosts

LISTING = r"""export LC_ALL=C
find . -type d -printf 'd %m %p\0' -o -type l -printf 'l %p %l\0' -o -printf 'f %m %s %p\0' |
sort -z | sha256sum
find . -type f -print0 | sort -z | xargs -0 -r sha256sum -z | sha256sum"""
NAMES = (
    b"a",
    b"b c",
    b"new\nline",
    b"'q' \"d\" $x `y`",
    b"-rf",
    b"*",
    b"\xff\xfe",
    b"\\",
    b".hid",
    b"n" * 200,
    "\u00e4".encode(),
)
MEMBER_BYTES = 512 * 8
ARCHIVE_BYTES = 512 * 64


@pytest.fixture
def node(ssh_hosts: list[Host], tmp_path: Path) -> Iterator[tuple[SyncNode, Host]]:
    """A host without files of ours, before and after."""
    host = ssh_hosts[0]
    host.sh("rm -rf ~/sky_workdir ~/.sky", check=True)
    address = HostAddress(kind="ssh", host=host.ip, user=host.user, port=host.port, identity_file=str(host.key_path))
    transport = SshTransport(address, home=SkyHome(tmp_path / ".sky"))
    yield SyncNode(transport=transport, root=host.home), host
    transport.close()
    host.sh("rm -rf ~/sky_workdir ~/.sky", check=True)


def same(host: Host, work: Path) -> bool:
    """Whether the host has the tree: names, kinds, modes, sizes, links and contents."""
    there = host.sh(f"cd {shlex.quote(host.home)}/sky_workdir && {LISTING}", check=True).stdout
    here = subprocess.run(["bash", "-c", LISTING], cwd=work, check=True, capture_output=True, text=True).stdout
    return there == here


def write(path: bytes, chance: random.Random) -> int:
    """A new file, sometimes with a hole; its size."""
    with open(path, "wb") as file:
        if chance.random() < 0.2:
            file.seek(chance.randrange(1, 200_000))
        file.write(chance.randbytes(chance.choice((0, 1, 511, 512, 513, 40_000))))
        file.truncate(file.tell())
    os.chmod(path, chance.choice((0o600, 0o644, 0o755, 0o440)))
    return os.path.getsize(path)


def grow(top: bytes, chance: random.Random, depth: int = 0) -> None:
    """Fill a directory with files, links and directories, some of them empty."""
    for name in chance.sample(NAMES, chance.randrange(1, len(NAMES))):
        path = top + b"/" + name
        kind = chance.random()
        if kind < 0.25 and depth < 3:
            os.mkdir(path)
            if chance.random() < 0.7:
                grow(path, chance, depth + 1)
            os.chmod(path, chance.choice((0o700, 0o755, 0o750)))
        elif kind < 0.4:
            os.symlink(chance.choice((b"a", b"../gone", b"x" * 150, b"\xff")), path)
        else:
            write(path, chance)


def mutate(top: bytes, chance: random.Random) -> tuple[int, int]:
    """Change some files, links and modes, and add some: how many entries have to travel, and the bytes in them."""
    entries = size = 0
    for where, _directories, names in list(os.walk(top)):
        for name in names:
            path = where + b"/" + name
            if chance.random() > 0.2:
                continue
            entries += 1
            if os.path.islink(path):
                os.unlink(path)
                os.symlink(b"else" + name[:20], path)
            else:
                os.unlink(path)
                size += write(path, chance)
        if chance.random() < 0.3:
            entries += 1
            size += write(where + b"/added", chance)
    return entries, size


def check(seed: int, node: SyncNode, host: Host, work: Path) -> None:
    print(f"seed {seed}")
    chance = random.Random(seed)
    work.mkdir()
    grow(os.fsencode(work), chance)
    sync([node], plan_sync(str(work), git=None))
    assert same(host, work)
    entries, size = mutate(os.fsencode(work), chance)
    (outcome,) = sync([node], plan_sync(str(work), git=None))
    assert same(host, work)
    assert outcome.files <= entries
    assert outcome.bytes <= size + entries * MEMBER_BYTES + ARCHIVE_BYTES
    assert sync([node], plan_sync(str(work), git=None))[0].skipped
    host.sh("rm -rf ~/sky_workdir", check=True)


def test_random_trees_arrive_and_only_changes_follow(node: tuple[SyncNode, Host], tmp_path: Path) -> None:
    """The host has the tree exactly; after changes it has it again, and no more than these were sent."""
    first = random.SystemRandom().randrange(2**32)
    for seed in range(first, first + 6):
        check(seed, *node, tmp_path / f"work-{seed}")


@pytest.mark.slow
def test_many_random_trees_arrive_and_only_changes_follow(node: tuple[SyncNode, Host], tmp_path: Path) -> None:
    """The same for 200 trees."""
    first = random.SystemRandom().randrange(2**32)
    for seed in range(first, first + 200):
        check(seed, *node, tmp_path / f"work-{seed}")
