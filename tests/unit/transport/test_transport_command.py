"""Commands as data."""

from __future__ import annotations

import pytest

from skylib.errors import InvalidSpecError
from skylib.transport.command import Command, quote


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (Command.of("ls", "-l", "a b"), "ls -l 'a b'"),
        (Command.sh('echo "$1"', "a'b"), """/bin/sh -c 'echo "$1"' sh 'a'"'"'b'"""),
        (Command.of("true", cwd="/a b"), "cd '/a b' && true"),
        (Command.of("true", env={"A": "x y"}), "env 'A=x y' true"),
        (Command.of("if", "x"), "'if' x"),
        (Command.of("A=b", "x"), "'A=b' x"),
        (Command.of("true", "=ls", "a=b"), "true '=ls' a=b"),
        (Command.of("", "x"), "'' x"),
    ],
)
def test_text_is_one_line_for_the_nodes_shell(command: Command, text: str) -> None:
    """Every word is quoted once; what a shell would take for its grammar is quoted too."""
    assert command.text() == text


def test_masked_values_are_not_shown() -> None:
    """People see stars, the node sees the value."""
    command = Command.of("run", env={"TOKEN": "hush", "A": "1"}, masked_env=frozenset({"TOKEN"}))
    assert "hush" in command.text()
    assert "hush" not in command.shown()
    assert "A=1" in command.shown()


@pytest.mark.parametrize(
    "options",
    [
        {"argv": ()},
        {"argv": ("a\0b",)},
        {"script": "a\0b"},
        {"argv": ("a",), "env": {"A": "\0"}},
        {"argv": ("a",), "env": {"A B": "x"}},
        {"argv": ("a",), "env": {"1A": "x"}},
        {"argv": ("a",), "cwd": "relative"},
    ],
)
def test_what_no_exec_takes_is_refused(options: dict[str, object]) -> None:
    """No words, NUL bytes, names that are none and relative directories: InvalidSpecError."""
    with pytest.raises(InvalidSpecError):
        Command(**options)  # type: ignore[arg-type]


def test_plain_words_stay_readable() -> None:
    """A word without special characters is not quoted."""
    assert quote("/usr/bin/ray") == "/usr/bin/ray"
