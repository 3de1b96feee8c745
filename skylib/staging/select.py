"""Which paths of a tree go to the nodes.

1. `.skyignore` in the tree's root: it alone decides, with .gitignore's syntax; even `.git` goes, unless it says no.
2. Else, in a git work tree: what `git ls-files --others --cached --exclude-standard` says (so a tracked file goes
   although a pattern ignores it, and empty directories do not). Submodules and nested repositories are asked likewise.
3. Else, or without git on this machine: `.gitignore` at every level, `.git/info/exclude` and `core.excludesFile`,
   matched by ignore.py. Without git the index is not read. Empty directories go.

In 2 and 3 `.git` never goes. When everything would be left out (a data directory that its repository ignores, or that
ignores itself) nothing is ignored: who names a directory means its content. SkyPilot does so too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from skylib.errors import StagingError
from skylib.staging.ignore import PatternList, parse_patterns

__all__ = ["select"]

_GIT_TIMEOUT_S = 300.0
_ASK = ("ls-files", "-z", "--cached", "--others", "--exclude-standard")
_OTHER_REPOSITORY = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_COMMON_DIR")


def select(root: Path, *, git: str | None = "git") -> list[str]:
    """Paths below the directory `root`, in no order; directories are named only where they may be empty.

    git: the program, None to do without. Some paths may not exist (deleted, but in the index): scan() leaves them out.
    Raises StagingError when a directory cannot be read.
    """
    top = os.path.realpath(root)
    if os.path.isfile(f"{top}/.skyignore"):
        rules = _read(f"{top}/.skyignore", origin=".skyignore")
        return list(_walk(top, [rules], nested=None, keep_git=True))
    program = shutil.which(git) if git else None
    paths = _ask_git(program, top) if program else None
    if paths is None:
        paths = list(_walk(top, _rules_above(top), nested=".gitignore", keep_git=False))
    if not paths:
        paths = list(_walk(top, [], nested=None, keep_git=False))
    return paths


def _ask_git(git: str, root: str) -> list[str] | None:
    """What git says; None when it does not take `root` for a part of its work tree, or not as ours."""
    env = {name: value for name, value in os.environ.items() if name not in _OTHER_REPOSITORY}
    env.update(LC_ALL="C", GIT_OPTIONAL_LOCKS="0")
    try:
        done = subprocess.run(
            [git, "-c", "core.fsmonitor=false", *_ASK],
            cwd=root,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_GIT_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise StagingError(f"could not ask git about {root}: {exc}", path=root) from exc
    if done.returncode != 0:
        return None
    paths: dict[str, None] = {}
    for raw in done.stdout.split(b"\0"):
        if not raw:
            continue
        path = os.fsdecode(raw.removesuffix(b"/"))
        paths[path] = None
        inner = f"{root}/{path}"
        if os.path.isdir(inner) and not os.path.islink(inner):
            _add_repository(git, root, path, paths)
    return list(paths)


def _add_repository(git: str, root: str, path: str, paths: dict[str, None]) -> None:
    """A directory that git names whole is a submodule or a nested repository."""
    inner = f"{root}/{path}"
    if not os.path.lexists(f"{inner}/.git"):
        return
    found = _ask_git(git, inner)
    if found is None:
        found = list(_walk(inner, _rules_above(inner), nested=".gitignore", keep_git=False))
    paths.update((f"{path}/{below}", None) for below in found)


def _walk(root: str, rules: list[PatternList], *, nested: str | None, keep_git: bool) -> Iterator[str]:
    """Every path below `root` that no rule ignores; what is below an ignored directory cannot come back.

    rules: weakest first. nested: name of the files with further rules in each directory.
    """
    pending: list[tuple[str, list[PatternList]]] = [("", rules)]
    while pending:
        folder, known = pending.pop()
        here = f"{root}/{folder}" if folder else root
        if nested and os.path.isfile(f"{here}/{nested}") and not os.path.islink(f"{here}/{nested}"):
            own = _read(f"{here}/{nested}", base=os.fsencode(folder), origin=f"{folder}/{nested}".lstrip("/"))
            known = [*known, own] if own else known
        try:
            with os.scandir(here) as listing:
                entries = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in listing]
        except OSError as exc:
            raise StagingError(f"cannot read {here}: {exc.strerror}", path=here) from exc
        for name, is_dir in entries:
            if name == ".git" and not keep_git:
                continue
            path = f"{folder}/{name}" if folder else name
            if known and _ignored(known, os.fsencode(path), is_dir):
                continue
            yield path
            if is_dir:
                pending.append((path, known))


def _ignored(rules: list[PatternList], path: bytes, is_dir: bool) -> bool:
    for rule in reversed(rules):
        decision = rule.decide(path, is_dir=is_dir)
        if decision is not None:
            return not decision.negated
    return False


def _rules_above(root: str) -> list[PatternList]:
    """Rules that come from outside of the tree, weakest first."""
    rules = [_read(path, origin=path) for path in _global_excludes()]
    top = root
    while top != "/" and not os.path.lexists(f"{top}/.git"):
        top = os.path.dirname(top)
    if not os.path.lexists(f"{top}/.git"):
        return [rule for rule in rules if rule]
    below = os.path.relpath(root, top) if root != top else ""
    rules = [_read(path, origin=path, prefix=os.fsencode(below)) for path in _global_excludes()]
    rules.append(_read(f"{top}/.git/info/exclude", origin=".git/info/exclude", prefix=os.fsencode(below)))
    parts = below.split("/") if below else []
    for depth in range(len(parts)):
        above = "/".join([top, *parts[:depth]])
        prefix = os.fsencode("/".join(parts[depth:]))
        rules.append(_read(f"{above}/.gitignore", origin=f"{above}/.gitignore", prefix=prefix))
    return [rule for rule in rules if rule]


def _global_excludes() -> list[str]:
    """`core.excludesFile` of the user's git configuration, else git's default place, when it exists."""
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    chosen = f"{base}/git/ignore"
    for config in (f"{base}/git/config", os.path.expanduser("~/.gitconfig")):
        chosen = _excludes_file(config) or chosen
    return [chosen] if os.path.isfile(chosen) else []


def _excludes_file(config: str) -> str | None:
    """`excludesFile` of the section [core]; git's own reader is not at hand here, and includes are not followed."""
    try:
        with open(config, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError:
        return None
    section, found = "", None
    for line in (line.strip() for line in lines):
        if line.startswith("["):
            section = line.strip("[]").strip().lower()
        elif section == "core" and "=" in line:
            name, _, value = line.partition("=")
            if name.strip().lower() == "excludesfile":
                found = os.path.expanduser(value.strip().strip('"'))
    return found


def _read(path: str, *, base: bytes = b"", prefix: bytes = b"", origin: str) -> PatternList:
    """The rules of one file; none when there is no such file. Raises StagingError when it cannot be read."""
    try:
        with open(path, "rb") as file:
            content = file.read()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        content = b""
    except OSError as exc:
        raise StagingError(f"cannot read {path}: {exc.strerror}", path=path) from exc
    return PatternList(parse_patterns(content), base=base, prefix=prefix, origin=origin)
