"""Commands as data: words that are quoted once, with secrets that are masked wherever people look."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

import attrs

from skylib.errors import InvalidSpecError

__all__ = ["Command", "quote"]

MASK = "********"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RESERVED = frozenset(
    {
        "if",
        "then",
        "else",
        "elif",
        "fi",
        "do",
        "done",
        "case",
        "esac",
        "while",
        "until",
        "for",
        "foreach",
        "repeat",
        "in",
        "function",
        "select",
        "time",
        "coproc",
        "nocorrect",
        "begin",
        "end",
        "and",
        "or",
        "not",
        "switch",
    }
)
"""What a shell that somebody logs in with takes for its grammar, not for the name of a program, when not quoted."""


def quote(word: str) -> str:
    """One word for a POSIX shell. The only quoting function in skylib."""
    if word.startswith("="):  # zsh: the path of a command
        return "'" + word.replace("'", "'\"'\"'") + "'"
    return shlex.quote(word)


@attrs.frozen(kw_only=True)
class Command:
    """One command for a node's /bin/sh.

    argv: words, each quoted. script: shell text instead of argv; it is given to `sh -c` as one quoted word.
    env: exported before; names in `masked_env` are shown as stars by `shown()`. Secrets never go into argv, script or
    env (they would be seen in the node's process list): send them on stdin.
    cwd: absolute directory, None for where the login lands.
    """

    argv: tuple[str, ...] = ()
    script: str | None = None
    env: Mapping[str, str] = attrs.field(factory=dict)
    masked_env: frozenset[str] = frozenset()
    cwd: str | None = None

    def __attrs_post_init__(self) -> None:
        """Raises InvalidSpecError on what no exec could be given."""
        if self.script is None and not self.argv:
            raise InvalidSpecError("a command needs words or a script", field="argv")
        if any("\0" in text for text in (*self.words(), *self.env.values(), self.cwd or "")):
            raise InvalidSpecError("a command cannot hold a NUL character", field="argv")
        for name in self.env:
            if _NAME.fullmatch(name) is None:
                raise InvalidSpecError(f"not a name of an environment variable: {name!r}", field="env")
        if self.cwd is not None and not self.cwd.startswith("/"):
            raise InvalidSpecError(f"not an absolute directory: {self.cwd!r}", field="cwd")

    @classmethod
    def of(cls, *argv: str, **options: object) -> Command:
        return cls(argv=tuple(argv), **options)  # type: ignore[arg-type]

    @classmethod
    def sh(cls, script: str, *args: str, **options: object) -> Command:
        """Shell text; `args` reach it as "$1", "$2", ... and need no quoting by the caller."""
        return cls(script=script, argv=tuple(args), **options)  # type: ignore[arg-type]

    def words(self) -> tuple[str, ...]:
        """What an exec would be given."""
        if self.script is None:
            return self.argv
        return ("/bin/sh", "-c", self.script, "sh", *self.argv)

    def text(self) -> str:
        """The line for the node's shell, whatever login shell that is (only words, assignments through `env`)."""
        return self._render(self.env)

    def shown(self) -> str:
        """The line for people and logs, masked."""
        return self._render({name: MASK if name in self.masked_env else value for name, value in self.env.items()})

    def _render(self, env: Mapping[str, str]) -> str:
        words = list(self.words())
        if env:
            words = ["env", *[f"{name}={value}" for name, value in env.items()], *words]
        first = f"'{words[0]}'" if words[0] in _RESERVED or _is_assignment(words[0]) else quote(words[0])
        line = " ".join((first, *map(quote, words[1:])))
        if self.cwd is not None:
            return f"cd {quote(self.cwd)} && {line}"
        return line


def _is_assignment(word: str) -> bool:
    """A program whose name would be read as NAME=value; safe to put between single quotes as it is."""
    return "=" in word and shlex.quote(word) == word
