"""SkyPilot's own store beside ours: in an environment and processes of its own, never imported into ours."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path
from types import TracebackType

import attrs

__all__ = ["VERSION", "NotInstallable", "SkyPilot", "SkyPilotProcess"]

VERSION = "0.14.1"
_PROGRAM = Path(__file__).with_name("skypilot_program.py")
_INSTALL_S = 1800


class NotInstallable(Exception):
    """Why SkyPilot cannot be had here."""


@attrs.frozen
class SkyPilot:
    """An environment with SkyPilot, and a home whose store it filled. size: clusters, nodes of each, lives in history."""

    python: Path
    filled: Path
    size: tuple[int, int, int]

    @classmethod
    def here(cls, size: tuple[int, int, int]) -> SkyPilot:
        """From the account's cache folder, made there the first time. Raises NotInstallable."""
        account = Path(pwd.getpwuid(os.getuid()).pw_dir)  # tests run with another $HOME
        cache = Path(os.environ.get("XDG_CACHE_HOME") or account / ".cache") / f"skylib-tests-skypilot-{VERSION}"
        here = cls(cache / "env" / "bin" / "python", cache / "-".join(map(str, size)), size)
        if not (cache / "installed").exists():
            shutil.rmtree(cache, ignore_errors=True)
            _run("venv", "--python", sys.executable, str(cache / "env"))
            _run("pip", "install", "--python", str(here.python), f"skypilot=={VERSION}")
            (cache / "installed").touch()
        if not (here.filled / "filled").exists():
            shutil.rmtree(here.filled, ignore_errors=True)
            here.filled.mkdir(parents=True)
            with SkyPilotProcess(here, here.filled):
                pass
        return here

    def copied_home(self, folder: Path) -> Path:
        """A copy of the filled home, to be written to."""
        return Path(shutil.copytree(self.filled, folder, symlinks=True))


class SkyPilotProcess:
    """One process of tests/benchmarks/skypilot_program.py. facts: what it said when it was ready."""

    def __init__(self, skypilot: SkyPilot, home: Path) -> None:
        env = {key: value for key, value in os.environ.items() if not key.startswith(("SKY", "PYTHON"))}
        env |= {"HOME": str(home), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
        argv = [str(skypilot.python), str(_PROGRAM), *map(str, skypilot.size)]
        self._process = subprocess.Popen(
            argv, env=env, cwd=home, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def __enter__(self) -> SkyPilotProcess:
        self.facts = self.answer()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    def ask(self, task: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(task + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, float]:
        """Of the task before, or that it is ready. Raises NotInstallable with what it last said when it ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            _, said = self._process.communicate()
            raise NotInstallable(f"SkyPilot {VERSION} does not run here: {said.strip()[-500:]}")
        answer: dict[str, float] = json.loads(line)
        return answer


def _run(*argv: str) -> None:
    try:
        subprocess.run(
            [sys.executable, "-m", "uv", *argv], check=True, capture_output=True, text=True, timeout=_INSTALL_S
        )
    except subprocess.CalledProcessError as error:
        raise NotInstallable(f"SkyPilot {VERSION} cannot be installed here: {error.stderr.strip()[-500:]}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotInstallable(f"SkyPilot {VERSION} cannot be installed here: {error}") from error
