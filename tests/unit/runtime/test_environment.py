"""Which Python an environment is made from, what identifies it, and what its making says."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skylib.errors import BringUpError, PreflightError, StagingError
from skylib.facts.hardware import probe
from skylib.models.node import NodeFacts, PythonFound
from skylib.paths import SkyHome
from skylib.runtime.environment import ensure_environment, runtime_digest
from skylib.runtime.install_script import CONDA_FAILED, INSTALL_SCRIPT, NO_SPACE, NOT_OURS
from skylib.runtime.layout import NodeLayout
from skylib.runtime.lock import NEWER_LOCK, RAY_LOCK, load_lock, marker_values
from skylib.runtime.python_choice import choose_python, client_python
from skylib.runtime.wheelhouse import Wheelhouse
from skylib.transport.base import Completed
from skylib.transport.command import Command
from skylib.transport.local import LocalTransport
from skylib.transport.scripted import Rule, ScriptedTransport
from tests.runtime_fixture import ray_environment, shared_wheelhouse

P38 = PythonFound(path="/usr/bin/python3.8", version=(3, 8, 18))
P310 = PythonFound(path="/usr/bin/python3.10", version=(3, 10, 12))
P311 = PythonFound(path="/usr/bin/python3.11", version=(3, 11, 2))
P311_UV = PythonFound(path="/home/me/uv/python3.11", version=(3, 11, 9), origin="uv")
P311_CONDA = PythonFound(path="/opt/conda/bin/python3.11", version=(3, 11, 9), origin="conda")
P312 = PythonFound(path="/usr/bin/python3.12", version=(3, 12, 3))
P313 = PythonFound(path="/usr/local/bin/python3.13", version=(3, 13, 0))
P36 = PythonFound(path="/usr/bin/python3.6", version=(3, 6, 15))
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
    pythons=(P311,),
)
LAYOUT = NodeLayout(root="/home/me")


@pytest.fixture
def wheelhouse(tmp_path: Path) -> Wheelhouse:
    """The shared wheels, through another home."""
    return shared_wheelhouse()


@pytest.mark.parametrize(
    ("pythons", "chosen"),
    [
        ((P38, P310, P311, P312), P311),
        ((P313, P310, P38), P310),
        ((P38, P36), P38),
        ((P311_CONDA, P311_UV, P311), P311),
        ((P311_CONDA, P311_UV), P311_UV),
        ((P313, P311_CONDA), P311_CONDA),
    ],
)
def test_the_newest_python_that_ray_knows_is_taken(pythons: tuple[PythonFound, ...], chosen: PythonFound) -> None:
    """Newest minor up to 3.11; of equals the system's own before uv's before conda's."""
    choice = choose_python(attrs.evolve(FACTS, pythons=pythons))
    assert (choice.python, choice.conda, choice.lock) == (chosen, "", RAY_LOCK)


@given(st.permutations([P36, P38, P310, P311, P311_UV, P311_CONDA, P312, P313]))
def test_the_choice_does_not_depend_on_the_order(pythons: list[PythonFound]) -> None:
    """However the probe lists them, the same interpreter is chosen."""
    assert choose_python(attrs.evolve(FACTS, pythons=tuple(pythons))).python == P311


def test_conda_is_taken_where_it_is_with_a_python_to_fall_back_on() -> None:
    """conda first; what remains without it is the plain environment."""
    choice = choose_python(attrs.evolve(FACTS, conda="/opt/conda/bin/conda", pythons=(P311, P313)))
    assert (choice.conda, choice.version[:2]) == ("/opt/conda/bin/conda", (3, 10))
    rest = choice.without_conda()
    assert rest is not None
    assert (rest.python, rest.conda, rest.version) == (P311, "", P311.version)


def test_conda_serves_a_host_without_a_fitting_python() -> None:
    """With only 3.13 beside it, conda is the way, and there is no other."""
    choice = choose_python(attrs.evolve(FACTS, conda="/opt/conda/bin/conda", pythons=(P313,)))
    assert choice.conda
    assert choice.without_conda() is None


def test_a_newer_python_is_for_this_machine_only() -> None:
    """3.12 and up come with the newer Ray where that is allowed, and never before one that fits."""
    facts = attrs.evolve(FACTS, pythons=(P312, P313))
    choice = choose_python(facts, allow_newer=True)
    assert (choice.python, choice.lock) == (P313, NEWER_LOCK)
    assert choose_python(facts, allow_newer=True, more=(P38,)).lock == RAY_LOCK
    with pytest.raises(PreflightError, match=r"needs 3\.8 to 3\.11"):
        choose_python(facts)


def test_the_pythons_that_do_not_fit_are_named() -> None:
    """The error shows every version seen with its path, and what to do."""
    with pytest.raises(PreflightError) as caught:
        choose_python(attrs.evolve(FACTS, pythons=(P36, P313)))
    assert "3.6.15 (/usr/bin/python3.6), 3.13.0 (/usr/local/bin/python3.13)" in str(caught.value)
    assert (caught.value.host, caught.value.step) == ("node1", "runtime.python")
    assert "uv python install" in str(caught.value.hint)


def test_a_host_without_any_python_is_told() -> None:
    """Nothing found is said so."""
    with pytest.raises(PreflightError, match="there is no Python on node1"):
        choose_python(attrs.evolve(FACTS, pythons=()))


def test_the_clients_own_python_is_a_real_one() -> None:
    """The interpreter below a virtual environment, which can be the base of another."""
    python = client_python()
    said = subprocess.run([python.path, "-V"], capture_output=True, text=True, check=True).stdout
    assert said.split()[1] == ".".join(map(str, python.version))


def test_the_digest_tells_environments_apart() -> None:
    """Another list, Python minor or architecture is another environment; a micro release with the same list is not."""
    lists = {
        python: load_lock(RAY_LOCK).select(marker_values(python, os="Linux", arch="x86_64"))
        for python in [(3, 8, 18), (3, 10, 12), (3, 11, 2)]
    }
    digests = {runtime_digest(lock, python, arch) for python, lock in lists.items() for arch in ("x86_64", "aarch64")}
    assert len(digests) == 6
    lock = lists[3, 11, 2]
    assert runtime_digest(lock, (3, 11, 2), "x86_64") == runtime_digest(lock, (3, 11, 9), "x86_64")


def digest(facts: NodeFacts) -> str:
    """What an environment on such a node is called."""
    choice = choose_python(facts)
    lock = load_lock(choice.lock).select(marker_values(choice.version, os=facts.os, arch=facts.arch))
    return runtime_digest(lock, choice.version, facts.arch)


def untouched(tmp_path: Path) -> Wheelhouse:
    """A wheelhouse that a test must not need."""
    return Wheelhouse(SkyHome(tmp_path), hold=lambda scope: contextlib.nullcontext())


@pytest.mark.parametrize("conda", ["", "/opt/conda/bin/conda"])
def test_an_environment_that_stands_is_used_without_a_word(conda: str, tmp_path: Path) -> None:
    """The facts' digest is enough, also for the one that was made when conda had failed."""
    node = ScriptedTransport("node1", [])
    facts = attrs.evolve(FACTS, runtime_digest=digest(FACTS), conda=conda)
    found = ensure_environment(node, facts, LAYOUT, wheelhouse=untouched(tmp_path))
    assert (found.env, found.ray_version, found.created) == ("/home/me/skypilot-runtime", "2.9.3", False)
    assert (found.python, found.ray) == (f"{found.env}/bin/python", f"{found.env}/bin/ray")
    assert list(node.calls) == []


def test_another_place_is_asked_for_its_digest(tmp_path: Path) -> None:
    """The probe looks at the usual place only; an environment elsewhere costs one small command."""
    node = ScriptedTransport("node1", [Rule("cat /else/where/.skylib-digest", f"{digest(FACTS)}\n".encode())])
    layout = NodeLayout(root="/home/me", env="/else/where")
    assert not ensure_environment(node, FACTS, layout, wheelhouse=untouched(tmp_path)).created
    assert len(node.calls) == 1


def answer(returncode: int, stderr: bytes) -> Completed:
    return Completed(returncode=returncode, stdout=b"", stderr=stderr, host="node1")


@pytest.mark.ray
@pytest.mark.parametrize(
    ("done", "error", "said"),
    [
        (answer(NO_SPACE, b""), StagingError, "too little disk space on node1"),
        (answer(2, b"tar: x: Cannot write: No space left on device"), StagingError, "too little disk space on node1"),
        (answer(1, b"Disk quota exceeded"), StagingError, "too little disk space on node1"),
        (answer(2, b"broken wheel"), BringUpError, "exited 2"),
        (answer(CONDA_FAILED, b"no channels"), BringUpError, "conda could not make"),
    ],
)
def test_a_failure_is_told_by_its_kind(done: Completed, error: type[Exception], said: str, wheelhouse: Wheelhouse) -> None:
    """A full disk is StagingError, anything else BringUpError; both carry host, step and what the node said."""
    node = ScriptedTransport("node1", [Rule("skypilot-runtime", done)])
    with pytest.raises(error, match=said) as caught:
        ensure_environment(node, FACTS, LAYOUT, wheelhouse=wheelhouse)
    assert caught.value.host == "node1"  # type: ignore[attr-defined]
    assert caught.value.step == "runtime.environment"  # type: ignore[attr-defined]


def test_little_space_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    """What the probe says is believed."""
    node = ScriptedTransport("node1", [])
    with pytest.raises(PreflightError, match="too little disk space"):
        ensure_environment(node, attrs.evolve(FACTS, disk_free_gib=0.3), LAYOUT, wheelhouse=untouched(tmp_path))
    assert list(node.calls) == []


@pytest.mark.parametrize("shell", [["sh", "-n"], ["bash", "--posix", "-n"], ["busybox", "sh", "-n"]])
def test_the_script_is_plain_shell(shell: list[str], tmp_path: Path) -> None:
    """Each shell that is here can read it."""
    script = tmp_path / "script"
    script.write_text(INSTALL_SCRIPT)
    try:
        subprocess.run([*shell, str(script)], check=True, timeout=20)
    except FileNotFoundError:
        pytest.skip(f"no {shell[0]} here")


@pytest.mark.ray
def test_this_machine_gets_its_environment_from_the_clients_wheels(tmp_path: Path, wheelhouse: Wheelhouse) -> None:
    """No transfer, no index: made from where the wheels are; the second call finds it standing."""
    transport = LocalTransport(env={**os.environ, "PYTHONPATH": "/nowhere", "UV_PYTHON": "/nowhere"})
    layout = NodeLayout(root=str(tmp_path), env=str(tmp_path / "a b" / "skypilot-runtime"))
    facts = probe(transport, root=str(tmp_path))
    made = ensure_environment(transport, facts, layout, wheelhouse=wheelhouse)
    assert made.created
    done = subprocess.run([made.ray, "--version"], capture_output=True, text=True, timeout=60, check=True)
    assert made.ray_version in done.stdout
    assert ensure_environment(transport, facts, layout, wheelhouse=wheelhouse) == attrs.evolve(made, created=False)
    assert sorted(path.name for path in (tmp_path / "a b").iterdir()) == ["skypilot-runtime"]


@pytest.mark.ray
def test_the_shared_environment_can_start_ray_lines() -> None:
    """The start hook is importable where `ray start` looks for it."""
    python = ray_environment() / "bin" / "python"
    subprocess.run([str(python), "-c", "import skylib_start_hook; skylib_start_hook.trim"], check=True, timeout=60)


@pytest.mark.parametrize(
    ("wanted", "chosen"), [("3.10", P310), ("3.11", P311), ("3.8.18", P38), (P311_UV.path, P311_UV), ("3.1", None)]
)
def test_a_wanted_python_is_the_one_that_is_taken(wanted: str, chosen: PythonFound | None) -> None:
    """runtime.python names a version or a path; where there is none such the error says what was wanted."""
    facts = attrs.evolve(FACTS, pythons=(P38, P310, P311, P311_UV), conda="")
    if chosen is None:
        with pytest.raises(PreflightError, match=re.escape(f"runtime.python wants it: {wanted}")):
            choose_python(facts, wanted=wanted)
    else:
        assert choose_python(facts, wanted=wanted).python == chosen


def test_conda_makes_a_wanted_version_that_no_interpreter_has() -> None:
    """3.10 is what conda makes; an interpreter of that version goes before it, and 3.8 it does not make."""
    facts = attrs.evolve(FACTS, conda="/opt/conda/bin/conda", pythons=(P311,))
    assert choose_python(facts, wanted="3.10").conda
    assert not choose_python(attrs.evolve(facts, pythons=(P310,)), wanted="3.10").conda
    with pytest.raises(PreflightError):
        choose_python(facts, wanted="3.8")


def test_a_wanted_path_that_the_probe_did_not_see_is_asked_for_its_version(wheelhouse: Wheelhouse) -> None:
    """An absolute path outside of the usual places counts as what it says it is."""
    lock = load_lock(RAY_LOCK).select(marker_values((3, 9, 1), os="Linux", arch="x86_64"))
    digest = runtime_digest(lock, (3, 9, 1), "x86_64")
    node = ScriptedTransport("node1", [Rule("/opt/mine/python", b"3 9 1\n")])
    facts = attrs.evolve(FACTS, runtime_digest=digest)
    made = ensure_environment(node, facts, LAYOUT, wheelhouse=wheelhouse, python="/opt/mine/python")
    assert (made.digest, made.created) == (digest, False)


def test_making_an_environment_takes_no_longer_than_is_configured(wheelhouse: Wheelhouse) -> None:
    """runtime.timeout_s is the limit of the command that makes it."""
    node = ScriptedTransport("node1", [Rule("", b"created\n")])
    ensure_environment(node, FACTS, LAYOUT, wheelhouse=wheelhouse, source="index", timeout_s=7.0)
    assert [call.timeout_s for call in node.calls] == [7.0]


def _install(env: Path, *, conda: str = "", python: str = "/nonexistent/python") -> Completed:
    words = (str(env), "digest", python, conda, "3.10", "/nonexistent", "/nonexistent/uv", "", "", "")
    return LocalTransport().run(Command.sh(INSTALL_SCRIPT, *words), timeout_s=60)


_FAKE_UV = """#!/bin/sh
printf '%s\\n' "$*" >>"${0%/*}/asked"
case $1 in venv) for last; do :; done; mkdir -p "$last/bin"; ln -s /bin/true "$last/bin/python" ;; esac
"""
_FAKE_CONDA = """#!/bin/sh
printf '%s\\n' "$*" >>"${0%/*}/asked"
exit 1
"""


def _asked_of(program: Path, text: str, env: Path, *, index: str, conda: bool = False) -> list[str]:
    """What the script asks of uv, or of conda, on a node."""
    program.parent.mkdir()
    program.write_text(text)
    program.chmod(0o755)
    words = (str(env), "digest", "/usr/bin/python3", str(program) if conda else "", "3.10", "/pack", str(program))
    LocalTransport().run(Command.sh(INSTALL_SCRIPT, *words, index, "", ""), timeout_s=60)
    return (program.parent / "asked").read_text().splitlines()


def test_a_node_is_told_to_fetch_nothing(tmp_path: Path) -> None:
    """Unless configured, uv is run offline on nodes, without an index, and takes files by their hashes alone."""
    venv, install = _asked_of(tmp_path / "bin" / "uv", _FAKE_UV, tmp_path / "env", index="")
    assert "--offline" in venv.split()
    assert {"--offline", "--no-index", "--require-hashes", "--no-deps", "--find-links"} <= set(install.split())


def test_a_node_asks_an_index_where_that_is_configured(tmp_path: Path) -> None:
    """runtime.source: index lets uv use one; the hashes are asked for all the same."""
    _, install = _asked_of(tmp_path / "bin" / "uv", _FAKE_UV, tmp_path / "env", index="index")
    assert not {"--offline", "--no-index"} & set(install.split())
    assert "--require-hashes" in install.split()


@pytest.mark.parametrize(
    ("index", "tries"), [("", ["--offline"]), ("conda", ["--offline", "--yes"]), ("index", ["--offline", "--yes"])]
)
def test_conda_fetches_only_where_that_is_configured(index: str, tries: list[str], tmp_path: Path) -> None:
    """conda makes Python from what the node has; its channels are asked on this machine, or with runtime.source: index."""
    asked = _asked_of(tmp_path / "bin" / "conda", _FAKE_CONDA, tmp_path / "env", index=index, conda=True)
    assert [line.split()[1] for line in asked] == tries


@pytest.mark.ray
@pytest.mark.parametrize(("source", "offline"), [("client", True), ("index", False)])
def test_what_a_node_may_fetch_is_in_its_command(source: str, offline: bool, wheelhouse: Wheelhouse) -> None:
    """The one command that makes the environment says whether the node has an index; no other command is run."""
    node = ScriptedTransport("node1", [Rule("", b"created\n")])
    ensure_environment(node, FACTS, LAYOUT, wheelhouse=wheelhouse, source=source)
    (call,) = node.calls
    assert call.command.argv[-4] == ("" if offline else "index")


def test_a_node_without_a_python_is_told_how_to_get_one(wheelhouse: Wheelhouse) -> None:
    """Where conda alone could help and may not fetch, the error names the setting that lets it."""
    node = ScriptedTransport("node1", [Rule("", Completed(returncode=CONDA_FAILED, stdout=b"", stderr=b"no package"))])
    facts = attrs.evolve(FACTS, pythons=(), conda="/opt/conda/bin/conda")
    with pytest.raises(BringUpError, match="conda could not make") as caught:
        ensure_environment(node, facts, LAYOUT, wheelhouse=wheelhouse, source="index")
    assert "runtime.source: index" in str(caught.value.hint)


@pytest.mark.parametrize("kind", ["directory", "link"])
def test_an_environment_of_somebody_else_is_left_alone(tmp_path: Path, kind: str) -> None:
    """One of our name without our digest, SkyPilot's own for one, is refused and stays as it is."""
    env, real = tmp_path / "skypilot-runtime", tmp_path / "real"
    (env if kind == "directory" else real).mkdir()
    if kind == "link":
        env.symlink_to(real)
    (env / "pyvenv.cfg").write_text("theirs")
    assert _install(env).returncode == NOT_OURS
    assert (env / "pyvenv.cfg").read_text() == "theirs"
    assert env.is_symlink() == (kind == "link")
    assert not list(tmp_path.glob("*.new.*"))


def test_the_error_says_what_to_do_with_an_environment_of_somebody_else(wheelhouse: Wheelhouse) -> None:
    """BringUpError names the path and how to go on."""
    node = ScriptedTransport("node1", [Rule("", Completed(returncode=NOT_OURS, stdout=b"", stderr=b""))])
    with pytest.raises(BringUpError) as caught:
        ensure_environment(node, FACTS, LAYOUT, wheelhouse=wheelhouse, source="index")
    assert "/home/me/skypilot-runtime" in caught.value.message
    assert "mv /home/me/skypilot-runtime" in str(caught.value.hint)


@pytest.mark.parametrize("left", ["our digest of before", "an interrupted one", "an empty directory"])
def test_what_is_ours_or_nobodys_is_replaced(tmp_path: Path, left: str) -> None:
    """An older one of ours, a half made one of ours and an empty directory are no obstacle."""
    env = tmp_path / "skypilot-runtime"
    env.mkdir()
    if left == "our digest of before":
        (env / ".skylib-digest").write_text("old")
    elif left == "an interrupted one":
        (env / "half").write_text("")
        Path(f"{env}.making").touch()
    assert _install(env).returncode not in (0, NOT_OURS)  # it goes on, and fails for want of uv


def test_an_interrupted_conda_is_known_as_ours_and_a_failed_one_leaves_nothing(tmp_path: Path) -> None:
    """While conda makes the environment in place, the file beside it says whose that is; a failure leaves neither."""
    env, conda = tmp_path / "skypilot-runtime", tmp_path / "conda"
    conda.write_text(f'#!/bin/sh\nls "{tmp_path}" >"{tmp_path}/seen"\nmkdir -p "{env}"\ntouch "{env}/half"\nexit 1\n')
    conda.chmod(0o700)
    assert _install(env, conda=str(conda)).returncode == CONDA_FAILED
    assert "skypilot-runtime.making" in (tmp_path / "seen").read_text()
    assert not env.exists()
    assert not Path(f"{env}.making").exists()
