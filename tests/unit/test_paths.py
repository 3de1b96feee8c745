"""A home's layout, and how files and directories in it are made."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from skylib.errors import ConfigError, InvalidSpecError, StateError
from skylib.paths import SkyHome, default_home, ensure_private_dir, read_small, secure_home, write_private
from tests.sftp_mount import sftp_folder

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


@pytest.mark.parametrize("configured", ["", "~/elsewhere"])
def test_an_empty_home_variable_is_not_the_root(configured: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The account's own directory is meant then."""
    monkeypatch.setenv("HOME", "")
    monkeypatch.setenv("SKY_HOME", configured)
    own = Path(pwd.getpwuid(os.getuid()).pw_dir)
    assert default_home() == own / (configured.removeprefix("~/") or ".sky")


@pytest.mark.parametrize("root", ["", "a\0b", 5, b"x", [], "~nobody-of-that-name/x"], ids=repr)
def test_what_is_no_path_is_no_home(root: object) -> None:
    """An empty text above all: it would be the current directory."""
    with pytest.raises(InvalidSpecError) as caught:
        SkyHome(root)  # type: ignore[arg-type]
    assert caught.value.field == "home"


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


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    """What it leads to is written, be it there or not."""
    (tmp_path / "link").symlink_to(tmp_path / "dotfiles" / "file")
    for content in (b"one", b"two"):
        write_private(tmp_path / "link", content)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "dotfiles" / "file").read_bytes() == b"two"


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
    with pytest.raises(StateError, match="cannot write .*file"):
        write_private(tmp_path / "file", b"content")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_is_told_as_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With the place to make room at; the old content stays."""
    write_private(tmp_path / "file", b"old")
    full = Path("/dev/full")

    def fsync(descriptor: int) -> None:
        full.write_bytes(b"x")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(StateError, match="no room to write") as caught:
        write_private(tmp_path / "file", b"new")
    assert f"df {tmp_path}" in str(caught.value.hint)
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_small_file_is_read(tmp_path: Path) -> None:
    """None stands for one that is not there."""
    (tmp_path / "file").write_bytes(b"a: 1")
    assert read_small(tmp_path / "file") == b"a: 1"
    assert read_small(tmp_path / "none") is None


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    """A FIFO that nobody writes to, a device, a directory."""
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero"), tmp_path):
        with pytest.raises(ConfigError, match="no regular file"):
            read_small(path)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    """More than 1 MiB was not written by a person."""
    (tmp_path / "file").write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(ConfigError, match="larger than 1 MiB"):
        read_small(tmp_path / "file")


# Who can reach a home.

FOREIGN = 54321
OURS = ("state.db", "state.db-wal", "state.db-shm", "user_hash", "known_hosts", "config.yaml", "ssh_node_pools.yaml")
FOLDERS = ("locks", "logs", "runtime", "catalogs", "job_logs", "api_server", "local")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another account")


@pytest.fixture
def wide(tmp_path: Path) -> SkyHome:
    """A home with all there can be in it, open to everybody."""
    home = SkyHome(tmp_path / "home")
    home.root.mkdir(mode=0o755)
    for name in FOLDERS:
        (home.root / name).mkdir(mode=0o775)
    for name in OURS:
        (home.root / name).touch(mode=0o644)
        (home.root / name).chmod(0o664)
    return home


def test_a_home_that_is_not_there_is_private_when_it_comes(tmp_path: Path) -> None:
    """Looking makes nothing."""
    secure_home(SkyHome(tmp_path / "none"))
    assert list(tmp_path.iterdir()) == []


def test_wide_modes_are_narrowed(wide: SkyHome) -> None:
    """The home and all of ours directly in it; the owner's own rights stay as they are."""
    wide.known_hosts.chmod(0o444)
    secure_home(wide)
    assert mode(wide.root) == 0o700
    assert {mode(wide.root / name) for name in FOLDERS} == {0o700}
    assert {name: mode(wide.root / name) for name in OURS} == {**dict.fromkeys(OURS, 0o600), "known_hosts": 0o400}


@pytest.mark.parametrize("name", ["data.csv", "known_hosts.old", "src"])
def test_a_directory_of_other_things_is_no_home(tmp_path: Path, name: str) -> None:
    """Nothing of it is changed: others may have to enter it."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o755)
    (tmp_path / "shared" / name).mkdir(mode=0o755)
    (tmp_path / "shared" / "config.yaml").touch()
    with pytest.raises(StateError, match="holds other things") as caught:
        secure_home(SkyHome(tmp_path / "shared"))
    assert "SKY_HOME=" in str(caught.value.hint)
    assert mode(tmp_path / "shared") == 0o755


@pytest.mark.parametrize("name", ["state.db", "config.yaml", "locks", "user_hash", "ssh_node_pools.yaml", None])
def test_what_is_a_home_by_its_content_is_narrowed(tmp_path: Path, name: str | None) -> None:
    """So is one that has nothing in it yet."""
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o755)
    if name == "locks":
        (home / name).mkdir()
    elif name:
        (home / name).touch()
    secure_home(SkyHome(home))
    assert mode(home) == 0o700


def test_dot_sky_is_a_home_by_its_name(isolated_home: Path) -> None:
    """Whatever other versions of SkyPilot keep there."""
    (isolated_home / ".sky" / "generated").mkdir(parents=True)
    (isolated_home / ".sky").chmod(0o755)
    secure_home(SkyHome(isolated_home / ".sky"))
    assert mode(isolated_home / ".sky") == 0o700


def test_a_directory_for_everybody_is_no_home(tmp_path: Path) -> None:
    """One with the sticky bit, be it a home by its content, and the root of all."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp").chmod(0o1777)
    (tmp_path / "tmp" / "state.db").touch()
    for root in (tmp_path / "tmp", Path("/")):
        before = mode(root)
        with pytest.raises(StateError, match="for everybody"):
            secure_home(SkyHome(root))
        assert mode(root) == before


@needs_root
def test_no_command_gives_a_foreign_directory_away(tmp_path: Path) -> None:
    """A directory of another account that is no home stays theirs."""
    (tmp_path / "theirs" / "work").mkdir(parents=True)
    os.chown(tmp_path / "theirs", FOREIGN, -1)
    with pytest.raises(StateError, match="belongs to") as caught:
        secure_home(SkyHome(tmp_path / "theirs"))
    assert "chown" not in str(caught.value.hint)


@pytest.mark.parametrize("name", ["state.db", "config.yaml", "locks", "user_hash", "ssh_node_pools.yaml"])
@pytest.mark.parametrize("kind", ["fifo", "other"])
def test_what_is_of_the_wrong_kind_is_refused(wide: SkyHome, name: str, kind: str) -> None:
    """A file where a directory belongs, or the other way round; the hint's command makes room."""
    path = wide.root / name
    path.rename(wide.root / "before")
    if kind == "fifo":
        os.mkfifo(path)
    elif name == "locks":
        path.touch()
    else:
        path.mkdir()
    with pytest.raises(StateError, match=f"{name} is no") as caught:
        secure_home(wide)
    subprocess.run(str(caught.value.hint), shell=True, check=True)
    secure_home(wide)


@needs_root
def test_a_store_that_its_owner_may_not_read_is_told() -> None:
    """The hint's command opens it."""
    reader = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        (reader / "state.db").touch()
        (reader / "state.db").chmod(0)
        for path in (reader, reader / "state.db"):
            os.chown(path, FOREIGN, -1)
        os.seteuid(FOREIGN)
        try:
            with pytest.raises(StateError, match="cannot be read") as caught:
                secure_home(SkyHome(reader))
        finally:
            os.seteuid(0)
        assert str(caught.value.hint) == f"chmod u+rw {reader / 'state.db'}"
    finally:
        shutil.rmtree(reader)


def test_a_device_in_the_place_of_the_home_stays_where_it_is() -> None:
    """No command that would move it."""
    with pytest.raises(StateError, match="not a directory") as caught:
        secure_home(SkyHome("/dev/null"))
    assert "mv" not in str(caught.value.hint)


def test_a_link_to_itself_is_refused(wide: SkyHome) -> None:
    """As one that leads to nothing."""
    wide.config.unlink()
    wide.config.symlink_to(wide.config)
    with pytest.raises(StateError, match="a link to nothing") as caught:
        secure_home(wide)
    assert str(caught.value.hint) == f"rm {wide.config}"


def test_what_is_not_ours_keeps_its_mode(wide: SkyHome) -> None:
    """A person's file in the home, files deeper down, and what links lead to."""
    elsewhere = wide.root.parent / "dotfiles.yaml"
    elsewhere.touch()
    elsewhere.chmod(0o644)
    wide.config.unlink()
    wide.config.symlink_to(elsewhere)
    (wide.root / "notes.txt").touch(mode=0o644)
    (wide.logs / "old.jsonl").touch(mode=0o644)
    secure_home(wide)
    assert [mode(path) for path in (elsewhere, wide.root / "notes.txt", wide.logs / "old.jsonl")] == [0o644] * 3


@needs_root
@pytest.mark.parametrize("name", ["", *OURS, *FOLDERS])
def test_what_belongs_to_another_account_is_refused(wide: SkyHome, name: str) -> None:
    """With the command that gives it back; nothing of it is changed."""
    path = wide.root / name
    os.chown(path, FOREIGN, -1)
    before = mode(path)
    with pytest.raises(StateError, match=f"belongs to account {FOREIGN}, not to root") as caught:
        secure_home(wide)
    chown = "chown -hR" if path.is_dir() else "chown -h"
    assert f"{chown} 0 {path}" in str(caught.value.hint)
    assert mode(path) == before
    command = str(caught.value.hint).split(", or")[0]
    subprocess.run(command, shell=True, check=True)
    secure_home(wide)


@pytest.mark.parametrize("name", ["state.db", "state.db-wal", "locks", "known_hosts", "user_hash"])
def test_a_link_in_the_place_of_what_must_be_here_is_refused(wide: SkyHome, name: str) -> None:
    """The hint's command puts the thing itself there."""
    path, elsewhere = wide.root / name, wide.root.parent / "else where"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    with pytest.raises(StateError, match="is a link to") as caught:
        secure_home(wide)
    subprocess.run(str(caught.value.hint), shell=True, check=True)
    assert not path.is_symlink()
    assert path.exists()
    secure_home(wide)


def test_a_link_in_the_place_of_the_home_is_refused(wide: SkyHome) -> None:
    """The hint's setting is the way in."""
    link = wide.root.parent / "link"
    link.symlink_to(wide.root)
    with pytest.raises(StateError, match="is a link") as caught:
        secure_home(SkyHome(link))
    assert f"SKY_HOME={wide.root}" in str(caught.value.hint)
    secure_home(SkyHome(str(caught.value.hint).partition("SKY_HOME=")[2]))


def test_a_file_in_the_place_of_the_home_is_refused(tmp_path: Path) -> None:
    """The hint's command makes room."""
    (tmp_path / "home").touch()
    with pytest.raises(StateError, match="not a directory") as caught:
        secure_home(SkyHome(tmp_path / "home"))
    subprocess.run(str(caught.value.hint), shell=True, check=True)
    secure_home(SkyHome(tmp_path / "home"))
    assert (tmp_path / "home.old").exists()


@pytest.mark.parametrize("name", ["config.yaml", "ssh_node_pools.yaml", "logs", "runtime", "job_logs"])
def test_a_link_of_ours_to_what_is_ours_may_stand_for_some(wide: SkyHome, name: str) -> None:
    """Files that people write and keep elsewhere, folders for much data."""
    path, elsewhere = wide.root / name, wide.root.parent / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    secure_home(wide)


def test_a_link_to_nothing_is_refused(wide: SkyHome) -> None:
    """A configuration that was meant and is not read would be worse."""
    wide.config.unlink()
    wide.config.symlink_to(wide.root / "nowhere")
    with pytest.raises(StateError, match="a link to nothing"):
        secure_home(wide)


@needs_root
@pytest.mark.parametrize("what", ["link", "target"])
def test_a_link_that_another_account_has_a_hand_in_is_refused(wide: SkyHome, what: str) -> None:
    """Be the link theirs, or what it leads to."""
    elsewhere = wide.root.parent / "elsewhere.yaml"
    wide.config.rename(elsewhere)
    wide.config.symlink_to(elsewhere)
    os.chown(wide.config if what == "link" else elsewhere, FOREIGN, -1, follow_symlinks=False)
    with pytest.raises(StateError, match=f"belongs to account {FOREIGN}"):
        secure_home(wide)


def test_a_file_system_that_keeps_no_modes_is_refused(tmp_path: Path) -> None:
    """One that shows everything to everybody, whatever is set: the home cannot be private there."""
    with sftp_folder(tmp_path, options=",umask=000"):
        (tmp_path / "mounted" / "home").mkdir()
        with pytest.raises(StateError, match="open to other accounts") as caught:
            secure_home(SkyHome(tmp_path / "mounted" / "home"))
    assert "SKY_HOME=" in str(caught.value.hint)


def test_looking_is_quick(wide: SkyHome) -> None:
    """Under a millisecond, as the best of several says."""
    secure_home(wide)
    took = []
    for _ in range(20):
        began = time.perf_counter()
        secure_home(wide)
        took.append(time.perf_counter() - began)
    assert min(took) < 0.001
