"""One transport for each address."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from skylib.errors import InvalidSpecError
from skylib.models.node import HostAddress
from skylib.paths import SkyHome
from skylib.transport.local import LocalTransport
from skylib.transport.pool import Transports
from skylib.transport.ssh import SshTransport


@pytest.fixture
def transports(tmp_path: Path) -> Transports:
    return Transports(SkyHome(tmp_path))


def test_kind_decides(transports: Transports) -> None:
    """local and ssh are the kinds; the host's name is the transport's."""
    assert isinstance(transports.get(HostAddress(kind="local")), LocalTransport)
    ssh = transports.get(HostAddress(kind="ssh", host="gpu"))
    assert isinstance(ssh, SshTransport)
    assert ssh.host == "gpu"


def test_unknown_kind_is_refused(transports: Transports) -> None:
    """An address that no transport serves is the caller's error."""
    with pytest.raises(InvalidSpecError, match="telnet"):
        transports.get(HostAddress(kind="telnet"))


def test_equal_addresses_share_one(transports: Transports) -> None:
    """Many threads that ask at once get the same transport; another address gets another."""
    address = HostAddress(kind="ssh", host="gpu")
    with ThreadPoolExecutor(8) as pool:
        got = set(pool.map(lambda _: id(transports.get(address)), range(64)))
    assert len(got) == 1
    assert id(transports.get(HostAddress(kind="ssh", host="gpu", user="x"))) not in got


def test_nothing_is_made_before_it_is_used(transports: Transports, tmp_path: Path) -> None:
    """Asking for a transport opens no connection and writes no file."""
    transports.get(HostAddress(kind="ssh", host="gpu"))
    transports.close()
    assert list(tmp_path.iterdir()) == []
