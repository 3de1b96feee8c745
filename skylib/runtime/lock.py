"""The locked lists of what a runtime environment holds, and the part of one that an interpreter needs.

The lists (data/*.txt) are pip requirements with hashes, for every platform and Python at once; the first lines of each hold
the command that makes it anew. pip reads their markers for the interpreter that it runs on, whatever --python-version
says, so what a node needs is chosen here, by `Lock.select`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from importlib import resources

import attrs

from skylib.errors import ConfigError
from skylib.runtime.layout import SKY_REMOTE_RAY_VERSION

__all__ = ["NEWER_LOCK", "RAY_LOCK", "UV_LOCK", "Lock", "Pin", "holds", "load_lock", "marker_values", "parse_lock"]

RAY_LOCK = f"ray-{SKY_REMOTE_RAY_VERSION}.txt"
NEWER_LOCK = "ray-newer.txt"
UV_LOCK = "uv.txt"

_PIN = re.compile(r"(?P<name>[a-z0-9][a-z0-9._-]*)==(?P<version>[^\s;]+)(?:\s*;\s*(?P<marker>.*))?")
_HASH = re.compile(r"--hash=(sha256:[0-9a-f]{64})")


@attrs.frozen(kw_only=True)
class Pin:
    """One package. hashes: "sha256:<hex>" of each of its files. marker: where it is wanted, "" for everywhere."""

    name: str
    version: str
    marker: str = ""
    hashes: tuple[str, ...] = ()

    def requirement(self) -> str:
        """As pip reads it, without the marker."""
        return " ".join([f"{self.name}=={self.version}", *[f"--hash={value}" for value in self.hashes]])


@attrs.frozen(kw_only=True)
class Lock:
    """Pins in the order of the list. After `select` each name occurs once."""

    pins: tuple[Pin, ...]

    def select(self, values: Mapping[str, str]) -> Lock:
        """The pins whose marker holds for `values` (see marker_values)."""
        return Lock(pins=tuple(pin for pin in self.pins if not pin.marker or holds(pin.marker, values)))

    def version(self, name: str) -> str:
        """The locked version of a package. Raises ConfigError when it is not in the list."""
        for pin in self.pins:
            if pin.name == name:
                return pin.version
        raise ConfigError(f"the runtime's list has no {name}")

    def render(self) -> str:
        """A list that pip and uv read; equal locks give equal text."""
        return "".join(f"{pin.requirement()}\n" for pin in self.pins)

    @property
    def digest(self) -> str:
        """sha256 of the rendered list, as hex."""
        return hashlib.sha256(self.render().encode()).hexdigest()


def load_lock(name: str) -> Lock:
    """One of the shipped lists: RAY_LOCK, NEWER_LOCK or UV_LOCK."""
    return parse_lock((resources.files("skylib.runtime") / "data" / name).read_text(encoding="utf-8"))


def parse_lock(text: str) -> Lock:
    """A list as `uv pip compile --generate-hashes` writes it. Raises ConfigError on another line or a pin without hash."""
    pins = []
    for line in text.replace("\\\n", " ").splitlines():
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        head, _, _ = stripped.partition("--hash=")
        found = _PIN.fullmatch(head.strip())
        hashes = tuple(_HASH.findall(stripped))
        if found is None or not hashes:
            raise ConfigError(f"the runtime's list has a line of unknown form: {stripped[:120]!r}")
        pins.append(Pin(name=found["name"], version=found["version"], marker=(found["marker"] or "").strip(), hashes=hashes))
    return Lock(pins=tuple(pins))


def marker_values(python: tuple[int, int, int], *, os: str, arch: str) -> dict[str, str]:
    """What markers may ask of a CPython. os, arch: as `uname` says ("Linux", "x86_64")."""
    return {
        "python_version": f"{python[0]}.{python[1]}",
        "python_full_version": ".".join(str(part) for part in python),
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "sys_platform": os.lower(),
        "platform_system": os,
        "platform_machine": arch,
        "os_name": "posix",
    }


def holds(marker: str, values: Mapping[str, str]) -> bool:
    """Whether an environment marker (PEP 508) holds on another machine than this one. Raises ConfigError."""
    from packaging.markers import InvalidMarker, Marker, UndefinedComparison, UndefinedEnvironmentName

    try:
        return Marker(marker).evaluate(dict(values))
    except (InvalidMarker, UndefinedComparison, UndefinedEnvironmentName) as error:
        raise ConfigError(f"the runtime's list has a marker that cannot be read: {marker!r}: {error}") from error
