"""The node in memory: rules and what it keeps. How it is a transport is in the contract suite."""

from __future__ import annotations

import pytest

from skylib.errors import ConnectError, InvalidSpecError
from skylib.transport.base import Completed
from skylib.transport.command import Command
from skylib.transport.scripted import Rule, ScriptedTransport


def test_first_rule_that_matches_answers() -> None:
    """Rules are tried in order; a predicate does as well as a regular expression."""
    node = ScriptedTransport("n", [Rule(lambda c: c.argv[:1] == ("id",), b"me"), Rule("^i", b"other")])
    assert node.run(Command.of("id")).stdout == b"me"
    assert node.run(Command.of("ip")).stdout == b"other"


def test_used_up_rules_give_way() -> None:
    """times bounds a rule; an error is raised, a Completed is given with host and command filled in."""
    failed = Completed(returncode=1, stdout=b"", stderr=b"no")
    node = ScriptedTransport("n", [Rule("x", ConnectError("down"), times=1), Rule("x", failed)])
    with pytest.raises(ConnectError):
        node.run(Command.of("x"))
    done = node.run(Command.of("x"))
    assert (done.returncode, done.host, done.command) == (1, "n", "x")


def test_reply_can_be_made_of_the_call() -> None:
    """A callable sees command and stdin."""
    node = ScriptedTransport("n", [Rule("cat", lambda call: call.stdin[::-1])])
    assert node.run(Command.of("cat"), stdin=[b"ab", b"c"]).stdout == b"cba"


def test_calls_are_kept() -> None:
    """What was run stands in order, with stdin and time-out."""
    node = ScriptedTransport("n", [Rule("", b"")])
    node.run(Command.of("a"), stdin=b"in", timeout_s=3)
    node.open(Command.of("b"))
    assert node.commands == ("a", "b")
    assert (node.calls[0].stdin, node.calls[0].timeout_s) == (b"in", 3)


def test_command_without_a_rule_fails_loudly() -> None:
    """A test that forgot a rule learns which command it was."""
    with pytest.raises(InvalidSpecError, match="nvidia-smi"):
        ScriptedTransport("n").run(Command.of("nvidia-smi"))
