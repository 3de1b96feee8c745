"""This machine as a node: what commands inherit."""

from __future__ import annotations

import pytest

from skylib.transport.command import Command
from skylib.transport.local import LocalTransport


def test_commands_do_not_inherit_the_databases_url(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has a password in it; everything else of the client's environment is there, as it is when the command starts."""
    transport = LocalTransport()
    monkeypatch.setenv("SKYLIB_DB", "postgresql://ann:hush@db/sky")
    monkeypatch.setenv("OTHER", "kept")
    assert transport.run(Command.sh('echo "${SKYLIB_DB-none} $OTHER"')).stdout == b"none kept\n"
    opened = transport.open(Command.sh('echo "${SKYLIB_DB-none} $OTHER"'))
    assert opened.receive() == b"none kept\n"
    opened.wait(10)
    opened.close()


def test_an_environment_that_is_given_is_passed_as_it_is() -> None:
    """Whoever says what commands inherit has their way."""
    transport = LocalTransport(env={"SKYLIB_DB": "mine"})
    assert transport.run(Command.of("/bin/sh", "-c", 'echo "$SKYLIB_DB"')).stdout == b"mine\n"
