"""The wheelhouse: what fits a machine, and wheels that are there whole, once, or not at all."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from skylib.errors import PreflightError, StagingError
from skylib.locks import Locks
from skylib.models.node import NodeFacts
from skylib.paths import SkyHome
from skylib.runtime.lock import Lock, Pin
from skylib.runtime.pip import pip_environment
from skylib.runtime.wheelhouse import Platform, Wheelhouse

PYTHON = (3, 11, 7)
PLATFORM = Platform(arch="x86_64", glibc=28)
FACTS = NodeFacts(
    os="Linux",
    arch="x86_64",
    libc="glibc 2.36",
    home="/home/me",
    user="me",
    uid=1000,
    hostname="node1",
    cpus=2,
    memory_gib=4.0,
    disk_free_gib=50.0,
    home_file_system="ext4",
)


def make_wheel(
    folder: Path, name: str, version: str, *, text: str = "", tag: str = "py3-none-any", python: str = ">=3"
) -> Pin:
    """A real wheel with one module, and the pin that a list would have for it."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": text,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Python: {python}\n",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    rows = []
    for path, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest()).rstrip(b"=").decode()
        rows.append(f"{path},sha256={digest},{len(content.encode())}\n")
    files[f"{info}/RECORD"] = "".join([*rows, f"{info}/RECORD,,\n"])
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(target, "w") as archive:
        for path, content in files.items():
            archive.writestr(path, content)
    return Pin(name=name, version=version, hashes=(f"sha256:{hashlib.sha256(target.read_bytes()).hexdigest()}",))


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is pip's only source."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


class Held:
    """Real locks of a home; counts how often one was taken."""

    def __init__(self, home: SkyHome) -> None:
        self.locks = Locks(home)
        self.count = 0

    @contextlib.contextmanager
    def __call__(self, scope: str) -> Iterator[None]:
        with self.locks.hold(scope, operation="test", timeout_s=120, owner=object()):
            self.count += 1
            yield


@pytest.fixture
def home(tmp_path: Path) -> SkyHome:
    return SkyHome(tmp_path / "sky")


def leftovers(home: SkyHome) -> list[str]:
    """What lies about among the wheels and is no finished directory."""
    return [str(path) for path in (home.runtime / "wheels").rglob(".*")]


def test_wheels_are_downloaded_once_and_listed_with_their_hashes(index: Path, home: SkyHome) -> None:
    """The second time nothing is locked or run; the listing has exactly the hashes of the files."""
    pins = (make_wheel(index, "aaa", "1.0"), make_wheel(index, "bbb", "2.0", tag="cp311-cp311-manylinux_2_17_x86_64"))
    hold = Held(home)
    house = Wheelhouse(home, hold=hold)
    wheels = house.wheels(Lock(pins=pins), PLATFORM, PYTHON)
    assert [path.name.partition("-")[0] for path in wheels.files] == ["aaa", "bbb"]
    assert wheels.listing.read_text() == "".join(f"{pin.requirement()}\n" for pin in pins)
    assert wheels.directory.name == "manylinux_2_28_x86_64-cp311"
    assert house.wheels(Lock(pins=pins), PLATFORM, PYTHON) == wheels
    assert hold.count == 1
    assert leftovers(home) == []


def test_a_wheel_that_the_list_does_not_know_is_refused(index: Path, home: SkyHome) -> None:
    """Another file under the same name and version is StagingError, and nothing stays."""
    pin = make_wheel(index, "aaa", "1.0")
    make_wheel(index, "aaa", "1.0", text="evil = True")
    with pytest.raises(StagingError, match="could not get the runtime's packages") as caught:
        Wheelhouse(home, hold=Held(home)).wheels(Lock(pins=(pin,)), PLATFORM, PYTHON)
    assert "hash" in str(caught.value.evidence).lower()
    assert list(home.runtime.rglob("*.whl")) == []
    assert leftovers(home) == []


def test_an_index_that_cannot_be_reached_is_told(home: SkyHome, monkeypatch: pytest.MonkeyPatch) -> None:
    """No way to the packages: StagingError that may be retried, with pip's own words and what to check."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    pin = Pin(name="aaa", version="1.0", hashes=("sha256:" + "0" * 64,))
    with pytest.raises(StagingError, match="manylinux_2_28_x86_64, Python 3.11") as caught:
        Wheelhouse(home, hold=Held(home)).wheels(Lock(pins=(pin,)), PLATFORM, PYTHON)
    assert "aaa" in str(caught.value.evidence)
    assert caught.value.retryable
    assert "PIP_INDEX_URL" in str(caught.value.hint)


def test_a_platform_without_a_wheel_is_told(index: Path, home: SkyHome) -> None:
    """A wheel for a newer C library is not taken for an older host."""
    pin = make_wheel(index, "aaa", "1.0", tag="cp311-cp311-manylinux_2_34_x86_64")
    with pytest.raises(StagingError, match="could not get"):
        Wheelhouse(home, hold=Held(home)).wheels(Lock(pins=(pin,)), PLATFORM, PYTHON)


def test_a_package_that_refuses_the_first_release_of_a_python_is_no_obstacle(index: Path, home: SkyHome) -> None:
    """pip is told the whole version: a package may refuse 3.11.0, which a bare 3.11 would mean to pip."""
    pin = make_wheel(index, "aaa", "1.0", python=">=3.8,!=3.11.0")
    assert Wheelhouse(home, hold=Held(home)).wheels(Lock(pins=(pin,)), PLATFORM, PYTHON).files


def test_many_at_once_download_once(index: Path, home: SkyHome) -> None:
    """Eight that want the same wheels get the same directory, made by one of them."""
    lock = Lock(pins=(make_wheel(index, "aaa", "1.0"),))
    found = []
    made: list[str] = []

    def want() -> None:
        house = Wheelhouse(home, hold=Held(home), events=lambda event: made.append(event.step + event.phase.value))
        found.append(house.wheels(lock, PLATFORM, PYTHON))

    threads = [threading.Thread(target=want) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 8
    assert len({wheels.directory for wheels in found}) == 1
    assert made.count("runtime.wheelsfinished") == 1


def test_what_a_crash_left_is_cleared_and_made_again(index: Path, home: SkyHome) -> None:
    """A directory without its listing, and one beside it, are no wheels."""
    lock = Lock(pins=(make_wheel(index, "aaa", "1.0"),))
    house = Wheelhouse(home, hold=Held(home))
    final = house.wheels(lock, PLATFORM, PYTHON).directory
    (final / "wheels.txt").unlink()
    half = final.parent / f".{final.name}.abc.tmp"
    half.mkdir()
    (half / "aaa.whl").write_bytes(b"half")
    wheels = house.wheels(lock, PLATFORM, PYTHON)
    assert wheels.listing.is_file()
    assert leftovers(home) == []


def test_a_disk_that_cannot_be_written_is_told(index: Path, home: SkyHome) -> None:
    """A file where the folder belongs is StagingError with the path."""
    home.root.mkdir()
    home.runtime.write_text("in the way")
    with pytest.raises(StagingError, match="could not write"):
        Wheelhouse(home, hold=contextlib.nullcontext).wheels(Lock(pins=(make_wheel(index, "a", "1"),)), PLATFORM, PYTHON)


@pytest.mark.parametrize(
    ("arch", "libc", "name"),
    [
        ("x86_64", "glibc 2.17", "manylinux_2_17_x86_64"),
        ("x86_64", "glibc 2.31", "manylinux_2_28_x86_64"),
        ("amd64", "glibc 2.36", "manylinux_2_34_x86_64"),
        ("aarch64", "glibc 2.39", "manylinux_2_34_aarch64"),
        ("arm64", "glibc 2.28", "manylinux_2_28_aarch64"),
    ],
)
def test_a_host_takes_all_older_wheels(arch: str, libc: str, name: str) -> None:
    """The newest tag is one that the host's glibc has; all older ones follow, the old names too."""
    platform = Platform.of(attrs.evolve(FACTS, arch=arch, libc=libc))
    tags = platform.tags()
    assert platform.name == tags[0] == name
    assert f"manylinux_2_17_{platform.arch}" in tags
    assert f"manylinux2014_{platform.arch}" in tags
    assert f"manylinux1_{platform.arch}" in tags
    assert len(tags) == len(set(tags))


@pytest.mark.parametrize(
    ("os", "arch", "libc", "said"),
    [
        ("Linux", "x86_64", "musl 1.2.4", "musl"),
        ("Linux", "x86_64", "glibc 2.12", "needs glibc 2.17"),
        ("Linux", "x86_64", "", "unknown C library"),
        ("Linux", "ppc64le", "glibc 2.36", "no wheels for this machine"),
        ("Darwin", "arm64", "", "no wheels for this machine"),
    ],
)
def test_a_host_that_no_wheel_fits_is_told(os: str, arch: str, libc: str, said: str) -> None:
    """PreflightError that says what the host is."""
    with pytest.raises(PreflightError, match=said) as caught:
        Platform.of(attrs.evolve(FACTS, os=os, arch=arch, libc=libc))
    assert caught.value.host == "node1"


def test_pip_learns_of_an_index_that_only_uv_knew() -> None:
    """uv's settings reach pip, unless pip has its own; names of indexes are left out."""
    env = pip_environment(
        {"UV_INDEX_URL": "https://a/simple", "UV_INDEX": "corp=https://b/simple https://c/?x=1", "PIP_USER": "1"}
    )
    assert env["PIP_INDEX_URL"] == "https://a/simple"
    assert env["PIP_EXTRA_INDEX_URL"] == "https://b/simple https://c/?x=1"
    assert "PIP_USER" not in env
    assert pip_environment({"UV_INDEX_URL": "https://a", "PIP_INDEX_URL": "https://own"})["PIP_INDEX_URL"] == "https://own"
