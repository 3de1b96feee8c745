"""What `~/.ssh/config` says about one host. Read, never written; files and `Match exec` come through callables.

The rules are those of ssh_config(5): the first value found for a keyword wins, IdentityFile and UserKnownHostsFile keep
what was given, an Include inside a Host or Match block belongs to that block, Match final makes a second pass.
"""

from __future__ import annotations

import glob
import os
import re
import shlex
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import attrs

from skylib.errors import ConfigError

__all__ = ["ConfigSources", "HostConfig", "Local", "expand_tokens", "pattern_matches", "read_config"]

_MAX_DEPTH = 16
_LINE = re.compile(r"^\s*([A-Za-z][A-Za-z0-9]*)(?:\s*=\s*|\s+)(.*?)\s*$")
_MATCH_WITHOUT_ARGUMENT = frozenset({"all", "canonical", "final"})
_MATCH_WITH_ARGUMENT = frozenset({"host", "originalhost", "user", "localuser", "exec", "tagged"})


@attrs.frozen(kw_only=True)
class Local:
    """This side, as the tokens of the configuration name it."""

    user: str
    home: str
    hostname: str = "localhost"
    uid: int = 0


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(errors="surrogateescape")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        raise ConfigError(f"could not read {path}: {exc.strerror}", file=path) from exc


def _succeeds(command: str) -> bool:
    done = subprocess.run(["/bin/sh", "-c", command], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False)
    return done.returncode == 0


@attrs.frozen(kw_only=True)
class ConfigSources:
    """Where configuration text comes from. read: a file's text, None when it does not exist. exec: for `Match exec`."""

    read: Callable[[str], str | None] = _read
    list: Callable[[str], Iterable[str]] = attrs.field(default=lambda pattern: sorted(glob.glob(pattern)))
    exec: Callable[[str], bool] = _succeeds


@attrs.frozen(kw_only=True)
class HostConfig:
    """Keywords (lower case) with their words, for one host. identity_files: in order, tokens not expanded."""

    values: Mapping[str, tuple[str, ...]]
    identity_files: tuple[str, ...] = ()

    def first(self, keyword: str) -> str | None:
        words = self.values.get(keyword)
        return words[0] if words else None

    def all(self, keyword: str) -> tuple[str, ...]:
        return self.values.get(keyword, ())

    def line(self, keyword: str) -> str | None:
        """The rest of the line as one text, as ProxyCommand wants it."""
        words = self.values.get(keyword)
        return " ".join(words) if words else None


def pattern_matches(patterns: Iterable[str], value: str) -> bool:
    """ssh_config(5) PATTERNS: `*` and `?`; a match of a pattern with `!` refuses whatever the others say."""
    matched = False
    for pattern in patterns:
        negated, pattern = pattern.startswith("!"), pattern.removeprefix("!")
        expression = "".join({"*": ".*", "?": "."}.get(letter, re.escape(letter)) for letter in pattern)
        if re.fullmatch(expression, value, re.IGNORECASE | re.DOTALL):
            if negated:
                return False
            matched = True
    return matched


def expand_tokens(text: str, tokens: Mapping[str, str]) -> str:
    """`%h` and the like; `%%` is a percent sign. Raises ConfigError on a token that is not known here."""

    def value(found: re.Match[str]) -> str:
        letter = found.group(1)
        if letter == "%":
            return "%"
        if letter not in tokens:
            raise ConfigError(f"%{letter} cannot be used in {text!r}", key=text)
        return tokens[letter]

    return re.sub(r"%(.)", value, text)


def read_config(
    files: Iterable[str], host: str, *, local: Local, user: str | None = None, sources: ConfigSources | None = None
) -> HostConfig:
    """What `files` (user's first; missing ones count as empty) say about `host`, the name as the caller gave it.

    user: given by the caller, as `Match user` sees it. Raises ConfigError with file and line.
    """
    reader = _Reader(host=host, local=local, sources=sources or ConfigSources(), files=tuple(files))
    if user is not None:
        reader.values["user"] = (user,)
    reader.read_all()
    if reader.has_final:
        reader.final = True
        reader.read_all()
    return HostConfig(values=reader.values, identity_files=tuple(reader.identities))


@attrs.define(kw_only=True)
class _Reader:
    host: str
    local: Local
    sources: ConfigSources
    files: tuple[str, ...]
    values: dict[str, tuple[str, ...]] = attrs.field(factory=dict)
    identities: list[str] = attrs.field(factory=list)
    has_final: bool = False
    final: bool = False

    def read_all(self) -> None:
        for file in self.files:
            self._file(file, active=True, allowed=True, within=())

    def _file(self, path: str, *, active: bool, allowed: bool, within: tuple[str, ...]) -> None:
        """allowed: whether blocks of this file may apply at all (the block that includes it does)."""
        real = os.path.realpath(path)
        if real in within:
            raise ConfigError(f"{path} includes itself", file=path)
        if len(within) > _MAX_DEPTH:
            raise ConfigError(f"Include is nested more than {_MAX_DEPTH} deep", file=path)
        for number, keyword, rest in _lines(self.sources.read(path) or "", path):
            try:
                if keyword == "include":
                    for found in self._included(rest):
                        self._file(found, active=active, allowed=active, within=(*within, real))
                elif keyword == "host":
                    active = allowed and pattern_matches(_words(rest), self.host)
                elif keyword == "match":
                    active = self._match(_words(rest), allowed)
                elif active:
                    self._take(keyword, rest)
            except ConfigError as exc:
                if getattr(exc, "line", None) is not None or exc.message.endswith("includes itself"):
                    raise
                raise ConfigError(f"{path}, line {number}: {exc.message}", file=path, line=number) from exc

    def _included(self, rest: str) -> Iterator[str]:
        for pattern in _words(rest):
            expanded = expand_tokens(_home(pattern, self.local), self._tokens()) if "%" in pattern else pattern
            expanded = _home(expanded, self.local)
            if not os.path.isabs(expanded):
                expanded = os.path.join(self.local.home, ".ssh", expanded)
            yield from self.sources.list(expanded)

    def _take(self, keyword: str, rest: str) -> None:
        words = (rest,) if keyword == "proxycommand" else _words(rest)
        if not words:
            raise ConfigError(f"{keyword} has no value", key=keyword)
        if keyword == "identityfile":
            if words[0] not in self.identities:
                self.identities.append(words[0])
        else:
            self.values.setdefault(keyword, words)

    def _match(self, words: tuple[str, ...], allowed: bool) -> bool:
        """Criteria are looked at from left to right, and no further than the first that fails."""
        if not words:
            raise ConfigError("Match has no criteria", key="match")
        rest = list(words)
        result = allowed
        while rest:
            name = rest.pop(0)
            negated, name = name.startswith("!"), name.removeprefix("!").lower()
            if name in _MATCH_WITHOUT_ARGUMENT:
                passed = self._passes(name, "") if result else False
            elif name in _MATCH_WITH_ARGUMENT and rest:
                argument = rest.pop(0)
                passed = self._passes(name, argument) if result else False
            else:
                raise ConfigError(f"Match {name} is not known, or lacks its value", key="match")
            self.has_final = self.has_final or name == "final"
            result = result and passed != negated
        return result

    def _passes(self, name: str, argument: str) -> bool:
        if name in ("canonical", "final"):
            return self.final and name == "final"
        if name == "exec":
            return self.sources.exec(expand_tokens(argument, self._tokens()))
        if name == "all":
            return True
        subject = {
            "host": self._tokens()["h"],
            "originalhost": self.host,
            "user": self._tokens()["r"],
            "localuser": self.local.user,
            "tagged": (self.values.get("tag") or ("",))[0],
        }[name]
        return pattern_matches(argument.split(","), subject)

    def _tokens(self) -> dict[str, str]:
        name = (self.values.get("hostname") or ("%h",))[0]
        return {
            "h": name.replace("%h", self.host),
            "n": self.host,
            "p": (self.values.get("port") or ("22",))[0],
            "r": (self.values.get("user") or (self.local.user,))[0],
            "u": self.local.user,
            "d": self.local.home,
            "i": str(self.local.uid),
            "L": self.local.hostname.split(".")[0],
            "l": self.local.hostname,
        }


def _lines(text: str, path: str) -> Iterator[tuple[int, str, str]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = _LINE.match(line)
        if found is None:
            raise ConfigError(f"{path}, line {number}: not a keyword with a value: {line!r}", file=path, line=number)
        yield number, found.group(1).lower(), found.group(2)


def _words(rest: str) -> tuple[str, ...]:
    try:
        lexer = shlex.shlex(rest, posix=True, punctuation_chars=False)
        lexer.whitespace_split, lexer.commenters = True, "#" if " #" in rest else ""
        lexer.escape = ""
        return tuple(lexer)
    except ValueError as exc:
        raise ConfigError(f"a quote is not closed in {rest!r}") from exc


def _home(path: str, local: Local) -> str:
    return local.home + path[1:] if path == "~" or path.startswith("~/") else path
