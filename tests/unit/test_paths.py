"""A home's layout, and how files and directories in it are made."""

from __future__ import annotations

import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from skylib.paths import SkyHome, default_home, ensure_private_dir, write_private

LAYOUT = {
    "state_db": "state.db",
    "config": "config.yaml",
    "ssh_node_pools": "ssh_node_pools.yaml",
    "user_hash": "user_hash",
    "known_hosts": "known_hosts",
    "locks": "locks",
    "logs": "logs",
    "runtime": "runtime",
    "catalogs": "catalogs/v8",
    "job_logs": "job_logs",
}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_default_home_is_dot_sky(isolated_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without $SKY_HOME, or with an empty one, the home is ~/.sky."""
    monkeypatch.delenv("SKY_HOME")
    assert default_home() == isolated_home / ".sky"
    monkeypatch.setenv("SKY_HOME", "")
    assert default_home() == isolated_home / ".sky"


def test_sky_home_is_obeyed(isolated_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """$SKY_HOME names another home; a tilde in it is the account's."""
    monkeypatch.setenv("SKY_HOME", "~/elsewhere")
    assert default_home() == isolated_home / "elsewhere"


def test_the_layout_is_the_documented_one(tmp_path: Path) -> None:
    """Each part of a home has its fixed place below the root."""
    home = SkyHome(tmp_path)
    assert {name: str(getattr(home, name).relative_to(tmp_path)) for name in LAYOUT} == LAYOUT
    assert home.staged_mounts("ab12") == tmp_path / "api_server/clients/ab12/file_mounts"
    assert home.local_node("train") == tmp_path / "local/train"


def test_a_home_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, isolated_home: Path) -> None:
    """A relative root counts from where it was given, and stays there when the process moves; a tilde is expanded."""
    monkeypatch.chdir(tmp_path)
    home = SkyHome("here")
    monkeypatch.chdir("/")
    assert home.root == tmp_path / "here"
    assert SkyHome("~/x").root == isolated_home / "x"
    assert SkyHome(tmp_path / "here") == home


def test_a_layout_makes_nothing(tmp_path: Path) -> None:
    """Asking for every path of a home leaves the disk as it was."""
    home = SkyHome(tmp_path / "home")
    for name in LAYOUT:
        getattr(home, name)
    home.staged_mounts("ab12")
    home.local_node("train")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mask", [0o022, 0o000, 0o077])
def test_directories_are_private(tmp_path: Path, mask: int) -> None:
    """Every directory that is made is 0700, parents as well, whatever the umask."""
    before = os.umask(mask)
    try:
        made = ensure_private_dir(tmp_path / "a" / "b" / "c")
    finally:
        os.umask(before)
    assert made == tmp_path / "a" / "b" / "c"
    assert [mode(path) for path in (tmp_path / "a", tmp_path / "a/b", tmp_path / "a/b/c")] == [0o700] * 3


def test_an_existing_directory_is_left_alone(tmp_path: Path) -> None:
    """A directory that was there keeps its mode."""
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o755)
    ensure_private_dir(tmp_path / "open" / "inner")
    ensure_private_dir(tmp_path / "open")
    assert (mode(tmp_path / "open"), mode(tmp_path / "open/inner")) == (0o755, 0o700)


def test_many_may_make_the_same_directory(tmp_path: Path) -> None:
    """Threads that make one path at the same time all succeed."""
    together = threading.Barrier(8)

    def make(number: int) -> Path:
        together.wait(30)
        return ensure_private_dir(tmp_path / "a" / "b" / "c" / "d")

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(make, range(8))) == {tmp_path / "a/b/c/d"}


@pytest.mark.parametrize("mask", [0o022, 0o000, 0o077])
def test_files_are_private(tmp_path: Path, mask: int) -> None:
    """A file that is written is 0600, new or replaced, and its directory is made."""
    before = os.umask(mask)
    try:
        write_private(tmp_path / "deep" / "file", b"one")
        (tmp_path / "deep" / "file").chmod(0o644)
        write_private(tmp_path / "deep" / "file", b"two")
    finally:
        os.umask(before)
    assert (tmp_path / "deep" / "file").read_bytes() == b"two"
    assert mode(tmp_path / "deep" / "file") == 0o600
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["file"]


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    """While one thread replaces a file again and again, a reader sees one whole content or the other."""
    path = tmp_path / "file"
    contents = {b"a" * 100_000, b"b" * 200_000}
    write_private(path, b"a" * 100_000)
    stop = threading.Event()
    seen: set[bytes] = set()

    def read() -> None:
        while not stop.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(20):
            for content in sorted(contents):
                write_private(path, content)
    finally:
        stop.set()
        reader.join(30)
    assert seen <= contents


def test_threads_may_write_one_file(tmp_path: Path) -> None:
    """Writers of one process at the same time all succeed; the file has one of the contents whole, nothing is left over."""
    path = tmp_path / "file"
    together = threading.Barrier(8)
    contents = [bytes([65 + number]) * 50_000 for number in range(8)]

    def write(content: bytes) -> None:
        together.wait(30)
        for _ in range(5):
            write_private(path, content)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, contents))
    assert path.read_bytes() in contents
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    """When the new content cannot be put in place, the error comes out and nothing is left beside."""
    (tmp_path / "file").mkdir()
    with pytest.raises(OSError, match="file"):
        write_private(tmp_path / "file", b"content")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
