"""A host of the test bed in a control group of its own, which it can see."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lab import eventually
from tests.testbed import Host

__all__ = ["control_group"]


@contextmanager
def control_group(host: Host, kind: str, name: str) -> Iterator[Path]:
    """The group's directory, on this machine and on the host; all that runs there is in it. Closes the host at the end.

    kind: what to mount ("cgroup2", "cgroup -o memory"); name: its place below /sys/fs/cgroup, here and there.
    """
    group = Path("/sys/fs/cgroup", name, f"skylib-test-{host.init_pid}")
    group.mkdir()
    try:
        for pid in _pids(host):
            group.joinpath("cgroup.procs").write_text(str(pid))
        place = f"/sys/fs/cgroup/{name}"
        mounting = f"mount -t tmpfs groups /sys/fs/cgroup; mkdir {place}; mount -t {kind} groups {place}"
        host.sh(f"set -e; {mounting}", user="root", check=True)
        yield group
    finally:
        host.close()
        eventually(lambda: group.joinpath("cgroup.procs").read_text() == "", what="an empty group")
        group.rmdir()


def _pids(host: Host) -> list[int]:
    """As this machine numbers them."""
    here = Path(f"/proc/{host.init_pid}/ns/pid").readlink()
    found = []
    for path in Path("/proc").iterdir():
        try:
            if path.name.isdigit() and path.joinpath("ns/pid").readlink() == here:
                found.append(int(path.name))
        except OSError:
            continue
    return found
