"""The locked lists of what a runtime environment holds, and the part of one that an interpreter needs.

The lists (data/*.txt) are pip requirements with hashes, for every platform and Python at once; the first lines of each hold
the command that makes it anew. pip reads their markers for the interpreter that it runs on, whatever --python-version
says, so what a node needs is chosen here, by `Lock.select`. Nor does the packaging library read them: it asks
`ast.literal_eval` for their strings, which was seen to fail in Python 3.11.7 (SystemError) when each host's thread did so.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
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
_TOKEN = re.compile(r"\s*(\(|\)|==|!=|<=|>=|<|>|'[^']*'|\"[^\"]*\"|not\s+in\b|[a-z_]+)")
_VERSIONS = frozenset({"python_version", "python_full_version"})


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


@functools.cache
def load_lock(name: str) -> Lock:
    """One of the shipped lists: RAY_LOCK, NEWER_LOCK or UV_LOCK. Read once: each host of each launch asks for it."""
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
    """Whether an environment marker (PEP 508) holds. Raises ConfigError on one that cannot be read."""
    tokens = _tokens(marker)
    result = _either(tokens, values, marker)
    if tokens:
        raise _unreadable(marker)
    return result


def _tokens(marker: str) -> list[str]:
    """Tokens, last one first."""
    found = []
    position = 0
    text = marker.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise _unreadable(marker)
        found.append(" ".join(match[1].split()) if match[1].startswith("not") else match[1])
        position = match.end()
    return found[::-1]


def _either(tokens: list[str], values: Mapping[str, str], marker: str) -> bool:
    result = _both(tokens, values, marker)
    while tokens and tokens[-1] == "or":
        tokens.pop()
        result = _both(tokens, values, marker) or result
    return result


def _both(tokens: list[str], values: Mapping[str, str], marker: str) -> bool:
    result = _one(tokens, values, marker)
    while tokens and tokens[-1] == "and":
        tokens.pop()
        result = _one(tokens, values, marker) and result
    return result


def _one(tokens: list[str], values: Mapping[str, str], marker: str) -> bool:
    if tokens and tokens[-1] == "(":
        tokens.pop()
        result = _either(tokens, values, marker)
        if not tokens or tokens.pop() != ")":
            raise _unreadable(marker)
        return result
    if len(tokens) < 3:
        raise _unreadable(marker)
    left, operator, right = tokens.pop(), tokens.pop(), tokens.pop()
    is_version = bool(_VERSIONS & {left, right})
    return _compare(_value(left, values, marker), operator, _value(right, values, marker), is_version, marker)


def _value(token: str, values: Mapping[str, str], marker: str) -> str:
    if token[:1] in "'\"":
        return token[1:-1]
    if token not in values:
        raise _unreadable(marker)
    return values[token]


def _compare(left: str, operator: str, right: str, is_version: bool, marker: str) -> bool:
    if operator == "in":
        return left in right
    if operator == "not in":
        return left not in right
    if operator not in _ORDER:
        raise _unreadable(marker)
    if not is_version:
        if operator in ("==", "!="):
            return (left == right) == (operator == "==")
        raise _unreadable(marker)
    if right.endswith(".*"):
        wanted = _numbers(right[:-2], marker)
        given = _numbers(left, marker)
        if operator in ("==", "!="):
            return (_padded(given, len(wanted))[: len(wanted)] == wanted) == (operator == "==")
        raise _unreadable(marker)
    a, b = _numbers(left, marker), _numbers(right, marker)
    length = max(len(a), len(b))
    return _ORDER[operator](_padded(a, length), _padded(b, length))


_ORDER: Mapping[str, Callable[[Sequence[int], Sequence[int]], bool]] = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: tuple(a) < tuple(b),
    "<=": lambda a, b: tuple(a) <= tuple(b),
    ">": lambda a, b: tuple(a) > tuple(b),
    ">=": lambda a, b: tuple(a) >= tuple(b),
}


def _numbers(version: str, marker: str) -> tuple[int, ...]:
    parts = version.split(".")
    if not all(part.isdecimal() for part in parts):
        raise _unreadable(marker)
    return tuple(int(part) for part in parts)


def _padded(version: tuple[int, ...], length: int) -> tuple[int, ...]:
    return version + (0,) * (length - len(version))


def _unreadable(marker: str) -> ConfigError:
    return ConfigError(f"the runtime's list has a marker that cannot be read: {marker!r}")
