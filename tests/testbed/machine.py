"""What this machine offers the test bed: root, commands, kernel features, other Pythons."""

from __future__ import annotations

import functools
import os
import pwd
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

__all__ = [
    "PythonMissing",
    "TestbedError",
    "TestbedUnavailable",
    "find_python",
    "missing_requirement",
    "process_start",
    "run",
]

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_COMMANDS = {
    "ip": "iproute2",
    "sshd": "openssh-server",
    "ssh-keygen": "openssh-client",
    "ssh-keyscan": "openssh-client",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "mount": "mount",
}


class TestbedError(Exception):
    """Something that should work on the test bed did not."""

    __test__ = False


class TestbedUnavailable(TestbedError):
    """This machine cannot make hosts; the message says what is missing."""


class PythonMissing(TestbedError):
    """A Python that a host was asked to have is not on this machine."""


def run(argv: Sequence[str], *, stdin: str | None = None, timeout_s: float = 30.0) -> str:
    """Stdout of a command of this machine, with a clean PATH; TestbedError with its stderr when it fails."""
    environment = {"PATH": SYSTEM_PATH, "LANG": "C.UTF-8"}
    done = subprocess.run(
        list(argv), input=stdin, capture_output=True, text=True, timeout=timeout_s, env=environment, check=False
    )
    if done.returncode != 0:
        raise TestbedError(f"{' '.join(argv)} exited {done.returncode}: {done.stderr.strip()[-2000:]}")
    return done.stdout


@functools.cache
def missing_requirement() -> str | None:
    """Why hosts cannot be made here, in one line; None when they can. Namespaces and overlay are tried, not guessed."""
    if not os.path.isdir("/proc/self/ns"):
        return "not Linux"
    if os.geteuid() != 0:
        return "needs root (namespaces, mounts, sshd)"
    lacking = {package for name, package in _COMMANDS.items() if shutil.which(name, path=SYSTEM_PATH) is None}
    if lacking:
        return f"missing Debian packages: {', '.join(sorted(lacking))}"
    try:
        run(["unshare", "--mount", "--net", "--pid", "--uts", "--ipc", "--fork", "mount", "-t", "tmpfs", "t", "/mnt"])
    except TestbedError as exc:
        return f"namespaces are not allowed here: {exc}"
    return None


def find_python(version: str) -> Path:
    """Prefix of a pyenv Python whose version begins with `version` ("3.13"); PythonMissing when there is none.

    Looked up under $PYENV_ROOT and the account's own home, whatever $HOME says at the moment.
    """
    roots = [Path(os.environ["PYENV_ROOT"])] if os.environ.get("PYENV_ROOT") else []
    roots.append(Path(pwd.getpwuid(os.getuid()).pw_dir) / ".pyenv")
    for root in roots:
        for prefix in sorted(root.glob(f"versions/{version}*"), reverse=True):
            exact = prefix.name == version or prefix.name.startswith(f"{version}.")
            if exact and (prefix / "bin" / "python3").exists():
                return prefix.resolve()
    raise PythonMissing(f"no pyenv Python {version} on this machine (looked under {', '.join(map(str, roots))})")


def process_start(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot, which makes its pid unique; None when it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])
