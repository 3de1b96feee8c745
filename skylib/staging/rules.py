"""A tree's own look at its rules, path by path, without git: who decides about a path, and what is below.

Source: gitignore(5). In order of weight, the weakest first: `core.excludesFile`, `info/exclude`, the `.gitignore` of each
directory from the top of the repository down. A repository in the tree begins anew, with its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import attrs

from skylib.errors import StagingError
from skylib.staging.ignore import Pattern, PatternList, parse_patterns
from skylib.staging.repository import GitSettings, Repository, git_settings, repository_above, repository_at

__all__ = ["GITIGNORE", "SKYIGNORE", "Found", "RuleBook", "Rules", "walk"]

SKYIGNORE, GITIGNORE = ".skyignore", ".gitignore"


@attrs.frozen
class Rules:
    """What holds in one directory. lists: weakest first. fold: capital letters are small ones."""

    lists: tuple[PatternList, ...] = ()
    fold: bool = False

    def decide(self, path: bytes, *, is_dir: bool) -> tuple[PatternList, Pattern] | None:
        """The pattern that decides, and whose it is; None when none matches."""
        for each in reversed(self.lists):
            found = each.decide(path, is_dir=is_dir)
            if found is not None:
                return each, found
        return None

    def ignoring(self, path: bytes, *, is_dir: bool) -> tuple[PatternList, Pattern] | None:
        """The pattern by which the path is ignored; None when it is not."""
        found = self.decide(path, is_dir=is_dir)
        return None if found is None or found[1].negated else found

    def and_then(self, rules: PatternList) -> Rules:
        return attrs.evolve(self, lists=(*self.lists, rules)) if rules else self


@attrs.frozen
class Found:
    """A path of a walk. by: the pattern that ignores it, and whose it is; None when it goes. git: it is git's own."""

    path: str
    is_dir: bool
    by: tuple[PatternList, Pattern] | None = None
    git: bool = False

    @property
    def goes(self) -> bool:
        return self.by is None and not self.git


@attrs.frozen
class RuleBook:
    """Which rules a tree has. root: absolute, without links.

    start: those that hold in the root. nested: `.gitignore` and repositories in the tree
    count. keep_git: `.git` is a name like any other. root_ignored: a pattern from above ignores the root itself.
    """

    root: str
    start: Rules = attrs.field(factory=Rules)
    nested: bool = False
    keep_git: bool = False
    root_ignored: bool = False

    @classmethod
    def of_skyignore(cls, root: str) -> RuleBook:
        """`.skyignore` of the root alone decides."""
        return cls(root=root, start=Rules().and_then(_read(f"{root}/{SKYIGNORE}")), keep_git=True)

    @classmethod
    def of_gitignore(cls, root: str) -> RuleBook:
        """As git has it: rules from above of the root, and those in it."""
        repository = repository_above(root)
        top = repository.top if repository is not None else root
        below = os.path.relpath(root, top) if root != top else ""
        settings = git_settings(repository, root)
        rules = _rules_of(repository, settings, prefix=os.fsencode(below))
        parts = below.split("/") if below else []
        for depth in range(len(parts)):
            rules = _with_own(rules, "/".join([top, *parts[:depth]]), prefix=os.fsencode("/".join(parts[depth:])))
        whole = cls(root=top, start=_rules_of(repository, settings), nested=True)
        return cls(root=root, start=rules, nested=True, root_ignored=bool(below) and not whole.trace(below).goes)

    @classmethod
    def of_nothing(cls, root: str) -> RuleBook:
        """All goes but `.git`."""
        return cls(root=root)

    def entering(self, folder: str, known: Rules) -> Rules:
        """The rules in the directory `folder` (relative, "" for the root), below one where `known` holds."""
        if not self.nested:
            return known
        here = f"{self.root}/{folder}" if folder else self.root
        base = os.fsencode(folder)
        inner = repository_at(here) if folder else None
        if inner is not None:
            known = _rules_of(inner, git_settings(inner, here), base=base)
        return _with_own(known, here, base=base)

    def judge(self, path: str, known: Rules, *, is_dir: bool) -> Found:
        """Whether a path goes, by the rules of the directory that it is in."""
        if not self.keep_git and path.rpartition("/")[2] == ".git":
            return Found(path, is_dir, git=True)
        return Found(path, is_dir, by=known.ignoring(os.fsencode(path), is_dir=is_dir))

    def trace(self, path: str) -> Found:
        """What a walk would find of `path`, or of the directory above it that is ignored already."""
        known = self.start
        parts = path.split("/")
        found = Found(path, is_dir=False)
        for depth in range(1, len(parts) + 1):
            known = self.entering("/".join(parts[: depth - 1]), known)
            each = "/".join(parts[:depth])
            place = f"{self.root}/{each}"
            found = self.judge(each, known, is_dir=os.path.isdir(place) and not os.path.islink(place))
            if not found.goes:
                break
        return found


def walk(book: RuleBook) -> Iterator[Found]:
    """Every path below the root, less what is below one that does not go: that cannot come back.

    Raises StagingError when a directory cannot be read.
    """
    pending: list[tuple[str, Rules]] = [("", book.start)]
    while pending:
        folder, outer = pending.pop()
        known = book.entering(folder, outer)
        for name, is_dir in _listing(f"{book.root}/{folder}" if folder else book.root):
            found = book.judge(f"{folder}/{name}" if folder else name, known, is_dir=is_dir)
            yield found
            if is_dir and found.goes:
                pending.append((found.path, known))


def _listing(folder: str) -> list[tuple[str, bool]]:
    """Names, and whether each is a directory."""
    try:
        with os.scandir(folder) as listing:
            return [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in listing]
    except OSError as exc:
        raise StagingError(f"cannot read {folder}: {exc.strerror}", path=folder) from exc


def _rules_of(
    repository: Repository | None, settings: GitSettings, *, base: bytes = b"", prefix: bytes = b""
) -> Rules:
    """Those of the user and of the repository, which lie in no directory of the tree."""
    fold = settings.ignore_case
    rules = Rules(fold=fold)
    if settings.excludes_file:
        rules = rules.and_then(_read(settings.excludes_file, base=base, prefix=prefix, fold=fold, closed_ok=True))
    if repository is not None:
        exclude = os.path.normpath(f"{repository.common_dir}/info/exclude")
        rules = rules.and_then(_read(exclude, base=base, prefix=prefix, fold=fold))
    return rules


def _with_own(rules: Rules, folder: str, *, base: bytes = b"", prefix: bytes = b"") -> Rules:
    """With the directory's `.gitignore`; git does not follow one that is a link."""
    file = f"{folder}/{GITIGNORE}"
    if not os.path.isfile(file) or os.path.islink(file):
        return rules
    return rules.and_then(_read(file, base=base, prefix=prefix, fold=rules.fold))


def _read(
    path: str, *, base: bytes = b"", prefix: bytes = b"", fold: bool = False, closed_ok: bool = False
) -> PatternList:
    """The rules of one file; none when there is no such file. Raises StagingError when it cannot be read.

    closed_ok: none as well when permissions keep it from us, as git has it for the user's own.
    """
    try:
        with open(path, "rb") as file:
            content = file.read()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        content = b""
    except OSError as exc:
        if not (closed_ok and isinstance(exc, PermissionError)):
            raise StagingError(f"cannot read {path}: {exc.strerror}", path=path) from exc
        content = b""
    return PatternList(parse_patterns(content, fold=fold), base=base, prefix=prefix, origin=path, fold=fold)
