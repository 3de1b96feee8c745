"""What is to be fetched: patterns on a node, and where what they match goes here. Pure.

A pattern is a path by the rules of mounts (mounts.py): relative to the workdir, `~/path`, or absolute. `*`, `?` and
`[...]` match within one name, and no dot at its beginning, as in a shell; a part that is `**` matches any number of
directories. What a pattern with such parts matches keeps its path below the last directory before the first of them:
`runs/*/loss.csv` into `out` gives `out/<run>/loss.csv`. A directory is taken with all that is in it.
"""

from __future__ import annotations

import re
from pathlib import Path

import attrs

from skylib.errors import InvalidSpecError
from skylib.staging.mounts import WORKDIR

__all__ = ["Wanted", "matches", "parse_wanted"]

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_SPECIAL = re.compile(r"[*?\[]")


@attrs.frozen(kw_only=True)
class Wanted:
    """One pattern and its place.

    pattern: as it was given. base: absolute directory on the node; path: the pattern relative to it, in normal form.
    local: absolute, here. into: `local` is a directory, also for what is one file on the node.
    """

    pattern: str
    base: str
    path: str
    local: Path
    into: bool = True

    @property
    def is_plain(self) -> bool:
        """It names one path, and is no pattern. (A name with `[` in it is found, too: a shell takes it as it is.)"""
        return not _SPECIAL.search(self.path)

    @property
    def fixed(self) -> str:
        """The directories before the first part that is a pattern, relative to base; "" for none."""
        parts = self.path.split("/")
        first = next((place for place, part in enumerate(parts) if _SPECIAL.search(part)), len(parts))
        return "/".join(parts[:first])

    @property
    def shell(self) -> str:
        """The part that the node's shell expands: all before the first `**`."""
        parts = self.path.split("/")
        return "/".join(parts[: parts.index("**")]) or "." if "**" in parts else self.path

    @property
    def is_deep(self) -> bool:
        return "**" in self.path.split("/")


def parse_wanted(
    pattern: str, local: Path, *, root: str, account_home: str | None = None, into: bool = True, field: str = "remote"
) -> Wanted:
    """Raises InvalidSpecError (fact: field) for what is no path on a node.

    root: of the node, absolute. account_home: what `~` is there, when that is not the root.
    """
    if not isinstance(pattern, str) or not pattern or "\0" in pattern:
        raise InvalidSpecError(f"{field}: {pattern!r} is no path on a node", field=field)
    if _SCHEME.match(pattern):
        raise InvalidSpecError(f"{field}: {pattern} is a URL; only files of the nodes are fetched", field=field)
    if ".." in pattern.split("/"):
        raise InvalidSpecError(f"{field}: {pattern} must not climb with '..'", field=field)
    root = root.rstrip("/")
    if pattern == "~" or pattern.startswith("~/"):
        base, path = account_home or root, pattern[2:]
    elif pattern.startswith("~"):
        raise InvalidSpecError(f"{field}: other accounts' homes cannot be fetched from: {pattern}", field=field)
    elif pattern.startswith("/"):
        base, path = "/", pattern
    else:
        base, path = f"{root}/{WORKDIR}", pattern
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return Wanted(pattern=pattern, base=base or "/", path="/".join(parts) or ".", local=local, into=into)


def matches(path: str, pattern: str) -> bool:
    """Whether a path, or a directory above it, is what a pattern with `**` means. Both relative to one base."""
    found = _regex(pattern).match(path)
    return found is not None


def _regex(pattern: str) -> re.Pattern[str]:
    parts = pattern.split("/")
    text = ""
    for place, part in enumerate(parts):
        last = place == len(parts) - 1
        if part == "**":
            text += r"[^./][^/]*" if last else r"(?:[^./][^/]*/)*"
        else:
            text += _part(part) + ("" if last else "/")
    return re.compile(rf"{text}(?:/.*)?\Z", re.DOTALL)


def _part(part: str) -> str:
    """One name. `[...]` as a shell has it; one that is not closed stands for itself."""
    text = r"(?!\.)" if part[:1] in ("*", "?", "[") else ""
    place = 0
    while place < len(part):
        char = part[place]
        place += 1
        if char == "*":
            text += "[^/]*"
        elif char == "?":
            text += "[^/]"
        elif char == "[":
            end = part.find("]", place + (2 if part[place : place + 1] in ("!", "^") else 1))
            inside = part[place:end]
            if end < 0 or "[" in inside:
                text += re.escape(char)
                continue
            negated = inside[:1] in ("!", "^")
            inside = re.sub(r"([\\\]^&|~])", r"\\\1", inside[1:] if negated else inside)
            one = f"(?!/)[{'^' if negated else ''}{inside}]"
            try:
                re.compile(one)
            except re.error:  # a range that runs backwards matches nothing
                one = r"(?!)"
            text += one
            place = end + 1
        else:
            text += re.escape(char)
    return text
