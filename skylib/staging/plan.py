"""What a sync will send: every tree scanned before the first byte goes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import attrs

from skylib.errors import StagingError
from skylib.staging.manifest import Kind, Manifest, scan
from skylib.staging.mounts import WORKDIR, Mount, map_mounts
from skylib.staging.select import Selection, choose

__all__ = ["SyncPlan", "SyncTree", "plan_sync"]


@attrs.frozen(kw_only=True)
class SyncTree:
    """One tree and its place.

    snapshot: the folder of the snapshot that it is (snapshot.py), "" when it is the original. mirror: what was put there
    once and is no longer in the tree goes from the node, unless it was changed there (removal.py). selection: what of a
    directory was to go, and who decided. covered: path -> target of the mount that is put there.
    """

    mount: Mount
    manifest: Manifest
    snapshot: str = ""
    mirror: bool = False
    selection: Selection | None = attrs.field(default=None, eq=False, repr=False)
    covered: tuple[tuple[str, str], ...] = attrs.field(default=(), eq=False, repr=False)

    @property
    def has_record(self) -> bool:
        return self.mirror and not self.manifest.is_file


@attrs.frozen(kw_only=True)
class SyncPlan:
    """The trees of one task, in the order in which they are put in place. Empty: nothing to send."""

    trees: tuple[SyncTree, ...] = ()

    @property
    def files(self) -> int:
        return sum(tree.manifest.files for tree in self.trees)

    @property
    def bytes(self) -> int:
        return sum(tree.manifest.bytes for tree in self.trees)

    def __bool__(self) -> bool:
        return bool(self.trees)


def plan_sync(
    workdir: object = None,
    file_mounts: Mapping[str, object] | None = None,
    *,
    base: Path | None = None,
    git: str | None = "git",
    mirror: bool = True,
) -> SyncPlan:
    """Scan a task's files.

    base: directory that relative sources start from, the current one when None. git: see choose(). mirror: of every
    tree (SyncTree).
    Raises InvalidSpecError for targets that cannot be, StagingError (fact: path) for sources that are missing or cannot
    be read.
    """
    trees = []
    for mount in map_mounts(workdir, file_mounts):
        trees.append(attrs.evolve(_scan(mount, base or Path.cwd(), git), mirror=mirror))
    return SyncPlan(trees=_without_overlaid(trees))


def _scan(mount: Mount, base: Path, git: str | None) -> SyncTree:
    source = base / Path(mount.source).expanduser()
    if not source.exists():
        raise StagingError(
            f"{mount.dst}: the source {mount.source} does not exist", path=str(source), hint=f"looked for {source}"
        )
    if source.is_dir():
        selection = choose(source, git=git)
        return SyncTree(mount=mount, manifest=scan(source, selection.paths), selection=selection)
    if mount.is_workdir or mount.source.endswith("/"):
        raise StagingError(f"{mount.dst}: the source {mount.source} is not a directory", path=str(source))
    return SyncTree(mount=mount, manifest=scan(source, ()))


def _without_overlaid(trees: list[SyncTree]) -> tuple[SyncTree, ...]:
    """A mount may lie in the workdir: where both have a path, the mount's is sent and the workdir's is not."""
    if not trees or not trees[0].mount.is_workdir:
        return tuple(trees)
    workdir, *mounts = trees
    own = {entry.path: entry for entry in workdir.manifest.entries}
    covered: dict[str, str] = {}
    for tree in mounts:
        if not tree.mount.below_root or not tree.mount.place.startswith(f"{WORKDIR}/"):
            continue
        place = tree.mount.place[len(WORKDIR) + 1 :]
        for entry in tree.manifest.entries:
            path = f"{place}/{entry.path}" if entry.path else place
            theirs = own.get(path)
            if theirs is None:
                continue
            if theirs.kind is Kind.DIR and entry.kind is not Kind.DIR:
                raise StagingError(
                    f"file_mounts.{tree.mount.dst}: the workdir has a directory where this puts a file: {path}",
                    path=workdir.manifest.source_of(theirs),
                )
            if theirs.kind is not Kind.DIR or entry.kind is Kind.DIR:
                covered[path] = tree.mount.dst
    if covered:
        told = sorted((path, dst) for path, dst in covered.items() if own[path].kind is not Kind.DIR)
        workdir = attrs.evolve(workdir, manifest=workdir.manifest.without(covered), covered=tuple(told))
    return (workdir, *mounts)
