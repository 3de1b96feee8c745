"""What a task's files amount to, and what of them stays here, as data."""

from __future__ import annotations

from enum import Enum

import attrs

__all__ = ["Decider", "Folder", "LeftOut", "Reason", "TreeReport"]


class Decider(str, Enum):
    """Who said which paths of a tree go."""

    SKYIGNORE = "skyignore"  # .skyignore in the root
    GIT = "git"  # git itself, with its index
    PATTERNS = "patterns"  # .gitignore and the like, read without git
    NOTHING = "nothing"  # nobody: all would have been left out, or the source is one file


class Reason(str, Enum):
    """Why a path stays here."""

    PATTERN = "pattern"  # a line of a file with patterns; see LeftOut.file, line and pattern
    GIT = "git"  # git's own directory
    SPECIAL = "special"  # a socket, FIFO or device
    DELETED = "deleted"  # git has it in its index, and it is not there
    MISSING = "missing"  # it is not there
    BEHIND_LINK = "behind_link"  # a directory above it is a link: the link goes, and what it leads to does not
    COVERED = "covered"  # a mount puts something else in its place
    EMPTY = "empty"  # a directory of which nothing goes; git knows none
    UNLISTED = "unlisted"  # git does not name it: in a submodule that is not checked out, or made since
    OUTSIDE = "outside"  # in none of the task's sources


@attrs.frozen(kw_only=True)
class LeftOut:
    """One path that does not go, or a directory of which nothing goes.

    path: relative to the tree's source; absolute when it is OUTSIDE. tree: the target, as the task says it ("workdir",
    "~/data"). file, line, pattern: what decided, the file absolute and the line from 1; "" and 0 where none did.
    detail: what else is to be said ("by the directory build", "~/data is put there").
    """

    path: str
    reason: Reason
    tree: str = ""
    file: str = ""
    line: int = 0
    pattern: str = ""
    detail: str = ""

    def __str__(self) -> str:
        """ "build/x.o: /src/.gitignore:3: build/ (by the directory build)"."""
        why = f"{self.file}:{self.line}: {self.pattern}" if self.file else self.reason.value.replace("_", " ")
        text = f"{self.path}: {why}" + (f" ({self.detail})" if self.detail else "")
        return text.encode("utf-8", "backslashreplace").decode()  # a name's bytes may be no UTF-8


@attrs.frozen(kw_only=True)
class Folder:
    """A directory of a tree, with all that goes of what is below it. path: relative to the tree's source."""

    path: str
    files: int
    bytes: int


@attrs.frozen(kw_only=True)
class TreeReport:
    """One source of a task.

    dst: the target, as the task says it. source: absolute, without links. given: the source as the task says it, or where
    it was brought to (a git workdir, a URL). files: files and links, a single file is one. bytes: of the files. largest:
    directories below the source, the largest first; one of which all is in one directory of its own is not among them.
    paths: all that goes, directories included, sorted. left_out: sorted by path; a directory stands for all below it.
    """

    dst: str
    source: str
    given: str
    decided_by: Decider
    files: int
    bytes: int
    largest: tuple[Folder, ...] = ()
    paths: tuple[str, ...] = attrs.field(default=(), repr=False)
    left_out: tuple[LeftOut, ...] = attrs.field(default=(), repr=False)
