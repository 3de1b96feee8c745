"""What a node lacks. Pure.

The test is rsync's: kind, mode, size and time. So a file that a job changed on the node is restored by the next sync,
files that only the node has are let be, and nothing is read on either side. Times that were sent as whole seconds are
known as such (see pack.py).
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from skylib.staging.manifest import Entry, Kind, Manifest
from skylib.staging.pack import wire_mtime_ns

__all__ = ["Delta", "Seen", "delta", "is_same"]


@attrs.frozen(slots=True)
class Seen:
    """A path as a node has it. kind: the letter of `find -printf %y`. mode: permission bits alone."""

    kind: str
    mode: int
    size: int
    mtime_ns: int
    target: str


@attrs.frozen(kw_only=True)
class Delta:
    """What has to be done to one tree. send: parents first. remode: directories that stand, with another mode."""

    send: tuple[Entry, ...] = ()
    remode: tuple[Entry, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.send or self.remode)

    @property
    def key(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Equal for two nodes that lack the same."""
        return tuple(entry.path for entry in self.send), tuple(entry.path for entry in self.remode)


def delta(manifest: Manifest, seen: Mapping[str, Seen]) -> Delta:
    """What `manifest` has and a node lacks. seen: by path relative to the tree's root; the root is the empty path."""
    send: list[Entry] = []
    remode: list[Entry] = []
    barred: set[str] = set()
    for entry in manifest.entries:
        found = seen.get(entry.path)
        if found is not None and entry.path and entry.path.rpartition("/")[0] in barred:
            found = None
        if entry.kind is not Kind.DIR:
            if found is None or not is_same(entry, found):
                send.append(entry)
        elif found is None or found.kind != Kind.DIR.value:
            barred.add(entry.path)
            send.append(entry)
        elif found.mode != entry.mode:
            remode.append(entry)
    return Delta(send=tuple(send), remode=tuple(remode))


def is_same(entry: Entry, found: Seen) -> bool:
    """Whether a node has a file or link as it should be."""
    if found.kind != entry.kind.value:
        return False
    if entry.kind is Kind.LINK:
        return found.target == entry.target
    return (
        found.size == entry.size
        and found.mode == entry.mode
        and found.mtime_ns in (entry.mtime_ns, wire_mtime_ns(entry.mtime_ns))
    )
