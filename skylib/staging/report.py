"""What a plan amounts to: its size, its largest directories, what it leaves out and why, and warnings about it."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import attrs

from skylib.models.sync_report import Decider, Folder, LeftOut, Reason, TreeReport
from skylib.reprs import short_bytes
from skylib.staging.explain import ignored, why
from skylib.staging.manifest import Kind, Manifest
from skylib.staging.plan import SyncPlan, SyncTree

__all__ = ["MANY_BYTES", "MANY_FILES", "largest_folders", "report", "warnings_about", "why_ignored"]

MANY_FILES = 10_000
MANY_BYTES = 1 << 30
_LARGEST = 10
_HINT = "leave out what the nodes do not need, with .skyignore or .gitignore"


def report(plan: SyncPlan, *, git: str | None = "git") -> tuple[TreeReport, ...]:
    """Each tree of a plan. git: as for the plan. Raises StagingError when git or a directory cannot be asked."""
    return tuple(_report(tree, git) for tree in plan.trees)


def warnings_about(plan: SyncPlan) -> tuple[str, ...]:
    """What the user should know before it goes: many files, many bytes, files of kinds that cannot travel."""
    found = []
    if plan.files > MANY_FILES:
        top = _most(plan, lambda folder: folder.files)
        where = f"; {top[0]} has {top[1].files:,}" if top else ""
        found.append(f"{plan.files:,} files are to go, more than {MANY_FILES:,}{where}: {_HINT}")
    if plan.bytes > MANY_BYTES:
        top = _most(plan, lambda folder: folder.bytes)
        where = f"; {top[0]} has {short_bytes(top[1].bytes)}" if top else ""
        found.append(f"{short_bytes(plan.bytes)} are to go, more than {short_bytes(MANY_BYTES)}{where}: {_HINT}")
    for tree in plan.trees:
        if tree.manifest.left_out:
            path, _ = min(tree.manifest.left_out)
            others = len(tree.manifest.left_out) - 1
            more = f" and {others:,} more" if others else ""
            found.append(f"{tree.mount.dst}: {path}{more} cannot travel: no file, directory or link")
    return tuple(text.encode("utf-8", "backslashreplace").decode() for text in found)


def largest_folders(manifest: Manifest, *, most: int = _LARGEST) -> tuple[Folder, ...]:
    """Directories below the root by bytes, then files, the largest first; not one that holds but another of them."""
    files: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for entry in manifest.entries:
        if entry.kind is Kind.DIR:
            continue
        above = entry.path.rpartition("/")[0]
        while above:
            files[above] = files.get(above, 0) + 1
            sizes[above] = sizes.get(above, 0) + (entry.size if entry.kind is Kind.FILE else 0)
            above = above.rpartition("/")[0]
    wrappers = {path.rpartition("/")[0] for path in files if files.get(path.rpartition("/")[0]) == files[path]}
    found = [Folder(path=path, files=files[path], bytes=sizes[path]) for path in files if path not in wrappers]
    return tuple(sorted(found, key=lambda folder: (-folder.bytes, -folder.files, folder.path))[:most])


def why_ignored(
    trees: Sequence[TreeReport], path: str | os.PathLike[str], *, base: str, git: str | None = "git"
) -> LeftOut | None:
    """Why a path stays here; None when it goes, in any of the trees. See SyncReport.why_ignored."""
    place = _placed(trees, os.path.expanduser(os.fspath(path)), base)
    inside = [(tree, below) for tree in trees if (below := _below(tree, place, base)) is not None]
    if any(not below or _has(tree.paths, below) for tree, below in inside):
        return None
    if not inside:
        return LeftOut(path=place, reason=Reason.OUTSIDE, detail="in none of the task's sources")
    tree, below = max(inside, key=lambda each: len(each[0].source))
    for known in tree.left_out:
        if known.path == below:
            return known
    return attrs.evolve(why(tree.source, below, tree.decided_by, git=git), tree=tree.dst)


def _report(tree: SyncTree, git: str | None) -> TreeReport:
    manifest = tree.manifest
    left_out: Iterable[LeftOut] = ()
    by = Decider.NOTHING
    if tree.selection is not None:
        by = tree.selection.by
        left_out = [*ignored(manifest.source, tree.selection, git=git), *_not_there(tree, tree.selection.paths)]
    left_out = [
        *left_out,
        *(LeftOut(path=path, reason=Reason.SPECIAL, detail=detail) for path, detail in manifest.left_out),
        *(LeftOut(path=path, reason=Reason.COVERED, detail=f"{dst} is put there") for path, dst in tree.covered),
    ]
    return TreeReport(
        dst=tree.mount.dst,
        source=manifest.source,
        given=tree.mount.source,
        decided_by=by,
        files=manifest.files,
        bytes=manifest.bytes,
        largest=largest_folders(manifest),
        paths=tuple(entry.path for entry in manifest.entries if entry.path),
        left_out=tuple(attrs.evolve(each, tree=tree.mount.dst) for each in sorted(left_out, key=lambda each: each.path)),
    )


def _not_there(tree: SyncTree, paths: Iterable[str]) -> list[LeftOut]:
    """What was to go, but is gone, or lies behind a link."""
    manifest = tree.manifest
    known = {entry.path for entry in manifest.entries}
    known.update(path for path, _ in (*manifest.left_out, *tree.covered))
    out = []
    for path in paths:
        place = f"{manifest.source}/{path}"
        if path in known or (os.path.isdir(place) and not os.path.islink(place)):
            continue
        reason = Reason.BEHIND_LINK if os.path.lexists(place) else Reason.DELETED
        out.append(LeftOut(path=path, reason=reason))
    return out


def _most(plan: SyncPlan, size: Callable[[Folder], int]) -> tuple[str, Folder] | None:
    """The largest directory of all trees, by its place among the sources."""
    found = [
        (f"{tree.mount.source.rstrip('/')}/{folder.path}", folder)
        for tree in plan.trees
        for folder in largest_folders(tree.manifest, most=len(tree.manifest.entries))
    ]
    return max(found, key=lambda each: size(each[1]), default=None)


def _placed(trees: Sequence[TreeReport], path: str, base: str) -> str:
    """Absolute: a relative path is one of the workdir, when there is such a one there; else it starts from `base`."""
    for tree in trees:
        in_workdir = os.path.join(tree.source, path)
        if tree.dst == "workdir" and not os.path.isabs(path) and _known(tree, os.path.normpath(path), in_workdir):
            return os.path.normpath(in_workdir)
    return os.path.normpath(os.path.join(base, path))


def _known(tree: TreeReport, path: str, place: str) -> bool:
    return os.path.lexists(place) or any(each.path == path for each in tree.left_out)


def _below(tree: TreeReport, place: str, base: str) -> str | None:
    """The path relative to the tree's source, "" for the source itself; None when it is not in it."""
    source = os.path.normpath(os.path.join(base, Path(tree.given).expanduser()))
    through = os.path.join(os.path.realpath(os.path.dirname(place)), os.path.basename(place))
    for start, path in ((source, place), (tree.source, place), (tree.source, through)):
        if path == start:
            return ""
        if path.startswith(start.rstrip("/") + "/"):
            return path[len(start.rstrip("/")) + 1 :]
    return None


def _has(paths: Sequence[str], path: str) -> bool:
    """Whether a sorted sequence has it."""
    at = bisect_left(paths, path)
    return at < len(paths) and paths[at] == path
