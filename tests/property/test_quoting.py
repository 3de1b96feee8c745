"""Quoting against real shells."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skylib.transport.command import Command

SHELLS = [path for name in ("sh", "bash", "dash", "zsh", "ksh", "mksh", "busybox") if (path := shutil.which(name))]
WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=40)
TRICKY = st.sampled_from(
    ["", " ", "'", '"', "\\", "\n", "$HOME", "`id`", "$(id)", "a'b\"c", "-n", "--", "*", "~", "!", "#", "=ls", "%1", "{a,b}"]
)
NAMES = st.from_regex(r"SKYT_[A-Za-z0-9_]{0,8}", fullmatch=True)


def run_sh(shell: str, text: str) -> bytes:
    argv = [shell, "sh", "-c", text] if shell.endswith("busybox") else [shell, "-c", text]
    return subprocess.run(argv, capture_output=True, check=True, timeout=20, stdin=subprocess.DEVNULL).stdout


@pytest.mark.parametrize("shell", SHELLS)
@given(words=st.lists(WORDS | TRICKY, max_size=8))
def test_words_survive_a_real_shell(shell: str, words: list[str]) -> None:
    """What is put in as words comes out as the same words."""
    text = Command.of("printf", "%s\\0", "x", *words).text()
    assert run_sh(shell, text).decode().split("\0")[1:-1] == words


@pytest.mark.parametrize("shell", SHELLS)
@given(words=st.lists(WORDS | TRICKY, max_size=5), script_tail=TRICKY)
def test_arguments_of_a_script_survive_two_shells(shell: str, words: list[str], script_tail: str) -> None:
    """A script is one quoted word, its arguments reach it as they are, and comments in it end where they should."""
    script = "printf '%s\\0' \"$@\"\n: " + "'" + script_tail.replace("'", "'\\''") + "'"
    assert run_sh(shell, Command.sh(script, "x", *words).text()).decode().split("\0")[1:-1] == words


@pytest.mark.parametrize("shell", SHELLS)
@given(env=st.dictionaries(NAMES, WORDS | TRICKY, max_size=4))
def test_environment_survives_a_real_shell(shell: str, env: dict[str, str]) -> None:
    """Values of env reach the program as they are."""
    out = run_sh(shell, Command.of("env", "-0", env=env).text()).decode("utf-8", "surrogateescape")
    seen = dict(item.split("=", 1) for item in out.split("\0") if item.startswith("SKYT_"))
    assert seen == env


@given(words=st.lists(WORDS | TRICKY, min_size=1, max_size=4), secret=st.text("abcXYZ'\" $", min_size=12, max_size=20))
def test_masked_values_never_show(words: list[str], secret: str) -> None:
    """A masked value does not show, whatever stands beside it."""
    command = Command.of("true", *words, env={"SKYT_TOKEN": f"s3cr3t{secret}"}, masked_env=frozenset({"SKYT_TOKEN"}))
    assert "s3cr3t" not in command.shown()
