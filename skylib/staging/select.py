"""Which paths of a tree go to the nodes.

1. `.skyignore` in the tree's root: it alone decides, with .gitignore's syntax; even `.git` goes, unless it says no.
2. Else, in a git work tree: what `git ls-files --others --cached --exclude-standard` says (so a tracked file goes
   although a pattern ignores it, and empty directories do not). Submodules and nested repositories are asked likewise.
3. Else, or without git on this machine: `.gitignore` at every level, `.git/info/exclude` and `core.excludesFile`,
   matched by rules.py. Without git the index is not read. Empty directories go.

In 2 and 3 `.git` never goes. When everything would be left out (a data directory that its repository ignores, or that
ignores itself) nothing is ignored: who names a directory means its content. SkyPilot does so too.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import attrs

from skylib.errors import StagingError
from skylib.models.sync_report import Decider
from skylib.staging.rules import SKYIGNORE, RuleBook, walk

__all__ = ["Selection", "ask_git", "choose", "rule_book", "select"]

_GIT_TIMEOUT_S = 300.0
_ASK = ("ls-files", "-z", "--cached", "--others", "--exclude-standard")
_OTHER_REPOSITORY = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_COMMON_DIR")
# What git says of a directory that is in no work tree, or that it does not take for the user's own.
_NOT_ONE = re.compile("not a git repository|must be run in a work tree|dubious ownership|unsafe repository")
_CLOSED = re.compile(r"warning: could not open directory '(.*?)/?': (.*)")


@attrs.frozen(kw_only=True)
class Selection:
    """The paths that go, in no order (some may be gone: in the index, but deleted), and who decided.

    repositories: in the tree, whose own rules were asked, "" the root's. Directories are named only where they may be
    empty.
    """

    paths: list[str]
    by: Decider
    repositories: tuple[str, ...] = ()


def select(root: Path, *, git: str | None = "git") -> list[str]:
    """The paths below the directory `root` that go. See choose()."""
    return choose(root, git=git).paths


def choose(root: Path, *, git: str | None = "git") -> Selection:
    """What goes of the directory `root`. git: the program, None to do without.

    Raises StagingError when a directory, a file with rules or git's index cannot be read.
    """
    top = os.path.realpath(root)
    if os.path.isfile(f"{top}/{SKYIGNORE}"):
        return Selection(paths=_walked(RuleBook.of_skyignore(top)), by=Decider.SKYIGNORE)
    program = shutil.which(git) if git else None
    found = _of_git(program, top) if program else None
    if found is None:
        book = RuleBook.of_gitignore(top)
        found = Selection(paths=[] if book.root_ignored else _walked(book), by=Decider.PATTERNS)
    return found if found.paths else Selection(paths=_walked(RuleBook.of_nothing(top)), by=Decider.NOTHING)


def rule_book(root: str, by: Decider) -> RuleBook:
    """The rules that decided about the directory `root` (absolute, without links), where git did not."""
    if by is Decider.SKYIGNORE:
        return RuleBook.of_skyignore(root)
    return RuleBook.of_nothing(root) if by is Decider.NOTHING else RuleBook.of_gitignore(root)


def ask_git(git: str, folder: str, *words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """What git says in a directory, of its own repository, in English. Raises StagingError when it cannot be asked."""
    env = {name: value for name, value in os.environ.items() if name not in _OTHER_REPOSITORY}
    env.update(LC_ALL="C", GIT_OPTIONAL_LOCKS="0")
    try:
        return subprocess.run(
            [git, "-c", "core.fsmonitor=false", *words],
            cwd=folder,
            env=env,
            input=stdin,
            capture_output=True,
            timeout=_GIT_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise StagingError(f"could not ask git about {folder}: {exc}", path=folder) from exc


def _walked(book: RuleBook) -> list[str]:
    return [found.path for found in walk(book) if found.goes]


def _of_git(git: str, root: str) -> Selection | None:
    """What git says of a tree and of the repositories in it; None when `root` is in no work tree, or not in ours."""
    first = _listed(git, root)
    if first is None:
        return None
    paths: dict[str, None] = {}
    repositories = [""]
    pending = [("", first)]
    while pending:
        folder, listed = pending.pop()
        for name in listed:
            path = f"{folder}/{name}" if folder else name
            paths[path] = None
            inner = f"{root}/{path}"
            if os.path.isdir(inner) and not os.path.islink(inner) and os.path.lexists(f"{inner}/.git"):
                below = _listed(git, inner)
                if below is None:  # not ours, or its `.git` leads nowhere
                    below = _walked(RuleBook.of_gitignore(inner))
                repositories.append(path)
                pending.append((path, below))
    return Selection(paths=list(paths), by=Decider.GIT, repositories=tuple(repositories))


def _listed(git: str, folder: str) -> list[str] | None:
    """One repository's answer: a submodule or a nested repository is one path in it."""
    done = ask_git(git, folder, *_ASK)
    says = os.fsdecode(done.stderr)
    if done.returncode != 0:
        if _NOT_ONE.search(says):
            return None
        reason = says.strip() or f"it ended with {done.returncode}"
        raise StagingError(f"git could not list {folder}: {reason}", path=folder, evidence=reason)
    closed = _CLOSED.search(says)
    if closed is not None:  # git goes on without what is in it
        path = f"{folder}/{closed[1]}"
        raise StagingError(f"cannot read {path}: {closed[2]}", path=path)
    return [os.fsdecode(raw.removesuffix(b"/")) for raw in done.stdout.split(b"\0") if raw]
