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
    b"alnum": b"0-9A-Za-z",
    b"alpha": b"A-Za-z",
    b"blank": b" \\t",
    b"cntrl": b"\\x00-\\x1f\\x7f",
    b"digit": b"0-9",
    b"graph": b"\\x21-\\x7e",
    b"lower": b"a-z",
    b"print": b"\\x20-\\x7e",
    b"punct": b"\\x21-\\x2f\\x3a-\\x40\\x5b-\\x60\\x7b-\\x7e",
    b"space": b" \\t\\n\\r\\x0b\\x0c",
    b"upper": b"A-Z",
    b"xdigit": b"0-9A-Fa-f",
}
_NEVER = b"(?!)"


@attrs.frozen
class Pattern:
    """One line. negated: it includes again. anchored: matched against the path from its list's directory, else against
    the name alone. text: the line, for people."""

    text: str
    regex: bytes
    negated: bool
    dir_only: bool
    anchored: bool


class PatternList:
    """The patterns of one file, in effect below one directory. The last pattern that matches decides."""

    __slots__ = ("_any_name", "_any_path", "_compiled", "_prefix", "base", "origin")

    def __init__(self, patterns: Iterable[Pattern], *, base: bytes = b"", prefix: bytes = b"", origin: str = "") -> None:
        """base: the directory of the file, relative to the tree's root, b"" for the root or above. origin: its name.

        prefix: the way from the file's directory down to the tree's root, when the file lies above ("pkg" for the
        repository's own .gitignore when the tree is its directory "pkg").
        """
        found = tuple(patterns)
        self.base = base
        self._prefix = prefix + b"/" if prefix else b""
        self.origin = origin
        self._compiled = tuple((pattern, re.compile(pattern.regex, re.DOTALL)) for pattern in reversed(found))
        self._any_name = _any(pattern.regex for pattern in found if not pattern.anchored)
        self._any_path = _any(pattern.regex for pattern in found if pattern.anchored)

    def decide(self, path: bytes, *, is_dir: bool) -> Pattern | None:
        """The pattern that decides about a path below `base` (relative to the tree's root); None when none matches."""
        name = path.rpartition(b"/")[2]
        local = path[len(self.base) + 1 :] if self.base else self._prefix + path
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


def parse_patterns(content: bytes) -> list[Pattern]:
    """The patterns of a `.gitignore`, in order."""
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    return [pattern for line in lines if (pattern := _parse_line(line.removesuffix(b"\r"))) is not None]


def _parse_line(line: bytes) -> Pattern | None:
    text = line.decode(errors="surrogateescape")
    line = _without_trailing_spaces(line)
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
    return Pattern(text, _translate(line, anchored=anchored), negated, dir_only, anchored)


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


def _translate(glob: bytes, *, anchored: bool) -> bytes:
    """A regex for `re.fullmatch` with re.DOTALL. A pattern that git calls malformed matches nothing."""
    not_slash = b"[^/]" if anchored else b"."
    out = []
    position = 0
    while position < len(glob):
        char = glob[position : position + 1]
        if char == b"*":
            end = position
            while glob[end : end + 1] == b"*":
                end += 1
            text, position = _stars(glob, position, end, anchored)
            out.append(text)
        elif char == b"?":
            out.append(not_slash)
            position += 1
        elif char == b"[":
            text, position = _bracket(glob, position, anchored)
            if not position:
                return _NEVER
            out.append(text)
        elif char == b"\\":
            if position + 1 >= len(glob):
                return _NEVER
            out.append(re.escape(glob[position + 1 : position + 2]))
            position += 2
        else:
            out.append(re.escape(char))
            position += 1
    return b"(?:" + b"".join(out) + b")"


def _stars(glob: bytes, start: int, end: int, anchored: bool) -> tuple[bytes, int]:
    """The regex of a run of stars, and where the pattern goes on."""
    if not anchored:
        return b".*", end
    at_start = start == 0 or glob[start - 1 : start] == b"/"
    if end - start >= 2 and at_start:
        if end == len(glob):
            return b".*", end
        if glob[end : end + 1] == b"/":
            return b"(?:.*/)?", end + 1
    return b"[^/]*", end


def _bracket(glob: bytes, start: int, anchored: bool) -> tuple[bytes, int]:
    """The regex of a "[...]", and where the pattern goes on; 0 when it is never closed or malformed."""
    position = start + 1
    negated = glob[position : position + 1] in (b"!", b"^")
    if negated:
        position += 1
    members: list[bytes] = []
    first = True
    while True:
        char = glob[position : position + 1]
        if not char:
            return b"", 0
        if char == b"]" and not first:
            break
        first = False
        if glob[position : position + 2] == b"[:":
            close = glob.find(b"]", position + 2)
            if close < 0:
                return b"", 0
            if glob[close - 1 : close] == b":" and close - 1 >= position + 2:
                known = _CLASSES.get(glob[position + 2 : close - 1])
                if known is None:
                    return b"", 0
                members.append(known)
                position = close + 1
                continue
        low, position = _member(glob, position)
        if not low:
            return b"", 0
        if glob[position : position + 1] == b"-" and glob[position + 1 : position + 2] not in (b"", b"]"):
            high, position = _member(glob, position + 1)
            if not high:
                return b"", 0
            if low <= high:
                members.append(_hex(low) + b"-" + _hex(high))
        else:
            members.append(_hex(low))
    position += 1
    inside = b"".join(members)
    slash = b"(?!/)" if anchored else b""
    if not inside:
        return (slash + b"." if negated else _NEVER), position
    return slash + (b"[^" if negated else b"[") + inside + b"]", position


def _member(glob: bytes, position: int) -> tuple[bytes, int]:
    """One character of a bracket, unescaped; b"" when the pattern ends here."""
    if glob[position : position + 1] == b"\\":
        position += 1
    return glob[position : position + 1], position + 1


def _hex(char: bytes) -> bytes:
    return b"\\x%02x" % char[0]
