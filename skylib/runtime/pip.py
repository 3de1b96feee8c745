"""Running pip on the client: this Python's own, else one that uv fetches."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

from skylib.errors import StagingError

__all__ = ["PipRun", "pip_command", "pip_environment", "run_pips"]

_TIMEOUT_S = 1800.0
_TAIL = 2000


@attrs.frozen(kw_only=True)
class PipRun:
    """One pip. args: command and flags, without the requirements. requirements: a list with hashes."""

    args: tuple[str, ...]
    requirements: str


def pip_command() -> tuple[str, ...]:
    """The words that start pip. Raises StagingError when there is neither pip nor uv."""
    if sys.executable and importlib.util.find_spec("pip") is not None:
        return (sys.executable, "-m", "pip")
    import uv

    try:
        return (uv.find_uv_bin(), "tool", "run", "pip")
    except FileNotFoundError as error:
        raise StagingError(
            "neither pip nor uv can be run from this Python", evidence=str(error), hint="pip install uv"
        ) from error


def pip_environment(env: Mapping[str, str]) -> dict[str, str]:
    """pip's environment: never asks, few retries; an index that only uv was told of is told to pip too."""
    ours = {name: value for name, value in env.items() if name not in ("PIP_TARGET", "PIP_USER", "PIP_PREFIX")}
    ours["PIP_NO_INPUT"] = "1"
    ours["PIP_REQUIRE_VIRTUALENV"] = "0"
    ours["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    ours.setdefault("PIP_RETRIES", "2")
    for name, sources, separator in (
        ("PIP_INDEX_URL", ("UV_DEFAULT_INDEX", "UV_INDEX_URL"), None),
        ("PIP_EXTRA_INDEX_URL", ("UV_INDEX", "UV_EXTRA_INDEX_URL"), None),
        ("PIP_FIND_LINKS", ("UV_FIND_LINKS",), ","),
    ):
        said = " ".join(_urls(env.get(source, ""), separator) for source in sources).strip()
        if said and name not in ours:
            ours[name] = said
    return ours


def _urls(text: str, separator: str | None) -> str:
    """uv's list as pip's; uv may name an index ("corp=https://...")."""
    words = [word.strip() for word in text.split(separator)]
    return " ".join(word.partition("=")[2] if _is_named(word) else word for word in words if word)


def _is_named(word: str) -> bool:
    name, equals, _ = word.partition("=")
    return bool(equals) and "/" not in name and ":" not in name


def run_pips(runs: Sequence[PipRun], *, what: str, scratch: Path) -> None:
    """Run all beside each other; a failure ends the others.

    what: what they get, for people. Raises StagingError with the tail of what the failed one said.
    """
    scratch.mkdir(mode=0o700, exist_ok=True)
    command = pip_command()
    environment = pip_environment(os.environ)
    started: list[tuple[subprocess.Popen[bytes], Path, tuple[str, ...]]] = []
    try:
        for number, run in enumerate(runs):
            listing, said = scratch / f"{number}.txt", scratch / f"{number}.log"
            listing.write_text(run.requirements, encoding="utf-8")
            words = (*command, *run.args, "--quiet", "--no-cache-dir", "--require-hashes", "-r", str(listing))
            with said.open("wb") as log:
                process = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment,
                    cwd=scratch,
                    start_new_session=True,
                )
            started.append((process, said, words))
        for process, said, words in started:
            _wait(process, what, said, words)
    finally:
        for process, _, _ in started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # its leader is not reaped yet, so the group is still ours
                process.wait()


def _wait(process: subprocess.Popen[bytes], what: str, said: Path, words: tuple[str, ...]) -> None:
    try:
        code = process.wait(timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise _failed(f"could not get {what}: pip did not end within {_TIMEOUT_S:g} s", said, words) from error
    if code != 0:
        raise _failed(f"could not get {what}: pip exited {code}", said, words)


def _failed(message: str, said: Path, words: tuple[str, ...]) -> StagingError:
    return StagingError(
        message,
        command=" ".join(words[:4]) + " ...",
        evidence=said.read_bytes()[-_TAIL:].decode(errors="replace"),
        hint="this machine needs its package index once for each platform; check PIP_INDEX_URL and the network",
        retryable=True,
    )
