"""Makes what the tests need, checks the package with ruff and mypy, and runs the tests: `python3 tests/run.py`.

The tests on SSH hosts run beside all others, in two pytests of their own; arguments go to a single one. The environment is
.venv-test in the checkout, made anew when setup.cfg or Python change. As root, the Debian packages whose commands are
missing are installed; else the tests that need them are skipped and named.
Standard library only, Python 3.10 or newer.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

__all__ = ["main"]

_CHECKOUT = Path(__file__).resolve().parents[1]
_ENVIRONMENT = _CHECKOUT / ".venv-test"
_PYTHON = _ENVIRONMENT / "bin" / "python"
_STAMP = _ENVIRONMENT / "made-from"
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Commands that the tests call, and the Debian packages that bring them.
_PACKAGES = {
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "mount": "mount",
    "rsync": "rsync",
    "git": "git",
    "initdb": "postgresql",
    "sshfs": "sshfs",
    "torchrun": "python3-torch",
    "mpirun": "openmpi-bin python3-mpi4py",
}
# The first of the second part of the tests on hosts: each part takes about as long.
_SECOND_PART = "tests/hosts/test_faults.py"
_POLICY = Path("/usr/sbin/policy-rc.d")
_CLUSTER_SETTINGS = Path("/etc/postgresql-common/createcluster.conf")


def main(arguments: Sequence[str]) -> int:
    """Exit code of pytest; when its tests pass, that of ruff or mypy."""
    if sys.version_info < (3, 10):  # noqa: UP036  (run by whatever python3 is)
        _say(f"Python 3.10 or newer is needed; this is {sys.version.split()[0]}")
        return 2
    try:
        _install_packages()
        _make_environment()
    except subprocess.CalledProcessError as exc:
        _say(f"{' '.join(map(str, exc.cmd))} exited {exc.returncode}")
        return 2
    checks = [_check("ruff", "check", "."), _check("mypy")]
    tests = _check("pytest", *arguments) if arguments else _all_parts()
    return tests or max(checks)


def _all_parts() -> int:
    """All tests, in three pytests beside each other: hosts wait for networks and for Ray most of the time."""
    hosts = sorted(str(path.relative_to(_CHECKOUT)) for path in (_CHECKOUT / "tests" / "hosts").glob("test_*.py"))
    cut = sum(name < _SECOND_PART for name in hosts)
    parts = [["--ignore=tests/hosts"], hosts[:cut], hosts[cut:]]
    with contextlib.ExitStack() as stack:
        running: list[tuple[list[str], subprocess.Popen[bytes], IO[bytes]]] = []
        for part in parts:
            output = stack.enter_context(tempfile.TemporaryFile())
            process = subprocess.Popen(
                [str(_PYTHON), "-m", "pytest", *part], cwd=_CHECKOUT, stdout=output, stderr=subprocess.STDOUT
            )
            stack.callback(_end, process)
            running.append((part, process, output))
        codes = []
        for part, process, output in running:
            codes.append(process.wait())
            _say(f"pytest {part[0]}" + (f" to {part[-1]}" if len(part) > 1 else ""))
            output.seek(0)
            shutil.copyfileobj(output, sys.stdout.buffer)
            sys.stdout.flush()
    return max(codes, key=abs)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        process.wait()


def _check(*argv: str) -> int:
    _say(" ".join(argv))
    return subprocess.run([str(_PYTHON), "-m", *argv], cwd=_CHECKOUT, check=False).returncode


def _say(text: str) -> None:
    print(f"== {text}", file=sys.stderr, flush=True)


def _missing_packages() -> list[str]:
    """Debian keeps PostgreSQL's programs out of the path, in a folder for each version."""
    path = os.pathsep.join([_SYSTEM_PATH, *map(str, Path("/usr/lib/postgresql").glob("*/bin"))])
    return sorted({each for name, few in _PACKAGES.items() if shutil.which(name, path=path) is None for each in few.split()})


def _install_packages() -> None:
    """Installs what is missing, where that is possible; a failure is said and not fatal, as the tests skip then."""
    missing = _missing_packages()
    if os.geteuid() != 0:
        _say("not root: tests on SSH hosts (-m hosts) will be skipped")
    elif missing and shutil.which("apt-get") is None:
        _say(f"no apt-get to install {' '.join(missing)}: tests that need them will be skipped")
    elif missing:
        _say(f"apt-get install {' '.join(missing)} (no service is started)")
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        with _services_kept_off(), _no_cluster_made() if "postgresql" in missing else contextlib.nullcontext():
            for command in (["update", "-q"], ["install", "-q", "-y", "--no-install-recommends", *missing]):
                done = subprocess.run(["apt-get", *command], env=environment, stdin=subprocess.DEVNULL, check=False)
                if done.returncode != 0:
                    _say(f"apt-get {command[0]} exited {done.returncode}")
        if _missing_packages():
            _say(f"still missing: {' '.join(_missing_packages())}; tests that need them will be skipped")


@contextlib.contextmanager
def _services_kept_off() -> Iterator[None]:
    """While inside, Debian starts no service that it installs: policy-rc.d says 101, "not allowed"."""
    ours = not _POLICY.exists()
    if ours:
        _POLICY.write_text("#!/bin/sh\nexit 101\n")
        _POLICY.chmod(0o755)
    try:
        yield
    finally:
        if ours:
            _POLICY.unlink(missing_ok=True)


@contextlib.contextmanager
def _no_cluster_made() -> Iterator[None]:
    """While inside, Debian's PostgreSQL makes no database cluster of its own: only its programs are wanted."""
    ours = not _CLUSTER_SETTINGS.exists()
    if ours:
        _CLUSTER_SETTINGS.parent.mkdir(parents=True, exist_ok=True)
        _CLUSTER_SETTINGS.write_text("create_main_cluster = false\n")
    try:
        yield
    finally:
        if ours:
            _CLUSTER_SETTINGS.unlink(missing_ok=True)


def _make_environment() -> None:
    """Makes .venv-test with the project and its test extra, unless it was made from the same setup.cfg and Python."""
    wanted = hashlib.sha256(
        b"\0".join([(_CHECKOUT / "setup.cfg").read_bytes(), sys.version.encode(), str(_CHECKOUT).encode()])
    ).hexdigest()
    with (_CHECKOUT / "setup.cfg").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _STAMP.exists() and _STAMP.read_text() == wanted and _PYTHON.exists():
            return
        _say(f"making {_ENVIRONMENT.name} with the test extra of setup.cfg")
        if _ENVIRONMENT.exists():
            shutil.rmtree(_ENVIRONMENT)
        _make_venv()
        pip = [str(_PYTHON), "-m", "pip", "--disable-pip-version-check", "install", "-q"]
        subprocess.run([*pip, "-e", ".[test]"], cwd=_CHECKOUT, check=True)
        _STAMP.write_text(wanted)


def _make_venv() -> None:
    """An empty environment with pip: by venv, or by uv where Debian has split ensurepip off, or after apt-get."""
    if importlib.util.find_spec("ensurepip") is None:
        uv = shutil.which("uv")
        if uv is not None:
            subprocess.run([uv, "venv", "-q", "--seed", "--python", sys.executable, str(_ENVIRONMENT)], check=True)
            return
        package = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"
        if os.geteuid() == 0 and shutil.which("apt-get") is not None:
            _say(f"apt-get install {package}")
            environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            subprocess.run(["apt-get", "update", "-q"], env=environment, check=True)
            subprocess.run(["apt-get", "install", "-q", "-y", package], env=environment, check=True)
        else:
            _say(f"this Python has no ensurepip: install {package}, or run with another Python")
    subprocess.run([sys.executable, "-m", "venv", str(_ENVIRONMENT)], check=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
