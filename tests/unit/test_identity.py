"""Who and where a client is."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from skylib.identity import client_hash, machine_name
from skylib.paths import SkyHome
from tests.processes import run_at_once


@pytest.fixture(autouse=True)
def no_given_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SKYPILOT_USER_ID", raising=False)


def test_machines_of_one_name_differ_by_their_id(tmp_path: Path) -> None:
    """The machine id decides between equal host names, and is not shown itself; without one the name is all."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("4f2a\n")
    two.write_text("9b1c\n")
    names = {machine_name(one), machine_name(two), machine_name(tmp_path / "none")}
    assert len(names) == 3
    assert all(name.startswith(socket.gethostname()) for name in names)
    assert machine_name(one) == machine_name(one)
    assert "4f2a" not in machine_name(one)


def test_accounts_of_one_machine_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is `local` to one account is not to another, with a machine id and without."""
    machine_id = tmp_path / "id"
    machine_id.write_text("4f2a\n")
    found = []
    for uid in (1000, 1001):
        monkeypatch.setattr(os, "getuid", lambda uid=uid: uid)
        found += [machine_name(machine_id), machine_name(tmp_path / "none")]
    assert len(set(found)) == 4


def test_a_home_keeps_its_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight hex digits in a private file, the same ever after; another home has others; the variable has its way."""
    home = SkyHome(tmp_path / "a")
    first = client_hash(home)
    assert (len(first), client_hash(home)) == (8, first)
    assert int(first, 16) >= 0
    assert stat.S_IMODE(home.user_hash.stat().st_mode) == 0o600
    assert client_hash(SkyHome(tmp_path / "b")) != first
    monkeypatch.setenv("SKYPILOT_USER_ID", "given")
    assert client_hash(home) == "given"


def test_an_empty_file_is_no_hash(tmp_path: Path) -> None:
    """What a full disk may have left is replaced."""
    home = SkyHome(tmp_path)
    home.user_hash.touch(0o600)
    assert client_hash(home) == home.user_hash.read_text().strip() != ""


def test_processes_that_make_it_at_once_agree(tmp_path: Path) -> None:
    """Eight processes that are the first in a home have one hash, and leave nothing else behind."""
    home = SkyHome(tmp_path / "home")
    found = run_at_once([lambda: client_hash(home).encode()] * 8)
    assert len(set(found)) == 1
    assert [path.name for path in home.root.iterdir()] == ["user_hash"]
