"""Packages made ahead: which platforms and Pythons there are, what is made, what is kept, what is made anew."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skylib.client import Client
from skylib.errors import InvalidSpecError, StagingError
from skylib.models.node import NodeFacts
from skylib.paths import SkyHome
from skylib.runtime.environment import first_choice
from skylib.runtime.lock import UV_LOCK, Lock, load_lock
from skylib.runtime.prefetch import list_for, platform_named, prefetch, python_named
from skylib.runtime.wheelhouse import Platform, Wheelhouse
from skylib.transport.scripted import ScriptedTransport
from tests.runtime_fixture import shared_wheels
from tests.unit.runtime.test_environment import FACTS, P38, P310, P311
from tests.unit.runtime.test_wheelhouse import Held, home, index, leftovers, make_wheel

__all__ = ["home", "index"]  # fixtures
HERE = Platform(arch="x86_64", glibc=28)
PYTHON = (3, 11, 18)


@pytest.mark.parametrize(
    ("name", "platform"),
    [
        ("linux-x86_64", Platform(arch="x86_64", glibc=17)),
        ("linux/amd64", Platform(arch="x86_64", glibc=17)),
        ("Linux_aarch64", Platform(arch="aarch64", glibc=17)),
        ("linux-arm64", Platform(arch="aarch64", glibc=17)),
        ("manylinux2014_x86_64", Platform(arch="x86_64", glibc=17)),
        ("manylinux_2_17_x86_64", Platform(arch="x86_64", glibc=17)),
        ("manylinux_2_28_aarch64", Platform(arch="aarch64", glibc=28)),
        ("manylinux_2_31_x86_64", Platform(arch="x86_64", glibc=28)),
        ("manylinux_2_40_x86_64", Platform(arch="x86_64", glibc=34)),
    ],
)
def test_a_platform_has_the_names_that_wheels_and_people_give_it(name: str, platform: Platform) -> None:
    """A name says architecture and the oldest glibc; without a glibc it is any that Ray runs on."""
    assert platform_named(name) == platform


@pytest.mark.parametrize(
    "name",
    ["", "linux", "x86_64", "linux-ppc64le", "macosx_11_0_arm64", "win_amd64", "musllinux_1_2_x86_64", "any",
     "manylinux1_x86_64", "manylinux_2_12_x86_64", "manylinux_2__x86_64", "linux-x86_64-gnu", 3, b"linux-x86_64"],
)  # fmt: skip
def test_a_platform_without_packages_is_refused_by_name(name: str, tmp_path: Path) -> None:
    """InvalidSpecError names the field and those that there are; nothing is made under the home."""
    with pytest.raises(InvalidSpecError, match="no packages for the platform") as caught:
        Client(tmp_path / "sky").runtime.prefetch(name, "3.11")
    assert vars(caught.value)["field"] == "platform"
    assert "linux-x86_64" in str(caught.value.hint)
    assert not (tmp_path / "sky").exists()


@pytest.mark.parametrize("version", ["", "3", "3.7", "3.12", "2.7", "3.11.x", "cp311", "3.110", 3.11])
def test_a_python_that_nodes_cannot_use_is_refused(version: str, tmp_path: Path) -> None:
    """InvalidSpecError names the field and the versions that there are."""
    with pytest.raises(InvalidSpecError, match="no use for Python") as caught:
        Client(tmp_path / "sky").runtime.prefetch("linux-x86_64", version)
    assert vars(caught.value)["field"] == "python"
    assert '"3.11"' in str(caught.value.hint)


@given(st.integers(17, 60), st.sampled_from(["x86_64", "aarch64"]))
def test_what_is_made_for_a_host_is_found_by_it(minor: int, arch: str) -> None:
    """The wheels for a host's own glibc, and those for any older one, are among those that it is served from."""
    host = Platform.of(attrs.evolve(FACTS, libc=f"glibc 2.{minor}", arch=arch))
    for older in range(17, minor + 1):
        made = platform_named(f"manylinux_2_{older}_{arch}")
        assert made in host.older()
        assert set(made.tags()) <= set(host.tags())
    assert platform_named(f"linux-{arch}") in host.older()


@pytest.mark.parametrize("seen", [P38, P310, P311, attrs.evolve(P311, version=(3, 11, 0))])
@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
def test_the_list_of_a_version_is_that_of_nodes_with_it(seen: object, arch: str) -> None:
    """What "3.10" is made from is exactly what a node with any release of 3.10 asks for."""
    facts: NodeFacts = attrs.evolve(FACTS, pythons=(seen,), arch=arch)
    lock, version = first_choice(ScriptedTransport("node1", []), facts)
    named = python_named(f"{version[0]}.{version[1]}")
    assert list_for(platform_named(f"linux-{arch}"), named) == lock


def test_what_is_here_is_not_made_again(index: Path, home: SkyHome) -> None:
    """The second time the same files come back, nothing made, and the index is not needed any more."""
    lock = Lock(pins=(make_wheel(index, "ray", "1.0"), make_wheel(index, "bbb", "2.0")))
    house = Wheelhouse(home, hold=Held(home))
    first = prefetch(house, HERE, lock, PYTHON)
    for path in index.iterdir():
        path.unlink()
    again = prefetch(house, HERE, lock, PYTHON)
    assert (first.made, again) == (True, attrs.evolve(first, made=False))
    names = [path.name.partition("-")[0] for path in first.files]
    assert names == ["bbb", "ray", "wheels.txt", "uv"]
    assert first.bytes == sum(path.stat().st_size for path in first.files)
    assert (first.platform, first.python, first.ray_version) == ("manylinux_2_28_x86_64", "3.11", "1.0")


@pytest.mark.parametrize("harm", ["cut", "changed", "gone", "more", "unlisted"])
def test_damaged_wheels_are_made_anew(harm: str, index: Path, home: SkyHome) -> None:
    """A file that is not what its listing says, is missing or is too many: the directory is whole again afterwards."""
    lock = Lock(pins=(make_wheel(index, "ray", "1.0"),))
    house = Wheelhouse(home, hold=Held(home))
    whole = prefetch(house, HERE, lock, PYTHON)
    before = {path.name: path.read_bytes() for path in whole.directory.iterdir()}
    wheel = whole.files[0]
    content = wheel.read_bytes()
    if harm == "cut":
        wheel.write_bytes(content[:-1])
    elif harm == "changed":
        wheel.write_bytes(content[:-1] + b"?")
    elif harm == "gone":
        wheel.unlink()
    elif harm == "more":
        (whole.directory / "evil-1.0-py3-none-any.whl").write_bytes(content)
    else:
        (whole.directory / "wheels.txt").write_bytes(b"\xff")
    assert prefetch(house, HERE, lock, PYTHON).made
    assert {path.name: path.read_bytes() for path in whole.directory.iterdir()} == before
    assert leftovers(home) == []


def test_wheels_for_an_older_c_library_serve_a_newer_one(index: Path, home: SkyHome) -> None:
    """What was made for every Linux host is used for one with glibc 2.34, and not the other way round."""
    lock = Lock(pins=(make_wheel(index, "ray", "1.0"),))
    house = Wheelhouse(home, hold=Held(home))
    oldest = prefetch(house, platform_named("linux-x86_64"), lock, PYTHON)
    newest = platform_named("manylinux_2_34_x86_64")
    assert house.wheels(lock, newest, (3, 11, 2)).directory == oldest.directory
    assert prefetch(house, newest, lock, PYTHON).platform == "manylinux_2_17_x86_64"
    assert house.wheels(lock, platform_named("linux-aarch64"), PYTHON).directory != oldest.directory


def test_a_failure_leaves_what_was_there(index: Path, home: SkyHome) -> None:
    """Damaged wheels and no index: StagingError, and what is left of them stays until it can be replaced."""
    lock = Lock(pins=(make_wheel(index, "ray", "1.0"), make_wheel(index, "bbb", "2.0")))
    house = Wheelhouse(home, hold=Held(home))
    whole = prefetch(house, HERE, lock, PYTHON)
    whole.files[0].write_bytes(b"")
    for path in index.iterdir():
        path.unlink()
    with pytest.raises(StagingError, match="could not get the runtime's packages"):
        prefetch(house, HERE, lock, PYTHON)
    assert all(path.exists() for path in whole.files)
    assert leftovers(home) == []


@pytest.mark.ray
def test_another_architectures_installer_is_checked(home: SkyHome) -> None:
    """uv for the other architecture is a real program for it; one that was damaged is fetched again, and only then."""
    events: list[str] = []
    house = Wheelhouse(home, hold=Held(home), events=lambda event: events.append(f"{event.step} {event.phase.value}"))
    (home.runtime).mkdir(parents=True)
    (home.runtime / "wheels").symlink_to(shared_wheels())
    mine = Platform.named("linux-x86_64")
    assert mine is not None
    other = platform_named("linux-aarch64" if mine.is_this_machine() else "linux-x86_64")
    binary = house.uv(other, check=True)
    assert binary.read_bytes()[:4] == b"\x7fELF"
    assert load_lock(UV_LOCK).digest[:16] in str(binary)
    del events[:]
    assert house.uv(other, check=True) == binary
    assert events == []


@pytest.mark.ray
def test_a_client_makes_this_machines_packages_ahead(tmp_path: Path) -> None:
    """Without arguments: what a local cluster takes, with the hashes of the list, told as an operation of its own."""
    (tmp_path / "sky" / "runtime").mkdir(parents=True)
    (tmp_path / "sky").chmod(0o700)
    (tmp_path / "sky" / "runtime" / "wheels").symlink_to(shared_wheels())
    events: list[str] = []
    with Client(tmp_path / "sky", events=lambda event: events.append(f"{event.step} {event.phase.value}")) as client:
        found = client.runtime.prefetch()
        assert client.runtime.prefetch() == attrs.evolve(found, made=False)
    assert (events[0], events[-1]) == ("prefetch started", "prefetch finished")
    assert any(path.name.startswith("ray-") for path in found.files)
    assert found.files[-1].name == "uv"
    assert found.bytes > 50_000_000
