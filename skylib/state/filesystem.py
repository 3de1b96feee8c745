"""Which file system a path lies on, and whether other machines can have it too. Pure, but for `read_mounts`.

SQLite's write-ahead log needs memory that all of its users share, which users on two machines do not.
Source: proc_pid_mountinfo(5).
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import attrs

__all__ = ["Mount", "is_network", "mount_of", "parse_mounts", "read_mounts"]

_MOUNTINFO = Path("/proc/self/mountinfo")
_ESCAPE = re.compile(rb"\\([0-7]{3})")

# fmt: off
_NETWORK = frozenset({
    "9p", "acfs", "afs", "auristorfs", "beegfs", "ceph", "cifs", "coda", "davfs", "drvfs", "fakeowner", "fhgfs",
    "gfs2", "glusterfs", "gpfs", "kafs", "lustre", "mapr", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "panfs",
    "prl_fs", "pvfs2", "quobyte", "smb2", "smb3", "smbfs", "vboxsf", "virtiofs", "vmhgfs", "wekafs", "xtreemfs",
})
# FUSE file systems on a disk of this machine. Every other one may be a network's or an object store's.
_LOCAL_FUSE = frozenset({
    "fuse.bindfs", "fuse.cryfs", "fuse.encfs", "fuse.exfat", "fuse.ext4", "fuse.fuse-ext2", "fuse.fuse-overlayfs",
    "fuse.fuseiso", "fuse.gocryptfs", "fuse.lxcfs", "fuse.mergerfs", "fuse.ntfs", "fuse.ntfs-3g", "fuse.portal",
    "fuse.securefs", "fuse.squashfuse", "fuse.unionfs", "fuse.zfs", "fuse.zfs-fuse",
})
# fmt: on


@attrs.frozen(kw_only=True)
class Mount:
    """One row of mountinfo. kind: "ext4", "nfs4", "fuse.sshfs". source: "/dev/vda", "server:/export"."""

    mount_id: int
    parent_id: int
    point: str
    kind: str
    source: str


def read_mounts() -> bytes:
    """This process's mountinfo; empty where there is none, as on macOS."""
    try:
        return _MOUNTINFO.read_bytes()
    except OSError:
        return b""


def parse_mounts(mountinfo: bytes) -> tuple[Mount, ...]:
    """The rows in order; one in another form is left out."""
    return tuple(mount for row in mountinfo.split(b"\n") if (mount := _parse_row(row)) is not None)


def _parse_row(row: bytes) -> Mount | None:
    left, separator, right = row.partition(b" - ")
    before, after = left.split(b" "), right.split(b" ")
    if not separator or len(before) < 6 or len(after) < 2 or not (before[0].isdigit() and before[1].isdigit()):
        return None
    return Mount(
        mount_id=int(before[0]),
        parent_id=int(before[1]),
        point=_plain(before[4]),
        kind=_plain(after[0]),
        source=_plain(after[1]),
    )


def _plain(field: bytes) -> str:
    """Without the escapes of blanks, tabs, line ends and backslashes ("\\040")."""
    return os.fsdecode(_ESCAPE.sub(lambda found: bytes([int(found[1], 8) & 0xFF]), field))


def mount_of(path: str, mounts: Sequence[Mount]) -> Mount | None:
    """The mount that a real, absolute path leads to; None when no row says.

    The way of the kernel: from the root mount down the path, into the first mount that hangs on the present one. So the
    longest mount point wins, and one that lies under a later mount is not seen.
    """
    over = [mount for mount in mounts if _is_within(path, mount.point)]
    listed = {mount.mount_id for mount in over}
    begin = [mount for mount in over if mount.parent_id not in listed or mount.parent_id == mount.mount_id]
    if not begin:
        return None
    shortest = min(len(mount.point) for mount in begin)
    here = [mount for mount in begin if len(mount.point) == shortest][-1]
    walked = {here.mount_id}
    while True:
        next_ones = [mount for mount in over if mount.parent_id == here.mount_id and mount.mount_id not in walked]
        if not next_ones:
            return here
        nearest = min(len(mount.point) for mount in next_ones)
        here = [mount for mount in next_ones if len(mount.point) == nearest][-1]
        walked.add(here.mount_id)


def _is_within(path: str, point: str) -> bool:
    return point == "/" or path == point or path.startswith(point.rstrip("/") + "/")


def is_network(kind: str) -> bool:
    """Whether machines may share a file system of this kind; of an unknown one in user space (FUSE) we suppose so."""
    if kind == "fuse" or kind.startswith("fuse."):
        return kind not in _LOCAL_FUSE
    return kind in _NETWORK
