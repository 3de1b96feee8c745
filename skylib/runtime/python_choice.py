"""Which interpreter a node's runtime environment is made from. Pure."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import attrs

from skylib.errors import PreflightError
from skylib.models.node import NodeFacts, PythonFound
from skylib.runtime.layout import SKY_REMOTE_RAY_VERSION
from skylib.runtime.lock import NEWER_LOCK, RAY_LOCK

__all__ = ["CONDA_PYTHON", "NEWEST", "OLDEST", "PythonChoice", "choose_python", "client_python"]

OLDEST = (3, 8)
NEWEST = (3, 11)  # of Ray 2.9.3
NEWER = (3, 12)  # from here up: the newer Ray's list
CONDA_PYTHON = (3, 10, 0)  # what a conda environment gets, as SkyPilot's does
_ORIGINS = {"path": 0, "uv": 1, "conda": 2}


@attrs.frozen(kw_only=True)
class PythonChoice:
    """How the environment is made. lock: the name of its list.

    conda: path of conda, "" for a plain environment. python: interpreter to make a plain one from (with conda: when
    conda fails), None when there is none.
    """

    lock: str = RAY_LOCK
    python: PythonFound | None = None
    conda: str = ""

    @property
    def version(self) -> tuple[int, int, int]:
        """Of the Python in the environment; with conda only major and minor are sure."""
        return CONDA_PYTHON if self.conda or self.python is None else self.python.version

    def without_conda(self) -> PythonChoice | None:
        """What remains when conda fails, None when nothing does."""
        return attrs.evolve(self, conda="") if self.conda and self.python is not None else None


def choose_python(
    facts: NodeFacts, *, allow_newer: bool = False, more: Sequence[PythonFound] = (), wanted: str = ""
) -> PythonChoice:
    """conda where the node has it; else the newest Python that Ray 2.9.3 runs on (3.8 to 3.11).

    allow_newer: where there is none of these, take 3.12 or newer and the newer Ray (`local` only). more: interpreters
    beside those of the facts. wanted: only this version ("3.10", "3.10.4") or path; conda then serves where it makes that
    version and no interpreter has it. Raises PreflightError naming every Python seen.
    """
    seen = (*facts.pythons, *more)
    if wanted:
        return _as_wanted(facts, seen, wanted, allow_newer=allow_newer)
    fitting = sorted((python for python in seen if OLDEST <= python.version[:2] <= NEWEST), key=_preference)
    best = fitting[0] if fitting else None
    if facts.conda:
        return PythonChoice(python=best, conda=facts.conda)
    if best is not None:
        return PythonChoice(python=best)
    newer = sorted((python for python in seen if python.version[:2] >= NEWER), key=_preference)
    if allow_newer and newer:
        return PythonChoice(python=newer[0], lock=NEWER_LOCK)
    raise _nothing_fits(facts, seen)


def _as_wanted(facts: NodeFacts, seen: Sequence[PythonFound], wanted: str, *, allow_newer: bool) -> PythonChoice:
    for python in sorted(seen, key=_preference):
        if python.path != wanted and not _is_version(python.version, wanted):
            continue
        if OLDEST <= python.version[:2] <= NEWEST:
            return PythonChoice(python=python)
        if allow_newer and python.version[:2] >= NEWER:
            return PythonChoice(python=python, lock=NEWER_LOCK)
    if facts.conda and _is_version(CONDA_PYTHON, wanted):
        return PythonChoice(conda=facts.conda)
    raise _nothing_fits(facts, seen, f" as runtime.python wants it: {wanted}")


def _is_version(version: tuple[int, int, int], wanted: str) -> bool:
    parts = wanted.split(".")
    return [str(part) for part in version[: len(parts)]] == parts


def client_python() -> PythonFound:
    """The interpreter that runs skylib (the one below its virtual environment)."""
    path = getattr(sys, "_base_executable", None) or sys.executable
    return PythonFound(path=path, version=sys.version_info[:3])


def _preference(python: PythonFound) -> tuple[int, ...]:
    """Newest minor first, then the system's own, then the newest micro."""
    major, minor, micro = python.version
    return (-major, -minor, _ORIGINS.get(python.origin, 3), -micro)


def _nothing_fits(facts: NodeFacts, seen: Sequence[PythonFound], how: str = "") -> PreflightError:
    names = ", ".join(f"{'.'.join(map(str, python.version))} ({python.path})" for python in seen)
    wanted = f"{OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}"
    message = (
        f"no Python on {facts.hostname} can run Ray {SKY_REMOTE_RAY_VERSION}, which needs {wanted}{how}"
        if seen
        else f"there is no Python on {facts.hostname}"
    )
    return PreflightError(
        message,
        host=facts.hostname,
        step="runtime.python",
        evidence=f"found: {names}" if seen else "no python3 on PATH, in conda or from uv",
        hint=f"install a Python {wanted} there, for this account only: `uv python install 3.11`, or miniforge in ~",
        problems=(message,),
    )
