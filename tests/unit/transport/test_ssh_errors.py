"""The table from paramiko's errors to ours."""

from __future__ import annotations

import importlib
import pkgutil
import socket
import sys

import paramiko
import pytest

from skylib.errors import AuthError, ConnectError, HostKeyError, InvalidSpecError, SkyError
from skylib.transport.ssh_errors import TABLE, mapped, translate


def paramiko_exceptions() -> list[type[BaseException]]:
    """Every exception class that a module of paramiko defines (those of Windows cannot be imported here)."""
    found = set()
    for module in pkgutil.iter_modules(paramiko.__path__):
        if module.name.startswith(("_winapi", "win_")):
            continue
        loaded = importlib.import_module(f"paramiko.{module.name}")
        for value in vars(loaded).values():
            if isinstance(value, type) and issubclass(value, BaseException) and value.__module__ == loaded.__name__:
                found.add(value)
    return sorted(found, key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", paramiko_exceptions(), ids=lambda kind: kind.__name__)
def test_every_exception_of_paramiko_has_a_row_of_its_own(kind: type[BaseException]) -> None:
    """A class that a new paramiko brings is noticed, not guessed from its base."""
    assert kind.__name__ in TABLE


def test_paramiko_has_exceptions_to_map() -> None:
    """The enumeration above finds the ones that matter."""
    names = {kind.__name__ for kind in paramiko_exceptions()}
    assert {"SSHException", "AuthenticationException", "ChannelException", "PipeTimeout"} <= names


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (paramiko.SSHException("x"), ConnectError),
        (paramiko.AuthenticationException("x"), AuthError),
        (paramiko.BadAuthenticationType("x", ["password"]), AuthError),
        (paramiko.PasswordRequiredException("x"), AuthError),
        (paramiko.ChannelException(1, "x"), ConnectError),
        (paramiko.ProxyCommandFailure("nc", 1), ConnectError),
        (paramiko.BadHostKeyException("h", paramiko.RSAKey.generate(1024), paramiko.RSAKey.generate(1024)), HostKeyError),
        (ConnectionRefusedError(111, "refused"), ConnectError),
        (ConnectionResetError(104, "reset"), ConnectError),
        (BrokenPipeError(32, "pipe"), ConnectError),
        (TimeoutError("slow"), ConnectError),
        (socket.gaierror(-2, "unknown"), ConnectError),
        (OSError(113, "no route"), ConnectError),
        (EOFError(), ConnectError),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_lower_errors_become_ours_from_the_original(error: BaseException, expected: type[SkyError]) -> None:
    """The error names host and step, shows what was seen, and keeps the original as its cause."""
    with pytest.raises(expected) as caught, mapped("gpu", "connect"):
        raise error
    assert type(caught.value) is expected
    assert caught.value.__cause__ is error
    assert (caught.value.host, caught.value.step) == ("gpu", "connect")
    assert type(error).__name__ in str(caught.value.evidence)


@pytest.mark.parametrize("error", [InvalidSpecError("x"), ConnectError("x"), KeyError("x"), AssertionError()])
def test_other_errors_pass_as_they_are(error: Exception) -> None:
    """Our own errors and those of a bug are not dressed up."""
    with pytest.raises(type(error)) as caught, mapped("gpu", "connect"):
        raise error
    assert caught.value is error


def test_a_class_of_the_same_name_elsewhere_is_not_ours_to_map() -> None:
    """Only paramiko's and Python's own classes are looked up by name."""
    other = type("SSHException", (Exception,), {"__module__": "elsewhere"})
    assert translate(other(), host="gpu", step="connect") is None


def test_the_table_needs_no_paramiko() -> None:
    """Rows are names, so that the table can be imported without paramiko."""
    assert "paramiko" not in vars(sys.modules["skylib.transport.ssh_errors"])
