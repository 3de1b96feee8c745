"""The wheels that nodes need, downloaded once on the client and kept under `<home>/runtime`, verified by hash.

wheels/<list digest>/<platform>-cp311/   *.whl, and wheels.txt: the same list with the digests of exactly these files
wheels/<list digest>/<platform>/uv       the installer's binary, for platforms other than the client's own, and uv.sha256

A directory is made beside and renamed, so it is whole or not there. Wheels for an older C library serve a newer one, too.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform as machine
import re
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import attrs

from skylib.errors import PreflightError, StagingError
from skylib.events import EventSink, discard, span
from skylib.models.node import NodeFacts
from skylib.paths import SkyHome, ensure_private_dir
from skylib.runtime.lock import UV_LOCK, Lock, Pin, load_lock
from skylib.runtime.pip import PipRun, run_pips

__all__ = ["SDIST_ONLY", "WHEELS_TXT", "Platform", "Wheelhouse", "Wheels", "client_uv"]

SDIST_ONLY = frozenset({"gpustat"})  # pure Python, published without a wheel: built here

_ARCHES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}
_NAME = re.compile(rf"(?:linux|manylinux2014|manylinux_2_(?P<minor>[0-9]{{1,3}}))[-_/](?P<arch>{'|'.join(_ARCHES)})")
# Hosts whose glibc lies between two of these share the wheels of the lower one.
_GLIBC_STEPS = (17, 28, 34)
_LEGACY = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
WHEELS_TXT = "wheels.txt"
_DOWNLOADS_AT_ONCE = 3
_BIG = ("ray", "grpcio", "cryptography")
_UV_SUM = "uv.sha256"
_LISTED = re.compile(r"--hash=sha256:([0-9a-f]{64})")


@attrs.frozen(kw_only=True)
class Platform:
    """What wheels must fit. arch: "x86_64" or "aarch64". glibc: the minor of the oldest 2.x that is counted on."""

    arch: str
    glibc: int

    @classmethod
    def of(cls, facts: NodeFacts) -> Platform:
        """Raises PreflightError for machines that Ray has no wheels for."""
        kind, _, version = facts.libc.partition(" ")
        major, _, minor = version.partition(".")
        arch = _ARCHES.get(facts.arch.lower())
        said = f"{facts.os} {facts.arch}, {facts.libc or 'unknown C library'}"
        if facts.os != "Linux" or arch is None:
            raise PreflightError(
                f"Ray has no wheels for this machine: {said}",
                host=facts.hostname,
                evidence=said,
                hint="use a host with Linux on x86_64 or aarch64",
            )
        if kind != "glibc" or major != "2" or not minor.isdecimal() or int(minor) < _GLIBC_STEPS[0]:
            raise PreflightError(
                f"Ray needs glibc 2.{_GLIBC_STEPS[0]} or newer: {said}",
                host=facts.hostname,
                evidence=said,
                hint="musl (Alpine) and older C libraries cannot run Ray's wheels; use another host",
            )
        return cls(arch=arch, glibc=max(step for step in _GLIBC_STEPS if step <= int(minor)))

    @property
    def name(self) -> str:
        """The newest tag, which names the directory: "manylinux_2_28_x86_64"."""
        return f"manylinux_2_{self.glibc}_{self.arch}"

    def tags(self) -> tuple[str, ...]:
        """Every platform tag that fits, newest first."""
        found = []
        for minor in range(self.glibc, 4, -1):
            found.append(f"manylinux_2_{minor}_{self.arch}")
            if minor in _LEGACY:
                found.append(f"{_LEGACY[minor]}_{self.arch}")
        return (*found, f"linux_{self.arch}")

    @classmethod
    def named(cls, name: str) -> Platform | None:
        """Of "linux-x86_64" (any glibc that Ray runs on), "manylinux_2_28_aarch64", "manylinux2014_x86_64"; else None."""
        found = _NAME.fullmatch(name.strip().lower())
        if found is None:
            return None
        minor = int(found["minor"] or _GLIBC_STEPS[0])
        if minor < _GLIBC_STEPS[0]:
            return None
        return cls(arch=_ARCHES[found["arch"]], glibc=max(step for step in _GLIBC_STEPS if step <= minor))

    def older(self) -> tuple[Platform, ...]:
        """This one, then those whose wheels fit here as well, newest first."""
        return tuple(Platform(arch=self.arch, glibc=step) for step in reversed(_GLIBC_STEPS) if step <= self.glibc)

    def is_this_machine(self) -> bool:
        """Whether the client's own programs run there."""
        own = _ARCHES.get(machine.machine().lower())
        return machine.system() == "Linux" and own == self.arch and machine.libc_ver()[0] == "glibc"


@attrs.frozen(kw_only=True)
class Wheels:
    """Wheels of one list for one platform and Python. listing: requirements with the hashes of exactly these files.

    made: by the call that gave them.
    """

    directory: Path
    files: tuple[Path, ...]
    listing: Path
    made: bool = attrs.field(default=False, eq=False)


class Wheelhouse:
    """The wheels of one home. hold: takes a scope ("wheels:...") and gives that lock of the home as a context manager."""

    def __init__(
        self, home: SkyHome, *, hold: Callable[[str], AbstractContextManager[object]], events: EventSink = discard
    ) -> None:
        self._home = home
        self.hold = hold
        self._events = events

    def wheels(self, lock: Lock, platform: Platform, python: tuple[int, int, int], *, check: bool = False) -> Wheels:
        """The wheels of a list (already selected for that Python), downloaded when they are not here.

        check: read what is here, and make it anew when it is not what its listing says.
        Raises StagingError when the index cannot be reached, a file is not what the list says, or the disk is full.
        """
        tag = f"cp{python[0]}{python[1]}"
        folder = self._home.runtime / "wheels" / lock.digest[:16]

        def standing() -> Wheels | None:
            kept = (_read(folder / f"{each.name}-{tag}") for each in platform.older())
            return next((wheels for wheels in kept if wheels is not None and (not check or _is_whole(wheels))), None)

        found = standing()
        if found is not None:
            return found
        final = folder / f"{platform.name}-{tag}"
        with self.hold(f"wheels:{lock.digest[:16]}:{final.name}"):
            found = standing()
            if found is not None:
                return found
            with (
                span(self._events, "runtime.wheels", platform=platform.name, python=f"{python[0]}.{python[1]}"),
                _made_beside(final) as beside,
            ):
                _download(lock, beside, platform, python)
                (beside / WHEELS_TXT).write_text(_verify(lock, beside), encoding="utf-8")
        found = _read(final)
        if found is None:
            raise StagingError(f"the wheels in {final} were removed while they were made", path=str(final))
        return attrs.evolve(found, made=True)

    def uv(self, platform: Platform, *, check: bool = False) -> Path:
        """uv's binary for a platform: this environment's own where it fits. Raises StagingError. check: as in wheels()."""
        if platform.is_this_machine():
            return client_uv()
        lock = load_lock(UV_LOCK)
        final = self._home.runtime / "wheels" / lock.digest[:16] / platform.name
        binary = final / "uv"
        if not _stands(binary, check):
            with self.hold(f"wheels:{lock.digest[:16]}:{platform.name}"):
                if not _stands(binary, check):
                    with span(self._events, "runtime.uv", platform=platform.name), _made_beside(final) as beside:
                        _download(lock, beside, platform, (3, 11, 0))
                        _extract_uv(beside)
        return binary


def client_uv() -> Path:
    """uv as it stands in this Python's environment. Raises StagingError when it does not."""
    import uv

    try:
        return Path(uv.find_uv_bin())
    except FileNotFoundError as error:
        raise StagingError(
            "uv's program is missing from this Python's environment", evidence=str(error), hint="pip install uv"
        ) from error


def _read(directory: Path) -> Wheels | None:
    listing = directory / WHEELS_TXT
    if not listing.is_file():
        return None
    return Wheels(directory=directory, files=tuple(sorted(directory.glob("*.whl"))), listing=listing)


def _is_whole(wheels: Wheels) -> bool:
    """Whether the files are those of the listing, byte for byte. A file that cannot be read is not."""
    try:
        listed = sorted(_LISTED.findall(wheels.listing.read_text(encoding="utf-8")))
        return listed == sorted(_sha256(path) for path in wheels.files)
    except (OSError, UnicodeDecodeError):
        return False


def _stands(binary: Path, check: bool) -> bool:
    if not check or not binary.is_file():
        return binary.is_file()
    try:
        return (binary.parent / _UV_SUM).read_text(encoding="ascii") == _sha256(binary)
    except (OSError, UnicodeDecodeError):
        return False


@contextlib.contextmanager
def _made_beside(final: Path) -> Iterator[Path]:
    """A new directory that becomes `final` at the end, whole; what earlier crashes left beside it goes first.

    The caller holds the lock. Raises StagingError for a full or unwritable disk.
    """
    try:
        ensure_private_dir(final.parent)
        for left in final.parent.glob(f".{final.name}.*.tmp"):
            shutil.rmtree(left, ignore_errors=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".tmp", dir=final.parent))
        try:
            yield beside
            if final.is_dir():
                shutil.rmtree(final)
            beside.rename(final)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    except StagingError:
        raise
    except OSError as error:
        raise StagingError(
            f"could not write {final}: {error.strerror or error}", path=str(final), evidence=str(error)
        ) from error


def _download(lock: Lock, target: Path, platform: Platform, python: tuple[int, int, int]) -> None:
    """Several pips beside each other: one downloads one file at a time."""
    built = [pin for pin in lock.pins if pin.name in SDIST_ONLY]
    rest = [pin for pin in lock.pins if pin.name not in SDIST_ONLY]
    runs = [_download_run(pins, target, platform, python) for pins in _shares(rest)]
    runs += [_build_run(pins, target) for pins in ([built] if built else [])]
    what = f"the runtime's packages for {platform.name}, Python {python[0]}.{python[1]}"
    run_pips(runs, what=what, scratch=target / ".lists")
    shutil.rmtree(target / ".lists", ignore_errors=True)


def _shares(pins: list[Pin]) -> list[list[Pin]]:
    """The pins in a few lists that take about equally long; the biggest files are in different ones."""
    ordered = sorted(pins, key=lambda pin: (pin.name not in _BIG, pin.name))
    return [share for share in (ordered[part::_DOWNLOADS_AT_ONCE] for part in range(_DOWNLOADS_AT_ONCE)) if share]


def _download_run(pins: list[Pin], target: Path, platform: Platform, python: tuple[int, int, int]) -> PipRun:
    flags = [flag for tag in platform.tags() for flag in ("--platform", tag)]
    version = ".".join(str(part) for part in python)  # a bare 3.9 would mean 3.9.0, which some packages refuse
    return PipRun(
        args=(
            *("download", "--no-deps", "--only-binary=:all:", "--dest", str(target), "--implementation", "cp"),
            *("--python-version", version, *flags),
        ),
        requirements="".join(f"{pin.requirement()}\n" for pin in pins),
    )


def _build_run(pins: list[Pin], target: Path) -> PipRun:
    names = ",".join(pin.name for pin in pins)
    return PipRun(
        args=("wheel", "--no-deps", f"--no-binary={names}", "--wheel-dir", str(target)),
        requirements="".join(f"{pin.requirement()}\n" for pin in pins),
    )


def _verify(lock: Lock, directory: Path) -> str:
    """The listing of what was downloaded. Raises StagingError when a file is missing or not in the list."""
    digests = {_wheel_name(path): f"sha256:{_sha256(path)}" for path in directory.glob("*.whl")}
    lines = []
    for pin in lock.pins:
        digest = digests.get(pin.name)
        if digest is None or (digest not in pin.hashes and pin.name not in SDIST_ONLY):
            raise StagingError(
                f"the wheel of {pin.name} {pin.version} is {'missing' if digest is None else 'not the locked one'}",
                path=str(directory),
                evidence=digest,
            )
        lines.append(f"{pin.name}=={pin.version} --hash={digest}\n")
    return "".join(lines)


def _sha256(path: Path) -> str:
    sum_ = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            sum_.update(piece)
    return sum_.hexdigest()


def _wheel_name(path: Path) -> str:
    return path.name.partition("-")[0].lower().replace("_", "-").replace(".", "-")


def _extract_uv(directory: Path) -> None:
    (wheel,) = directory.glob("uv-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (member,) = [name for name in archive.namelist() if name.endswith("/scripts/uv")]
        with archive.open(member) as source, (directory / "uv").open("wb") as target:
            shutil.copyfileobj(source, target)
    os.chmod(directory / "uv", stat.S_IRWXU)
    (directory / _UV_SUM).write_text(_sha256(directory / "uv"), encoding="ascii")
    wheel.unlink()
