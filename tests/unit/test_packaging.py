"""The wheel that a checkout builds: everything that runs, nothing that tests, and metadata that tell the truth."""

from __future__ import annotations

import configparser
import email
import email.message
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.embed.child import run_python

CHECKOUT = Path(__file__).resolve().parents[2]
SOURCES = ("setup.cfg", "setup.py", "README.rst", "LICENSE")
SKIPPED = shutil.ignore_patterns("__pycache__", "*.pyc", "*.egg-info")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of a copy of the checkout, tests and examples included there; no network and no isolation."""
    source, target = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        shutil.copy(CHECKOUT / name, source / name)
    for name in ("skylib", "tests", "examples"):
        shutil.copytree(CHECKOUT / name, source / name, ignore=SKIPPED)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    done = subprocess.run(
        [*command, "--disable-pip-version-check", "-w", str(target), str(source)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (built,) = target.iterdir()
    return built


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(archive.read(name))


def test_the_wheel_holds_every_file_of_the_package(names: set[str]) -> None:
    """All that lies under skylib/ is in the wheel, modules, agent and data alike, and nothing that does not."""
    there = {
        str(path.relative_to(CHECKOUT))
        for path in (CHECKOUT / "skylib").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }
    assert {name for name in names if ".dist-info/" not in name} == there


@pytest.mark.parametrize(
    "name",
    [
        "skylib/py.typed",
        "skylib/client.py",
        "skylib/agent/protocol.py",
        "skylib/agent/supervisor.py",
        "skylib/runtime/data/ray-2.9.3.txt",
    ],
)
def test_the_wheel_holds_what_would_be_missed_late(name: str, names: set[str]) -> None:
    """Type marker, agent and locked lists are not imported at once: that they are there is asserted by name."""
    assert name in names


def test_the_wheel_holds_nothing_else(names: set[str]) -> None:
    """No tests, no examples, no byte code; the licence is in the metadata."""
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"skylib"}
    assert [name for name in names if name.endswith(".pyc")] == []
    assert [name for name in names if name.endswith("LICENSE")] != []


def test_the_wheel_is_for_every_python(wheel: Path) -> None:
    """One pure wheel serves all Pythons and machines."""
    assert wheel.name.endswith("-py3-none-any.whl")


def test_the_metadata_are_those_of_setup_cfg(metadata: email.message.Message) -> None:
    """Name, Pythons, licence and description are what setup.cfg and README say."""
    assert (metadata["Name"], metadata["Requires-Python"]) == ("skylib", ">=3.10")
    assert "Apache-2.0" in (metadata["License"] or metadata["License-Expression"])
    assert metadata["Description-Content-Type"] == "text/x-rst"
    readme = (CHECKOUT / "README.rst").read_text(encoding="utf-8")
    assert str(metadata.get_payload()).strip() == readme.strip()


def test_only_the_agreed_packages_are_needed(metadata: email.message.Message) -> None:
    """The dependencies are few, and none is pinned so that it could break a host application."""
    needed = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    found = {line.split(">=")[0].strip() for line in needed}
    assert found == {"attrs", "pyyaml", "paramiko", "sqlite-utils", "portalocker", "ray", "uv"}
    assert [line for line in needed if "==" in line or "<" in line] == []


def test_providers_are_entry_points(wheel: Path) -> None:
    """Our own providers are announced where others announce theirs."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        parser = configparser.ConfigParser()
        parser.read_string(archive.read(name).decode())
    assert dict(parser["skylib.providers"]) == {
        "local": "skylib.providers.local:LocalProvider",
        "ssh": "skylib.providers.ssh_pool:SshPoolProvider",
    }


def test_the_wheel_works_without_the_checkout(wheel: Path, tmp_path: Path, isolated_home: Path) -> None:
    """Unpacked elsewhere, the package loads, finds its providers, and reads its own data files."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    program = f"""
import sys
sys.path[:] = [{str(tmp_path / "site")!r}] + [each for each in sys.path if each != {str(CHECKOUT)!r}]
import importlib.metadata, importlib.resources
import skylib
skylib.Client
points = importlib.metadata.distribution("skylib").entry_points.select(group="skylib.providers")
locked = importlib.resources.files("skylib.runtime").joinpath("data", "ray-2.9.3.txt").read_text()
answer = [
    skylib.__file__,
    importlib.metadata.version("skylib") == skylib.__version__,
    sorted(point.load().__name__ for point in points),
    "ray==2.9.3" in locked and "sha256:" in locked,
]
"""
    place = str(tmp_path / "site" / "skylib" / "__init__.py")
    assert run_python(program, home=isolated_home) == [place, True, ["LocalProvider", "SshPoolProvider"], True]
