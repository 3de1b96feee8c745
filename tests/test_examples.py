"""The examples, each run for real in a home of its own.

`local` clusters share port 6380 and /tmp/ray_skypilot of the account, so only one of these tests may run on a machine at
a time: the fixture `sky` holds a lock for that.
"""

from __future__ import annotations

import ast
import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import skylib
from tests.testbed import Host, pool_yaml

CHECKOUT = Path(__file__).resolve().parents[1]
EXAMPLES = CHECKOUT / "examples"
TEMP_DIR = Path("/tmp/ray_skypilot")
TIMEOUT_S = 240.0  # the first one may have to download Ray
TASK = """\
num_nodes: 2
setup: echo "setting up"
run: echo "rank $SKYPILOT_NODE_RANK is on $(hostname)"
"""


@pytest.fixture
def sky(isolated_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The test's home with the kept wheels; whatever stands after the test is taken down."""
    from tests.runtime_fixture import shared_wheels

    home = isolated_home / ".sky"
    runtime = home / "runtime"
    runtime.mkdir(mode=0o700, parents=True)
    home.chmod(0o700)
    (runtime / "wheels").symlink_to(shared_wheels())
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    with Path(f"/tmp/skylib-tests-local-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield home
        with skylib.Client(home) as client:
            for record in client.status():
                client.down(record.name, purge=True)


def run_example(name: str, *arguments: str) -> list[str]:
    """What an example printed, line by line. Fails with all of it when it exits otherwise than 0."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, f"{name} exited {done.returncode}:\n{done.stdout}\n{done.stderr}"
    assert done.stderr == ""
    return done.stdout.splitlines()


def assert_nothing_left(home: Path) -> None:
    """No record, no process of that home, no listener on our port, no temp dir of Ray."""
    with skylib.Client(home) as client:
        assert client.status() == []
    assert processes_of(home) == {}
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", 6380)) != 0
    assert not TEMP_DIR.exists()
    assert not (home / "local").exists() or list((home / "local").iterdir()) == []


def processes_of(home: Path) -> dict[int, str]:
    """Other processes whose environment or command line names the home."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            told = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
            if str(home).encode() in told:
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


def test_every_example_is_tested() -> None:
    """A file in examples/ that no test here runs is not an example but a rumour."""
    source = Path(__file__).read_text(encoding="utf-8")
    assert [path.name for path in EXAMPLES.iterdir() if path.is_file() and f'"{path.name}"' not in source] == []


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_explained(path: Path) -> None:
    """Each says at its top what it shows, and uses the public names alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    taken = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    taken |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert [name for name in taken if name and name.startswith("skylib.")] == []


def test_the_notebook_is_stored_without_outputs() -> None:
    """The notebook is valid, explains itself, and holds neither outputs nor counts of a run."""
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert notebook.cells[0].cell_type == "markdown"
    assert [(cell.outputs, cell.execution_count) for cell in code] == [([], None)] * len(code)
    for cell in code:
        ast.parse(cell.source)


@pytest.mark.ray
def test_quickstart(sky: Path) -> None:
    """A cluster of two Ray nodes on this machine says hello from both ranks and goes away again."""
    printed = run_example("quickstart.py")
    assert sorted(line.rpartition(") ")[2] for line in printed if " says hello" in line) == [
        "rank 0 of 2 says hello",
        "rank 1 of 2 says hello",
    ]
    assert "job 1 SUCCEEDED, exit codes [0, 0]" in printed
    ended = [line for line in printed if line.startswith("node ")]
    assert [line.rpartition(", ")[2] for line in ended] == ["leftovers: none", "leftovers: none"]
    assert_nothing_left(sky)


@pytest.mark.ray
def test_batch(sky: Path) -> None:
    """One cluster runs many small jobs from its queue, and each one's result is there."""
    printed = run_example("batch.py", "local", "4")
    assert [line for line in printed if line.startswith("square")] == [
        "square of 0 is 0",
        "square of 1 is 1",
        "square of 2 is 4",
        "square of 3 is 9",
    ]
    assert printed[-1] == "ended: 5"  # the four, and the one that made the cluster
    assert_nothing_left(sky)


@pytest.mark.ray
def test_notebook(sky: Path) -> None:
    """The notebook runs from top to bottom in a real kernel, in whose event loop the verbs block without harm."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=int(TIMEOUT_S), kernel_name="python3").execute(cwd=str(sky.parent))
    said = {cell.id: text_of(cell) for cell in notebook.cells if cell.cell_type == "code"}
    assert said["status"] == "notebook UP local 2 nodes\n"
    assert sorted(line.rpartition(") ")[2] for line in said["logs"].splitlines()) == ["rank 0 of 2", "rank 1 of 2"]
    assert said["wait"] == "SUCCEEDED (0, 0)\n"
    assert [line.split()[0] for line in said["run"].splitlines()] == ["0", "0"]
    assert said["down"] == "True"
    assert_nothing_left(sky)


def text_of(cell: dict[str, list[dict[str, object]]]) -> str:
    """A cell's stdout and value; its stderr fails."""
    words = []
    for output in cell["outputs"]:
        assert output.get("name") != "stderr", output
        data = output.get("data")
        words.append(str(data["text/plain"] if isinstance(data, dict) else output.get("text")))
    return "".join(words)


@pytest.mark.ray
@pytest.mark.hosts
def test_ssh_pool(sky: Path, make_host: Callable[..., Host], tmp_path: Path) -> None:
    """A task YAML runs on two SSH hosts that have nothing but an account and Python, and they are left clean."""
    hosts = [make_host(), make_host()]
    (sky / "ssh_node_pools.yaml").write_text(pool_yaml(hosts))
    (tmp_path / "task.yaml").write_text(TASK)
    printed = run_example("ssh_pool.py", "lab", str(tmp_path / "task.yaml"))
    assert any(line.startswith("ssh/lab usable") for line in printed)
    told = sorted(line.rpartition(") ")[2] for line in printed if "rank" in line and " is on " in line)
    assert told == [f"rank {rank} is on {host.name}" for rank, host in enumerate(hosts)]
    assert len([line for line in printed if line.endswith("setting up")]) == 2
    with skylib.Client(sky) as client:
        assert client.status() == []
    for host in hosts:
        assert [line for _, line in host.processes("sky") if not line.startswith("sshd")] == []
        left = host.sh("ls -d ~/.sky/cluster.json ~/sky_workdir ~/sky_logs /tmp/ray_skypilot* 2>/dev/null; true", user="sky")
        assert left.stdout.strip() == ""
        assert host.sh("test -x ~/skypilot-runtime/bin/python", user="sky").returncode == 0
