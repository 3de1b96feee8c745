"""File systems: mountinfo read as the kernel means it, network kinds told from local ones."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skylib.state.filesystem import Mount, is_network, mount_of, parse_mounts, read_mounts

# A laptop's, as the kernel gives it: rows under the root come before it; a home by NFS; an automount under its mount.
LAPTOP = rb"""22 28 0:20 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
23 28 0:21 / /proc rw,nosuid,nodev,noexec,relatime shared:13 - proc proc rw
28 1 259:2 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p2 rw,errors=remount-ro
31 28 0:25 / /run rw,nosuid,nodev shared:5 - tmpfs tmpfs rw,size=3270628k,mode=755
90 28 0:44 / /home rw,relatime shared:49 - nfs4 files.example.org:/export/home rw,vers=4.2,addr=192.0.2.7
95 90 0:60 / /home/ann/local\040disk rw,relatime shared:50 - xfs /dev/nvme0n1p3 rw
120 28 0:70 / /net rw,relatime shared:60 - autofs systemd-1 rw,fd=52,pgrp=1,timeout=0
121 120 0:71 / /net/data rw,relatime shared:61 - cifs //server/my\040share rw,vers=3.1.1
140 28 0:80 / /mnt/bucket rw,nosuid,nodev shared:70 - fuse.s3fs s3fs rw,user_id=1000
141 28 8:17 / /mnt/usb rw,nosuid,nodev shared:71 - fuseblk /dev/sdb1 rw,user_id=0
"""
# /data/old was mounted, then /data was mounted over it: what /data/old leads to is the later one.
HIDDEN = rb"""1 0 254:0 / / rw - ext4 /dev/vda rw
5 1 0:30 / /data/old rw - nfs server:/old rw
9 1 0:31 / /data rw - xfs /dev/vdb rw
"""
# Two on one mount point: the second hangs on the first.
STACKED = rb"""1 0 254:0 / / rw - ext4 /dev/vda rw
25 1 0:23 / /shm rw - tmpfs tmpfs rw
30 25 0:27 / /shm rw - 9p share rw
"""


@pytest.mark.parametrize(
    ("mountinfo", "path", "kind"),
    [
        (LAPTOP, "/", "ext4"),
        (LAPTOP, "/root/.sky", "ext4"),
        (LAPTOP, "/home", "nfs4"),
        (LAPTOP, "/home/ann/.sky", "nfs4"),
        (LAPTOP, "/homes/ann/.sky", "ext4"),
        (LAPTOP, "/home/ann/local disk/.sky", "xfs"),
        (LAPTOP, "/home/ann/local/.sky", "nfs4"),
        (LAPTOP, "/net/data/x", "cifs"),
        (LAPTOP, "/mnt/bucket/.sky", "fuse.s3fs"),
        (LAPTOP, "/mnt/usb/.sky", "fuseblk"),
        (LAPTOP, "/proc/self", "proc"),
        (HIDDEN, "/data/old/.sky", "xfs"),
        (HIDDEN, "/data", "xfs"),
        (STACKED, "/shm/.sky", "9p"),
    ],
)
def test_a_path_leads_to_its_mount(mountinfo: bytes, path: str, kind: str) -> None:
    """The longest mount point; what lies under a later mount is not seen."""
    mount = mount_of(path, parse_mounts(mountinfo))
    assert mount is not None
    assert mount.kind == kind


def test_a_row_is_read_whole() -> None:
    """Blanks come as octal numbers; the optional fields are of any number."""
    assert parse_mounts(LAPTOP)[7] == Mount(
        mount_id=121, parent_id=120, point="/net/data", kind="cifs", source="//server/my share"
    )
    bare = rb"5 1 0:1 / /a\011b\134c\012d rw - nfs h:/x rw"
    assert parse_mounts(bare)[0].point == "/a\tb\\c\nd"


@pytest.mark.parametrize("mountinfo", [b"", b"\n", b"rubbish\n", b"1 2 3 - 4\n", b"a b 0:1 / /x rw - ext4 /dev/x rw\n"])
def test_without_rows_nothing_is_known(mountinfo: bytes) -> None:
    """As on a system that has no mountinfo: no mount, no error."""
    assert mount_of("/home/ann/.sky", parse_mounts(mountinfo)) is None


@pytest.mark.parametrize(
    "kind",
    "nfs nfs4 cifs smb3 9p lustre gpfs ceph beegfs afs virtiofs vboxsf fuse.sshfs fuse.glusterfs fuse.s3fs fuse.gcsfuse "
    "fuse.juicefs fuse.rclone fuse.mount-s3 fuse".split(),
)
def test_kinds_that_machines_share(kind: str) -> None:
    """Network file systems, folders of a virtual machine's host, object stores, and FUSE of an unknown kind."""
    assert is_network(kind)


@pytest.mark.parametrize(
    "kind", "ext4 xfs btrfs zfs tmpfs overlay apfs f2fs bcachefs fuseblk fuse.mergerfs fuse.gocryptfs".split()
)
def test_kinds_of_this_machine(kind: str) -> None:
    """Disks, memory, overlays, and FUSE that is known to be on a disk."""
    assert not is_network(kind)


def test_this_machines_mounts_are_understood(tmp_path: Path) -> None:
    """For the folders that there are here, as findmnt says it."""
    mounts = parse_mounts(read_mounts())
    for path in (str(tmp_path), "/", "/proc/self", "/dev/shm", "/sys"):
        real = os.path.realpath(path)
        done = subprocess.run(["findmnt", "-n", "-o", "FSTYPE", "-T", real], capture_output=True, text=True, check=True)
        mount = mount_of(real, mounts)
        assert mount is not None
        assert mount.kind == done.stdout.split()[-1], path


_names = st.text(st.characters(exclude_characters="/\0\n", exclude_categories=("Cs",)), min_size=1, max_size=8)
_points = st.lists(_names.filter(lambda name: name not in (".", "..")), max_size=4).map(lambda names: "/" + "/".join(names))


def _escaped(word: str) -> bytes:
    return b"".join(b"\\%03o" % byte if byte in b" \t\n\\" else bytes([byte]) for byte in os.fsencode(word))


@given(st.lists(st.tuples(_points, st.sampled_from(["ext4", "nfs"])), max_size=6), _points)
def test_the_longest_mount_point_wins(points: list[tuple[str, str]], path: str) -> None:
    """Of mounts made outside in, whatever their names: escaped as the kernel does it, and read again."""
    kinds = {"/": "root", **dict(sorted(points))}
    kinds["/"] = "root"
    numbers = {point: 10 + number for number, point in enumerate(sorted(kinds, key=len))}

    def parent(point: str) -> int:
        above = [other for other in kinds if other != point and (point + "/").startswith(other.rstrip("/") + "/")]
        return numbers[max(above, key=len)] if above else 1

    rows = [
        b"%d %d 0:1 / %s rw - %s source rw" % (numbers[point], parent(point), _escaped(point), kind.encode())
        for point, kind in kinds.items()
    ]
    mount = mount_of(path, parse_mounts(b"\n".join(rows)))
    over = [point for point in kinds if (path.rstrip("/") + "/").startswith(point.rstrip("/") + "/")]
    assert mount is not None
    assert mount.kind == kinds[max(over, key=len)]


@given(st.binary(max_size=300), _points)
def test_no_bytes_raise(mountinfo: bytes, path: str) -> None:
    """Whatever the file says."""
    mount_of(path, parse_mounts(mountinfo))
