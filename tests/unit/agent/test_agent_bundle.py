"""The agent as one file: the same bytes each time, for old Pythons too."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path

import pytest

from skylib.runtime.agent_bundle import build_bundle
from tests.ray.agent_harness import NodeFolders


def old_python() -> str:
    """A Python 3.8, where pyenv has one."""
    root = Path(os.environ.get("PYENV_ROOT", "/nonexistent")) / "versions"
    found = sorted(root.glob("3.8.*/bin/python"))
    if not found:
        pytest.skip("there is no Python 3.8 here to run the agent's bundle with")
    return str(found[-1])


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = tmp_path / "agent.pyz"
    path.write_bytes(build_bundle().data)
    return path


def test_the_same_sources_give_the_same_bytes() -> None:
    """So a node that has the digest has the agent."""
    first, second = build_bundle(), build_bundle()
    assert first == second
    assert first.sha256 == hashlib.sha256(first.data).hexdigest()


def test_it_holds_the_agent_and_nothing_else() -> None:
    """Sources of one package and a start, in Python 3.8."""
    with zipfile.ZipFile(BytesIO(build_bundle().data)) as archive:
        names = archive.namelist()
        for name in names:
            ast.parse(archive.read(name), name, feature_version=(3, 8))
    assert names == sorted(names)
    assert "skylib_agent/serve.py" in names
    assert all(name == "__main__.py" or name.startswith("skylib_agent/") for name in names)


@pytest.mark.parametrize("words", [[], ["no-such"], ["bridge"], ["end"]])
def test_a_command_line_that_means_nothing(bundle: Path, words: list[str]) -> None:
    """Usage on stderr, exit code 2."""
    done = subprocess.run([sys.executable, "-S", "-E", str(bundle), *words], capture_output=True, timeout=30, check=False)
    assert done.returncode == 2
    assert b"usage" in done.stderr


def test_a_bridge_to_nobody_says_so(bundle: Path, tmp_path: Path) -> None:
    """Exit code 3, with the path; on a Python of old."""
    argv = [old_python(), "-S", "-E", str(bundle), "bridge", "--socket", str(tmp_path / "no.sock")]
    done = subprocess.run(argv, capture_output=True, timeout=30, check=False)
    assert done.returncode == 3
    assert b"no agent listens on" in done.stderr


def test_end_on_a_python_of_old(tmp_path: Path) -> None:
    """It finds what carries the cluster's token, ends it, and prints one JSON line; the second time there is nothing."""
    folders = NodeFolders(tmp_path, count=1)
    config = folders.write()[0]
    environ = {**os.environ, "SKYLIB_CLUSTER_ID": folders.cluster_id}
    process = subprocess.Popen(["sleep", "60"], env=environ)
    argv = [old_python(), config.bundle_of(config.me), "end", "--config", config.path, "--grace-s", "1"]
    first = subprocess.run(argv, capture_output=True, timeout=30, check=True)
    assert json.loads(first.stdout) == {"ended": [process.pid], "survivors": [], "ports_closed": []}
    assert process.wait(5) == -15
    second = subprocess.run(argv, capture_output=True, timeout=30, check=True)
    assert json.loads(second.stdout) == {"ended": [], "survivors": [], "ports_closed": []}


def test_an_end_waits_for_one_that_was_begun_before(tmp_path: Path) -> None:
    """Its client may be gone, it goes on: when the later one has answered, nothing that is begun anew is ended any more."""
    folders = NodeFolders(tmp_path, count=1)
    config = folders.write()[0]
    argv = [sys.executable, "-S", "-E", config.bundle_of(config.me), "end", "--config", config.path]
    subprocess.run([*argv, "--after-s", "1", "--detach"], timeout=30, check=True)
    later = subprocess.run(argv, capture_output=True, timeout=30, check=True)
    assert json.loads(later.stdout)["survivors"] == []
    with subprocess.Popen(["sleep", "60"], env={**os.environ, "SKYLIB_CLUSTER_ID": folders.cluster_id}) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.5)
        process.kill()


def test_end_leaves_another_cluster_alone(tmp_path: Path) -> None:
    """With an id that is not the configuration's it prints {} and touches nothing; with its own it ends all."""
    folders = NodeFolders(tmp_path, count=1)
    config = folders.write()[0]
    environ = {**os.environ, "SKYLIB_CLUSTER_ID": folders.cluster_id}
    argv = [sys.executable, "-S", "-E", config.bundle_of(config.me), "end", "--config", config.path, "--cluster-id"]
    with subprocess.Popen(["sleep", "60"], env=environ) as process:
        other = subprocess.run([*argv, "another"], capture_output=True, timeout=30, check=True)
        assert json.loads(other.stdout) == {}
        assert process.poll() is None
        ours = subprocess.run([*argv, folders.cluster_id], capture_output=True, timeout=30, check=True)
        assert json.loads(ours.stdout)["ended"] == [process.pid]
