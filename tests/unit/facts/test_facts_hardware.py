"""The probe: its answer is read exactly, and its script answers on this machine as Python itself does."""

from __future__ import annotations

import json
import os
import platform
import pwd
import shutil
import subprocess
import time
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skylib.errors import CommandError, FactError
from skylib.facts.hardware import PROBE, PROBE_INPUT, parse_probe, probe
from skylib.models.node import NodeFacts
from skylib.runtime.layout import ENV_NAME, TEMP_DIR
from skylib.transport.local import LocalTransport

DATA = Path(__file__).parents[2] / "data" / "facts"
GOLDEN = sorted(path.stem for path in DATA.glob("*.txt"))
WHOLE = (DATA / "two_models.txt").read_bytes()
SHELLS = [shell for shell in ("/bin/dash", "/bin/bash", "/bin/busybox", "/bin/sh") if Path(shell).exists()]


def ask(
    *args: str, shell: str = "/bin/sh", env: dict[str, str] | None = None, script: bytes = PROBE_INPUT
) -> bytes:
    argv = {"/bin/bash": ["--posix"], "/bin/busybox": ["sh"]}.get(shell, [])
    done = subprocess.run(
        [shell, *argv, "-s", "--", *args], input=script, capture_output=True, env={**os.environ, **(env or {})}, timeout=60
    )
    return done.stdout


def ask_facts(*args: str, env: dict[str, str] | None = None) -> NodeFacts:
    return parse_probe(ask(*args, env=env), clock=time.time())


def with_program(directory: Path, name: str, script: str) -> dict[str, str]:
    program = directory / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return {"PATH": f"{directory}:{os.environ['PATH']}"}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_answers_are_read_as_recorded(name: str) -> None:
    """Each recorded answer gives the facts that stand beside it."""
    facts = parse_probe((DATA / f"{name}.txt").read_bytes(), clock=1700000000.0)
    assert json.loads(json.dumps(attrs.asdict(facts))) == json.loads((DATA / f"{name}.json").read_text())


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (b"", "did not answer"),
        (b"This account is currently not available.\n", "did not answer"),
        (WHOLE.replace(b"skylib-probe 1", b"skylib-probe 2"), "expected version 1"),
        (WHOLE.replace(b"\nend\n", b"\n"), "cut off"),
        (WHOLE.replace(b"\ncpus\t8", b"\ncpus\t"), "did not say its cpus"),
        (WHOLE.replace(b"\ncpus\t8", b"\ncpus\teight"), "expected a whole number"),
        (WHOLE.replace(b"\ncpus\t8", b"\nspeed\t8"), "unknown form"),
        (WHOLE.replace(b"\ncpus\t8", b"\ncpus 8"), "unknown form"),
        (WHOLE.replace(b"\nlisten\t0016 0", b"\nlisten\tssh 0"), "a port of unknown form"),
        (WHOLE.replace(b"\nclock\t17", b"\nclock\tN17"), "clock is no number"),
        (WHOLE.replace(b"path\tPython 3.11.2\t", b""), "a python of unknown form"),
    ],
)
def test_an_answer_of_another_form_is_refused(output: bytes, message: str) -> None:
    """What is not a whole answer of this version raises FactError that says what is wrong with it."""
    with pytest.raises(FactError, match=message):
        parse_probe(output, clock=0.0)


@given(st.integers(0, len(WHOLE) - len("end\n") - 1))
def test_a_cut_answer_is_never_taken_for_a_whole_one(length: int) -> None:
    """Every beginning of an answer raises FactError."""
    with pytest.raises(FactError):
        parse_probe(WHOLE[:length], clock=0.0)


@given(st.lists(st.sampled_from([*WHOLE.split(b"\n"), b"end", b"skylib-probe 1", b"gpu\t\xff, x", b"python\t\t", b"\t"])))
def test_lines_in_any_disorder_give_facts_or_a_fact_error(lines: list[bytes]) -> None:
    """No answer raises anything but FactError."""
    try:
        parse_probe(b"\n".join([b"skylib-probe 1", *lines, b"end\n"]), clock=0.0)
    except FactError:
        pass


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_answers_in_every_posix_shell(shell: str) -> None:
    """The facts of this machine are the ones that Python sees, in dash, bash and busybox alike."""
    facts = parse_probe(ask(shell=shell), clock=time.time())
    account = pwd.getpwuid(os.getuid())
    assert (facts.uid, facts.user, facts.home) == (account.pw_uid, account.pw_name, account.pw_dir)
    assert (facts.os, facts.arch, facts.hostname) == (platform.system(), platform.machine(), platform.node())
    assert 1 <= facts.cpus <= len(os.sched_getaffinity(0))
    assert 0 < facts.memory_gib <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30 + 0.01
    assert facts.disk_free_gib == pytest.approx(shutil.disk_usage(account.pw_dir).free / 2**30, abs=1.0)
    assert facts.home_file_system
    assert abs(facts.clock_offset_s) < 5
    assert facts.boot.startswith(Path("/proc/sys/kernel/random/boot_id").read_text().strip())


def test_half_a_script_does_nothing() -> None:
    """A script whose end never arrives prints nothing: no part of it runs before all of it is there."""
    assert ask(script=PROBE_INPUT[: len(PROBE_INPUT) // 2]) == b""


def test_home_is_the_accounts_whatever_the_environment_says(tmp_path: Path) -> None:
    """$HOME as a server or a caller sets it does not move where we look."""
    assert ask_facts(env={"HOME": str(tmp_path)}).home == pwd.getpwuid(os.getuid()).pw_dir


def test_thread_settings_of_the_login_do_not_lower_the_cpus() -> None:
    """OMP_NUM_THREADS=1, which nproc honours, is no property of the machine."""
    assert ask_facts(env={"OMP_NUM_THREADS": "1"}).cpus == ask_facts().cpus


def test_pythons_are_found_once_each_with_their_version() -> None:
    """A real path is listed once, and this interpreter's base is among those that run."""
    found = ask_facts(env={"PATH": f"{Path(os.path.realpath('/proc/self/exe')).parent}:{os.environ['PATH']}"}).pythons
    paths = [python.path for python in found]
    assert len(paths) == len(set(paths))
    mine = Path("/proc/self/exe").resolve()
    assert [python.version for python in found if python.path == str(mine)] == [
        tuple(int(part) for part in platform.python_version_tuple())
    ]


def test_a_python_that_does_not_run_is_a_note(tmp_path: Path) -> None:
    """A broken interpreter on PATH is named in the notes and not among the Pythons."""
    facts = ask_facts(env=with_program(tmp_path, "python3.9", "echo broken >&2; exit 1"))
    assert all(python.path != str(tmp_path / "python3.9") for python in facts.pythons)
    assert facts.notes == (f"{tmp_path}/python3.9 does not run: broken",)


def test_gpus_are_read_per_device(tmp_path: Path) -> None:
    """Each row of nvidia-smi is a device with its own name and memory."""
    rows = "0, GPU-1, NVIDIA A100-SXM4-40GB, 40960\n1, GPU-2, NVIDIA L4, 23034"
    facts = ask_facts(env=with_program(tmp_path, "nvidia-smi", f"cat <<'X'\n{rows}\nX"))
    assert [(gpu.index, gpu.uuid, gpu.name, gpu.memory_gib) for gpu in facts.gpus] == [
        (0, "GPU-1", "NVIDIA A100-SXM4-40GB", 40.0),
        (1, "GPU-2", "NVIDIA L4", 23034 / 1024),
    ]


def test_a_failing_nvidia_smi_is_a_note(tmp_path: Path) -> None:
    """No GPUs, and what it said, when nvidia-smi exits with an error."""
    facts = ask_facts(env=with_program(tmp_path, "nvidia-smi", "echo no driver >&2; exit 9"))
    assert (facts.gpus, facts.notes) == ((), ("nvidia-smi failed (exit status 9): no driver",))


def test_files_of_ours_are_looked_for_under_the_given_root(tmp_path: Path) -> None:
    """With a root, digest and cluster.json are read there, and the account's home is still told."""
    (tmp_path / ".sky").mkdir()
    (tmp_path / ".sky/cluster.json").write_text('{\n "cluster": "here"\n}')
    (tmp_path / ENV_NAME).mkdir()
    (tmp_path / ENV_NAME / ".skylib-digest").write_text("abc\n")
    facts = ask_facts(str(tmp_path))
    assert (facts.cluster, facts.runtime_digest) == ({"cluster": "here"}, "abc")
    assert facts.home == pwd.getpwuid(os.getuid()).pw_dir


def mark_in_temp_dir(tmp_path: Path, body: str, name: str = "temp") -> Path:
    temp = tmp_path / name
    temp.mkdir()
    (temp / "cluster.json").write_text(body)
    return tmp_path / "temp"


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("name", ["temp", f"temp_{os.getuid()}"])
def test_a_cluster_of_another_home_is_found_in_the_temp_dir(tmp_path: Path, indent: int | None, name: str) -> None:
    """The mark in the account's temp dir counts while one of the roots that it lists has its own cluster.json."""
    roots = [tmp_path / "it's rank 0", tmp_path / "rank1"]
    body = json.dumps({"cluster": "c", "members": [{"rank": 0, "root": str(root)} for root in roots]}, indent=indent)
    temp = mark_in_temp_dir(tmp_path, body, name)
    assert ask_facts(str(tmp_path), str(temp)).cluster is None
    (roots[1] / ".sky").mkdir(parents=True)
    (roots[1] / ".sky/cluster.json").write_text("{}")
    assert ask_facts(str(tmp_path), str(temp)).cluster == json.loads(body)


@pytest.mark.parametrize("body", ['{"cluster": "c"}', '{"cluster": "c", "root": "/caf\\u00e9"}'])
def test_a_mark_whose_root_cannot_be_told_counts(tmp_path: Path, body: str) -> None:
    """Doubt does not free an account."""
    assert ask_facts(str(tmp_path), str(mark_in_temp_dir(tmp_path, body))).cluster == json.loads(body)


def test_a_mark_of_another_account_is_not_ours(tmp_path: Path) -> None:
    """A temp dir that another account owns says who owns it, and holds nothing of ours."""
    if os.getuid() != 0:
        pytest.skip("only root can give a directory away")
    temp = mark_in_temp_dir(tmp_path, '{"cluster": "c"}')
    os.chown(temp, 12345, 12345)
    facts = ask_facts(str(tmp_path), str(temp))
    assert (facts.temp_dir_owner, facts.cluster) == (12345, None)


def test_the_names_in_the_script_are_those_of_the_layout() -> None:
    """The script, which cannot import the layout, spells its names the same way."""
    assert f"{ENV_NAME}/.skylib-digest" in PROBE_INPUT.decode()
    assert f"usual=${{1:-{TEMP_DIR}}}" in PROBE_INPUT.decode()


def test_probe_asks_over_a_transport(tmp_path: Path) -> None:
    """One command over a transport gives facts; the clock is the caller's."""
    with_offset = probe(LocalTransport(), clock=lambda: time.time() - 100)
    assert with_offset.clock_offset_s == pytest.approx(100, abs=5)


def test_a_node_without_a_shell_answers_with_its_own_words() -> None:
    """A command that fails without an answer raises CommandError with what the node said."""
    command = attrs.evolve(PROBE, argv=("/bin/sh", "-c", "echo This account is not available >&2; exit 1"))

    class Closed(LocalTransport):
        def run(self, _: object, **options: object):  # type: ignore[no-untyped-def, override]
            return super().run(command, **options)  # type: ignore[arg-type]

    with pytest.raises(CommandError, match="not available"):
        probe(Closed())
