"""What goes from a node: paths that were put there once, that are sent no more, and that are as they were put. Pure.

A record on the node, one for each target, says what was put. Its first line tells one set of paths from another, so that
a node that has the plan's own set answers with a word. Then come, each ended by NUL, "<kind> <size> <stamp> <path>"; of
two with one path the later holds. What a job made is in no record, and a file that a job changed is not as it was put:
both stay. A directory goes when it was put and is empty.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Container, Iterable, Mapping

import attrs

from skylib.staging.diff import Seen
from skylib.staging.manifest import Entry, Kind, Manifest
from skylib.staging.mounts import Mount
from skylib.staging.pack import wire_mtime_ns

__all__ = ["Put", "Removal", "identity", "left_over", "parents", "parse_record", "record_of", "record_path", "removal"]


@attrs.frozen(slots=True)
class Put:
    """A path as it was put. kind: the letter of `find -printf %y`. stamp: a file's mtime in ns, of a link its target's."""

    path: str
    kind: str
    size: int
    stamp: int


@attrs.frozen(kw_only=True)
class Removal:
    """What goes. dirs: those of them that are empty by then, children first."""

    files: tuple[str, ...] = ()
    dirs: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.files or self.dirs)


def record_path(root: str, mount: Mount) -> str:
    """Where the record of a target is on a node; that of one that outlives the cluster does so, too."""
    folder = "synced" if mount.goes_with_cluster else "placed"
    return f"{root.rstrip('/')}/.sky/{folder}/{hashlib.sha256(os.fsencode(mount.on(root))).hexdigest()[:32]}"


def identity(manifest: Manifest) -> str:
    """Equal for manifests with the same paths of the same kinds."""
    sums = hashlib.sha256()
    for entry in manifest.entries:
        sums.update(f"{entry.kind.value} ".encode() + os.fsencode(entry.path) + b"\0")
    return sums.hexdigest()


def record_of(entries: Iterable[Entry]) -> bytes:
    """The entries as a record has them."""
    lines = (
        b"%s %d %d %s\0" % (entry.kind.value.encode(), entry.size, _stamp(entry), os.fsencode(entry.path))
        for entry in entries
        if entry.path
    )
    return b"".join(lines)


def parse_record(fields: Iterable[bytes]) -> tuple[Put, ...]:
    """What a node says was put; nothing when that cannot be read. A path that would climb out of the tree is none."""
    found: dict[str, Put] = {}
    try:
        for field in fields:
            kind, size, stamp, path = field.split(b" ", 3)
            name = os.fsdecode(path)
            if not {"", ".", ".."}.intersection(name.split("/")):
                found[name] = Put(name, kind.decode("ascii"), int(size), int(stamp))
    except ValueError:
        return ()
    return tuple(found.values())


def left_over(put: Iterable[Put], manifest: Manifest, taken: Container[str]) -> tuple[Put, ...]:
    """What was put and is no longer in the tree. taken: paths that other trees of the plan put into this one."""
    kinds = {entry.path: entry.kind.value for entry in manifest.entries}

    def is_left(one: Put) -> bool:
        now = kinds.get(one.path)
        return one.path not in taken and (now is None or (one.kind == Kind.DIR.value and now != one.kind))

    return tuple(one for one in put if is_left(one))


def parents(left: Iterable[Put]) -> frozenset[str]:
    """The directories, other than the top, on the way to paths."""
    found: set[str] = set()
    for one in left:
        path = one.path.rpartition("/")[0]
        while path and path not in found:
            found.add(path)
            path = path.rpartition("/")[0]
    return frozenset(found)


def removal(left: Iterable[Put], seen: Mapping[str, Seen]) -> Removal:
    """What of that is as it was put. seen: as the node has it now, with all parents; nothing behind a link is ours."""
    real = {"": True}

    def is_real(path: str) -> bool:
        if path not in real:
            found = seen.get(path)
            real[path] = found is not None and found.kind == Kind.DIR.value and is_real(path.rpartition("/")[0])
        return real[path]

    files, dirs = [], []
    for one in left:
        found = seen.get(one.path)
        if found is None or found.kind != one.kind or not is_real(one.path.rpartition("/")[0]):
            continue
        if one.kind == Kind.DIR.value:
            dirs.append(one.path)
        elif found.size == one.size and _is_stamp(found, one.stamp):
            files.append(one.path)
    return Removal(files=tuple(files), dirs=tuple(sorted(dirs, reverse=True)))


def _stamp(entry: Entry) -> int:
    if entry.kind is Kind.LINK:
        return _of_target(entry.target)
    return entry.mtime_ns if entry.kind is Kind.FILE else 0


def _of_target(target: str) -> int:
    return int.from_bytes(hashlib.sha256(os.fsencode(target)).digest()[:7], "big")


def _is_stamp(found: Seen, stamp: int) -> bool:
    if found.kind == Kind.LINK.value:
        return _of_target(found.target) == stamp
    return found.mtime_ns in (stamp, wire_mtime_ns(stamp))
