"""Patterns of files to ignore, with git's meaning. Pure: text in, answers out.

Source of the rules: gitignore(5); compared with git itself in tests/property/test_staging_ignore.py. Names are matched
as bytes, as git does ("?" is one byte).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import attrs

__all__ = ["Pattern", "PatternList", "parse_patterns"]

_CLASSES = {
    b"alnum": rb"[0-9A-Za-z]",
    b"alpha": rb"[A-Za-z]",
    b"blank": rb"[ \t]",
    b"cntrl": rb"[\x00-\x1f\x7f]",
    b"digit": rb"[0-9]",
    b"graph": rb"[\x21-\x7e]",
    b"lower": rb"[a-z]",
    b"print": rb"[\x20-\x7e]",
    b"punct": rb"[\x21-\x2f\x3a-\x40\x5b-\x60\x7b-\x7e]",
    b"space": rb"[ \t\n\r]",
    b"upper": rb"[A-Z]",
    b"xdigit": rb"[0-9A-Fa-f]",
}
_MEMBERS = {
    name: frozenset(code for code in range(256) if re.match(text, bytes([code]))) for name, text in _CLASSES.items()
}
_NEVER = b"(?!)"
_SPECIAL = re.compile(rb"[*?\[\\]")


@attrs.frozen
class Pattern:
    """One line. negated: it includes again. anchored: matched against the path from its list's directory, else against
    the name alone. text: the line, for people; line: its number, from 1."""

    text: str
    line: int
    regex: bytes
    negated: bool
    dir_only: bool
    anchored: bool


class PatternList:
    """The patterns of one file, in effect below one directory. The last pattern that matches decides."""

    __slots__ = ("_any_name", "_any_path", "_compiled", "_fold", "_prefix", "base", "origin")

    def __init__(
        self,
        patterns: Iterable[Pattern],
        *,
        base: bytes = b"",
        prefix: bytes = b"",
        origin: str = "",
        fold: bool = False,
    ) -> None:
        """base: the directory of the file, relative to the tree's root, b"" for the root or above. origin: its path.

        fold: capital letters (of ASCII, as with git) are small ones; the patterns were parsed so, too.

        prefix: the way from the file's directory down to the tree's root, when the file lies above ("pkg" for the
        repository's own .gitignore when the tree is its directory "pkg").
        """
        found = tuple(patterns)
        self.base = base
        self._prefix = prefix + b"/" if prefix else b""
        self._fold = fold
        self.origin = origin
        self._compiled = tuple((pattern, re.compile(pattern.regex, re.DOTALL)) for pattern in reversed(found))
        self._any_name = _any(pattern.regex for pattern in found if not pattern.anchored)
        self._any_path = _any(pattern.regex for pattern in found if pattern.anchored)

    def decide(self, path: bytes, *, is_dir: bool) -> Pattern | None:
        """The pattern that decides about a path below `base` (relative to the tree's root); None when none matches."""
        name = path.rpartition(b"/")[2]
        local = path[len(self.base) + 1 :] if self.base else self._prefix + path
        if self._fold:
            name, local = name.lower(), local.lower()
        if not (self._any_name and self._any_name.fullmatch(name)) and not (
            self._any_path and self._any_path.fullmatch(local)
        ):
            return None
        for pattern, regex in self._compiled:
            if pattern.dir_only and not is_dir:
                continue
            if regex.fullmatch(local if pattern.anchored else name):
                return pattern
        return None

    def __bool__(self) -> bool:
        return bool(self._compiled)


def parse_patterns(content: bytes, *, fold: bool = False) -> list[Pattern]:
    """The patterns of a `.gitignore`, in order. fold: for names in small letters (`core.ignoreCase`)."""
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    found = (_parse_line(line, number, fold=fold) for number, line in enumerate(lines, 1))
    return [pattern for pattern in found if pattern is not None]


def _parse_line(line: bytes, number: int, *, fold: bool) -> Pattern | None:
    line = line.removesuffix(b"\r").partition(b"\0")[0]
    line = _without_trailing_spaces(line)
    text = line.decode(errors="surrogateescape")
    if not line or line.startswith(b"#"):
        return None
    negated = line.startswith(b"!")
    if negated:
        line = line[1:]
    dir_only = line.endswith(b"/")
    if dir_only:
        line = line[:-1]
    anchored = b"/" in line
    line = line.removeprefix(b"/")
    if not line:
        return None
    return Pattern(text, number, _translate(line, anchored=anchored, fold=fold), negated, dir_only, anchored)


def _without_trailing_spaces(line: bytes) -> bytes:
    """Spaces at the end do not count, unless a backslash stands before them."""
    end = 0
    position = 0
    while position < len(line):
        if line[position : position + 1] == b"\\" and position + 1 < len(line):
            position += 2
            end = position
        else:
            position += 1
            if line[position - 1 : position] != b" ":
                end = position
    return line[:end]


def _any(regexes: Iterable[bytes]) -> re.Pattern[bytes] | None:
    joined = b"|".join(regexes)
    return re.compile(joined, re.DOTALL) if joined else None


def _translate(glob: bytes, *, anchored: bool, fold: bool) -> bytes:
    """A regex for `re.fullmatch` with re.DOTALL. A pattern that git calls malformed matches nothing."""
    special = _SPECIAL.search(glob)
    literal = special.start() if special else len(glob)  # git compares these first, and matches the rest by itself
    not_slash = b"[^/]" if anchored else b"."
    out = []
    position = 0
    while position < len(glob):
        char = glob[position : position + 1]
        if char == b"*":
            end = position
            while glob[end : end + 1] == b"*":
                end += 1
            at_start = position == literal or glob[position - 1 : position] == b"/"
            text, position = _stars(glob, position, end, anchored, at_start)
            out.append(text)
        elif char == b"?":
            out.append(not_slash)
            position += 1
        elif char == b"[":
            members, position = _bracket(glob, position, fold)
            if not position:
                return _NEVER
            out.append(_one_of(members - {0x2F} if anchored else members))
        else:
            if char == b"\\":
                position += 1
                char = glob[position : position + 1]
                if not char:
                    return _NEVER
            out.append(re.escape(char.lower() if fold else char))
            position += 1
    return b"(?:" + b"".join(out) + b")"


def _stars(glob: bytes, start: int, end: int, anchored: bool, at_start: bool) -> tuple[bytes, int]:
    """The regex of a run of stars, and where the pattern goes on. at_start: a part of the path begins here."""
    if not anchored:
        return b".*", end
    if end - start >= 2 and at_start:
        if glob[end : end + 1] == b"/":
            return b"(?:.*/)?", end + 1
        if end == len(glob) or glob[end : end + 2] == b"\\/":
            return b".*", end
    return b"[^/]*", end


def _bracket(glob: bytes, start: int, fold: bool) -> tuple[frozenset[int], int]:
    """The bytes that a "[...]" stands for, and where the pattern goes on; 0 when it is never closed or malformed."""
    position = start + 1
    negated = glob[position : position + 1] in (b"!", b"^")
    if negated:
        position += 1
    members: set[int] = set()
    before = -1  # the character that a "-" here makes a range from; none after a range or a class
    first = True
    while True:
        char = glob[position : position + 1]
        if not char:
            return frozenset(), 0
        if char == b"]" and not first:
            break
        first = False
        following = glob[position + 1 : position + 2]
        if char == b"-" and before >= 0 and following not in (b"", b"]"):
            high, position = _member(glob, position + 1)
            if high < 0:
                return frozenset(), 0
            members |= _folded(range(before, high + 1), fold)
            before = -1
        elif char == b"[" and following == b":" and (name := _class_name(glob, position)) is not None:
            if name not in _MEMBERS:
                return frozenset(), 0
            members |= _folded(_MEMBERS[name], fold and name == b"upper")
            before = -1
            position += len(name) + 4
        else:
            before, position = _member(glob, position)
            if before < 0:
                return frozenset(), 0
            members.add(before)
    return frozenset(range(256)) - members if negated else frozenset(members), position + 1


def _class_name(glob: bytes, position: int) -> bytes | None:
    """What stands in the "[:...:]" here; None when the "[" is an ordinary one, b"" (no class) when nothing closes it."""
    close = glob.find(b"]", position + 2)
    if close < 0:
        return b""
    return glob[position + 2 : close - 1] if close > position + 2 and glob[close - 1 : close] == b":" else None


def _member(glob: bytes, position: int) -> tuple[int, int]:
    """One character of a bracket, unescaped; -1 when the pattern ends here."""
    if glob[position : position + 1] == b"\\":
        position += 1
    return (glob[position] if position < len(glob) else -1), position + 1


def _folded(codes: Iterable[int], fold: bool) -> set[int]:
    """With the small letter of each capital one. (git folds ranges and [:upper:] so, and no single characters.)"""
    found = set(codes)
    return found | {code + 32 for code in found if 0x41 <= code <= 0x5A} if fold else found


def _one_of(codes: frozenset[int]) -> bytes:
    """The regex of one byte of these."""
    return b"[" + b"".join(b"\\x%02x" % code for code in sorted(codes)) + b"]" if codes else _NEVER
