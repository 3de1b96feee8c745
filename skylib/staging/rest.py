"""What an archive that broke off left on a node: its whole files are not sent again. Pure.

The folder that it was unpacked in is kept (`.sky/incoming/rest-<key>`, at most a day). The next sync of the same targets
asks what is in it, takes it over, drops what it has no use for, and sends what is missing. A file that arrived in part has
another size or time than it should, and is dropped.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence

import attrs

from skylib.staging.diff import Delta, Seen, is_same
from skylib.staging.manifest import Kind
from skylib.staging.plan import SyncPlan, SyncTree

__all__ = ["Rest", "member_name", "rest_path", "usable"]


@attrs.frozen(kw_only=True)
class Rest:
    """What of a node's rest is used. kept: for each tree of the plan the paths that need not be sent. drop: what goes."""

    kept: tuple[frozenset[str], ...]
    drop: tuple[str, ...]


def rest_path(root: str, plan: SyncPlan) -> str:
    """Where the rest of an archive for these targets is, on a node with this root."""
    sums = hashlib.sha256()
    for tree in plan.trees:
        sums.update(os.fsencode(f"{tree.mount.on(root)}\0{tree.manifest.is_file}\0"))
    return f"{root.rstrip('/')}/.sky/incoming/rest-{sums.hexdigest()[:32]}"


def member_name(number: int, tree: SyncTree, path: str) -> str:
    """What a path of a tree is called in an archive. number: of the tree in its plan."""
    top = f"{number}/{tree.mount.place.rpartition('/')[2]}"
    return f"{top}/{path}" if path else top


def usable(plan: SyncPlan, deltas: Sequence[Delta], found: Mapping[str, Seen]) -> Rest:
    """found: all that is in the rest, by name in the archive."""
    kept: list[frozenset[str]] = []
    stays: set[str] = set()
    for number, (tree, change) in enumerate(zip(plan.trees, deltas, strict=True)):
        mine = set()
        for entry in change.send if tree.mount.below_root else ():
            name = member_name(number, tree, entry.path)
            if entry.kind is not Kind.DIR and name in found and is_same(entry, found[name]):
                mine.add(entry.path)
                while name and name not in stays:
                    stays.add(name)
                    name = name.rpartition("/")[0]
        kept.append(frozenset(mine))
    return Rest(kept=tuple(kept), drop=tuple(sorted(set(found) - stays)))
