"""Why a path of a tree stays here: which line of which file decided, or what else.

Where git decided, git is asked (`git check-ignore -v`, which leaves tracked files alone); elsewhere rules.py.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence

import attrs

from skylib.errors import StagingError
from skylib.models.sync_report import Decider, LeftOut, Reason
from skylib.staging.ignore import Pattern, PatternList
from skylib.staging.repository import repository_above, repository_at
from skylib.staging.rules import Found, walk
from skylib.staging.select import Selection, ask_git, rule_book

__all__ = ["ignored", "why"]

_LISTED = ("ls-files", "-z", "--others", "--ignored", "--exclude-standard", "--directory")
_CHECK = ("check-ignore", "-v", "-z", "--stdin")
_ALL_BELOW = LeftOut(path="", reason=Reason.EMPTY, detail="all that is in it is ignored")


def ignored(root: str, selection: Selection, *, git: str | None = "git") -> list[LeftOut]:
    """All that patterns leave out of a tree, and git's own directories; a directory stands for what is below it.

    root: absolute, without links. Raises StagingError when git or a directory cannot be asked.
    """
    if selection.by is not Decider.GIT:
        return [_left_out(found) for found in walk(rule_book(root, selection.by)) if not found.goes]
    program = _program(git, root)
    out: list[LeftOut] = []
    for folder in selection.repositories:
        place = f"{root}/{folder}" if folder else root
        said = ask_git(program, place, *_LISTED)
        if said.returncode != 0:
            continue  # not ours: choose() has gone by the patterns there
        names = [os.fsdecode(name).rstrip("/") for name in said.stdout.split(b"\0") if name]
        found = _checked(program, place, names)
        for name in names:
            path = f"{folder}/{name}" if folder else name
            out.append(attrs.evolve(found.get(name) or _ALL_BELOW, path=path))
    return out


def why(root: str, path: str, by: Decider, *, git: str | None = "git") -> LeftOut:
    """Why a path of a tree, of which it is known that it does not go, stays here. root: absolute, without links."""
    parts = path.split("/")
    for depth in range(1, len(parts)):
        above = "/".join(parts[:depth])
        if os.path.islink(f"{root}/{above}"):
            return LeftOut(path=path, reason=Reason.BEHIND_LINK, detail=f"{above} is a link")
    place = f"{root}/{path}"
    if by is not Decider.SKYIGNORE and ".git" in parts:
        return LeftOut(path=path, reason=Reason.GIT)
    found = _by_git(root, path, _program(git, root)) if by is Decider.GIT else None
    if found is None and by is not Decider.GIT:
        trace = rule_book(root, by).trace(path)
        found = None if trace.goes else attrs.evolve(_left_out(trace), path=path, detail=_by_folder(trace.path, path))
    if found is not None:
        return found
    if not os.path.lexists(place):
        return LeftOut(path=path, reason=Reason.MISSING)
    if os.path.isdir(place) and not os.path.islink(place):
        return LeftOut(path=path, reason=Reason.EMPTY, detail="nothing below it goes")
    if not (os.path.isfile(place) or os.path.islink(place)):
        return LeftOut(path=path, reason=Reason.SPECIAL, detail="a socket, FIFO or device")
    detail = "git does not name it" if by is Decider.GIT else "it came after this report"
    return LeftOut(path=path, reason=Reason.UNLISTED, detail=detail)


def _by_git(root: str, path: str, git: str) -> LeftOut | None:
    """The line by which git ignores the path, or a directory above it; each repository on the way is asked for its part."""
    parts = path.split("/")
    start = 0
    for depth in range(1, len(parts) + 1):
        if depth < len(parts) and repository_at("/".join([root, *parts[:depth]])) is None:
            continue
        names = ["/".join(parts[start:end]) for end in range(start + 1, depth + 1)]
        found = _checked(git, "/".join([root, *parts[:start]]), names)
        for end, name in enumerate(names, start + 1):
            if name in found:
                return attrs.evolve(found[name], path=path, detail=_by_folder("/".join(parts[:end]), path))
        start = depth
    return None


def _checked(git: str, folder: str, names: Sequence[str]) -> dict[str, LeftOut]:
    """name -> the line by which git ignores it, of the names in one repository that it ignores."""
    if not names:
        return {}
    said = ask_git(git, folder, *_CHECK, stdin=os.fsencode("\0".join(names)))
    if said.returncode not in (0, 1):
        reason = os.fsdecode(said.stderr).strip()
        raise StagingError(f"git could not say what it ignores in {folder}: {reason}", path=folder, evidence=reason)
    repository = repository_above(folder)
    top = repository.top if repository is not None else folder
    fields = [os.fsdecode(field) for field in said.stdout.split(b"\0")]
    found = {}
    for file, line, text, name in zip(fields[0::4], fields[1::4], fields[2::4], fields[3::4], strict=False):
        if not text.startswith("!"):
            found[name] = LeftOut(
                path=name,
                reason=Reason.PATTERN,
                file=os.path.normpath(os.path.join(top, file)),
                line=int(line),
                pattern=text,
            )
    return found


def _left_out(found: Found) -> LeftOut:
    if found.by is None:
        return LeftOut(path=found.path, reason=Reason.GIT)
    rules, pattern = found.by
    return _by_pattern(found.path, rules, pattern)


def _by_pattern(path: str, rules: PatternList, pattern: Pattern) -> LeftOut:
    return LeftOut(path=path, reason=Reason.PATTERN, file=rules.origin, line=pattern.line, pattern=pattern.text)


def _by_folder(decided: str, path: str) -> str:
    return "" if decided == path else f"by the directory {decided}"


def _program(git: str | None, root: str) -> str:
    found = shutil.which(git) if git else None
    if found is None:
        raise StagingError(f"git is not at hand any more: it has decided about {root}", path=root)
    return found
