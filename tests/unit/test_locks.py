"""Locks as files of a home. What every kind of lock does is in tests/contract/test_locks.py."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from skylib.errors import LockTimeout, StateError
from skylib.locks import Locks, lock_file_name
from skylib.paths import SkyHome


@pytest.fixture
def home(tmp_path: Path) -> SkyHome:
    return SkyHome(tmp_path / "home")


@pytest.fixture
def locks(home: SkyHome) -> Locks:
    return Locks(home)


def test_making_locks_makes_no_file(home: SkyHome, locks: Locks) -> None:
    """The folder comes with the first lock, private."""
    assert not home.root.exists()
    with locks.hold("pool:lab", operation="launch"):
        pass
    assert stat.S_IMODE(home.locks.stat().st_mode) == 0o700
    (file,) = home.locks.iterdir()
    assert (file.name, stat.S_IMODE(file.stat().st_mode)) == ("pool%3alab.lock", 0o600)


def test_the_file_stays_and_names_nobody_when_free(home: SkyHome, locks: Locks) -> None:
    """Lock files are never deleted."""
    with locks.hold("x", operation="launch"):
        assert locks.holder("x") is not None
    assert locks.holder("x") is None
    assert [file.name for file in home.locks.iterdir()] == ["x.lock"]


def test_a_lock_file_that_was_removed_is_made_anew(home: SkyHome, locks: Locks) -> None:
    """Somebody who clears the folder does not break what comes after."""
    with locks.hold("x", operation="launch"):
        pass
    (home.locks / "x.lock").unlink()
    with locks.hold("x", operation="launch"), pytest.raises(LockTimeout):
        with Locks(home).hold("x", operation="other", timeout_s=0):
            pass


def test_a_home_that_cannot_be_used_is_a_state_error(tmp_path: Path) -> None:
    """It says which path."""
    (tmp_path / "home").write_text("a file")
    with pytest.raises(StateError, match="cannot lock"):
        with Locks(SkyHome(tmp_path / "home")).hold("x", operation="launch", timeout_s=0):
            pass


@pytest.mark.parametrize(
    ("scope", "name"),
    [
        ("cluster:train", "cluster%3atrain.lock"),
        ("cluster:Train", "cluster%3a%54rain.lock"),
        ("a/b", "a%2fb.lock"),
        ("../x", "..%2fx.lock"),
        ("%2f", "%252f.lock"),
        ("ü", "%c3%bc.lock"),
    ],
)
def test_scopes_become_file_names(scope: str, name: str) -> None:
    """Every byte that is not plain is written as %xx, capitals too."""
    assert lock_file_name(scope) == name


def test_the_empty_scope_is_refused() -> None:
    """It would name nothing."""
    with pytest.raises(ValueError, match="scope"):
        lock_file_name("")


def test_importing_does_not_import_portalocker() -> None:
    """It is loaded with the first lock."""
    code = "import sys, skylib.locks, skylib.state.sqlite; print({'portalocker', 'sqlite_utils'} & set(sys.modules))"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
