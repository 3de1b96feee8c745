"""Quantities as users write them: amounts ("4+"), sizes ("16GB"), durations ("30m"), port ranges ("8000-8010").

Sizes count as SkyPilot counts them: GB and GiB are both 2**30 bytes, and the unit without a name is GiB.
Every parser raises InvalidSpecError on anything else, booleans, zero, negatives, infinities and NaN included.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from datetime import timedelta

import attrs

from skylib.models.spec_errors import kind_of, shown, spec_error

__all__ = [
    "Amount",
    "PortRange",
    "format_number",
    "parse_amount",
    "parse_disk_gb",
    "parse_idle_minutes",
    "parse_lease_s",
    "parse_memory",
    "parse_ports",
    "parse_size_gb",
    "positive_number",
    "whole_number",
]

_NUMBER = r"(?P<number>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)"
_AMOUNT = re.compile(rf"{_NUMBER}\s*(?P<unit>[A-Za-z]*)\s*(?P<plus>\+?)", re.ASCII)
_DURATION = re.compile(r"(?P<count>\d+)\s*(?P<unit>[mhdw]?)", re.ASCII | re.IGNORECASE)
_PORTS = re.compile(r"\s*(?P<first>\d{1,5})\s*(?:-\s*(?P<last>\d{1,5})\s*)?", re.ASCII)
_MINUTES = {"": 1, "m": 1, "h": 60, "d": 24 * 60, "w": 7 * 24 * 60}
_LEASE = re.compile(rf"{_NUMBER}\s*(?P<unit>[smhdw])", re.ASCII | re.IGNORECASE)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600, "w": 7 * 24 * 3600}
_SHORTEST_LEASE_S = 10.0
_POWERS = {"k": -2, "m": -1, "g": 0, "t": 1, "p": 2}
_GB = {letter + tail: 1024.0**power for letter, power in _POWERS.items() for tail in ("", "b", "i", "ib")}
_LAST_PORT = 65535


@attrs.frozen(kw_only=True)
class Amount:
    """So much, exactly or at least; with `ratio`, so much per CPU (memory only, written "4x").

    value is a count for CPUs and GiB for memory. str() gives the form that the parsers read.
    """

    value: float
    at_least: bool = False
    ratio: bool = False

    def __str__(self) -> str:
        return format_number(self.value) + ("x" if self.ratio else "") + ("+" if self.at_least else "")

    def admits(self, found: float) -> bool:
        """Whether `found` is enough, or just right when the amount is exact. A ratio must be resolved first."""
        return found >= self.value if self.at_least else found == self.value

    def resolved(self, cpus: float) -> Amount:
        """The absolute amount on a machine of `cpus`; itself when it is no ratio."""
        return Amount(value=self.value * cpus, at_least=self.at_least) if self.ratio else self


@attrs.frozen(kw_only=True, order=True)
class PortRange:
    """TCP ports `first` to `last`, both included."""

    first: int
    last: int

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


def format_number(value: float) -> str:
    """Shortest text that reads back as the same number; whole numbers without a point."""
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))


def positive_number(value: object) -> float:
    """A finite number above zero."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise spec_error(f"expected a number, got {shown(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not 0 < number < math.inf:
        raise spec_error(f"expected a finite number above 0, got {shown(value)}")
    return number


def whole_number(value: object, *, least: int, most: int | None = None) -> int:
    """An integer from `least` to `most`; a boolean is none."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise spec_error(f"expected an integer, got {shown(value)}")
    if value < least or (most is not None and value > most):
        limits = f"at least {least}" if most is None else f"from {least} to {most}"
        raise spec_error(f"expected an integer {limits}, got {value}")
    return value


def parse_amount(value: object) -> Amount:
    """A plain count: 4, 0.5, "4", "4+"."""
    number, unit, at_least = _split_amount(value, 'expected a number such as 4 or "4+"')
    if unit:
        raise spec_error(f'expected a number such as 4 or "4+", got {shown(value)}')
    return Amount(value=number, at_least=at_least)


def parse_memory(value: object) -> Amount:
    """Memory in GiB: 16, "16+", "16GB", "16GiB+", "1024MB", or per CPU: "4x", "4x+"."""
    expected = 'expected memory such as 16, "16+", "16GB", "512MB+" or "4x"'
    number, unit, at_least = _split_amount(value, expected)
    if unit == "x":
        return Amount(value=number, at_least=at_least, ratio=True)
    return Amount(value=_in_gb(number, unit, expected, value), at_least=at_least)


def parse_size_gb(value: object) -> float:
    """A size without "+", in GiB: 256, "256", "1TB", "512MiB"."""
    expected = 'expected a size such as 256, "256GB" or "1TB"'
    number, unit, at_least = _split_amount(value, expected)
    if at_least:
        raise spec_error(f"{expected}, got {shown(value)}")
    return _in_gb(number, unit, expected, value)


def parse_disk_gb(value: object) -> int:
    """A disk size in whole GiB, rounded down as SkyPilot does; at least 1."""
    if isinstance(value, float):
        raise spec_error(f'expected whole GB or a size such as "1TB", got {shown(value)}')
    size = math.floor(parse_size_gb(value))
    if size < 1:
        raise spec_error(f"expected at least 1 GB, got {shown(value)}")
    return size


def parse_idle_minutes(value: object) -> int:
    """Minutes: 30, "30", "30m", "2h", "1d", "1w"; 0 counts as 1, the shortest there is."""
    if isinstance(value, str):
        match = _DURATION.fullmatch(value.strip())
        if match is None or len(match["count"]) > 9:
            raise spec_error(f'expected minutes, or a duration such as "30m", "2h", "1d" or "1w", got {shown(value)}')
        value = int(match["count"]) * _MINUTES[match["unit"].lower()]
    return max(1, whole_number(value, least=0))


def parse_lease_s(value: object) -> float | None:
    """Seconds: "2h", "90m", "45s", "1d", "1w", 7200, a timedelta; None for none. At least 10, for contact takes time."""
    if value is None:
        return None
    expected = 'expected a duration such as "2h", "90m", "1d", seconds, or a timedelta'
    if isinstance(value, timedelta):
        value = value.total_seconds()
    elif isinstance(value, str):
        match = _LEASE.fullmatch(value.strip())
        if match is None:
            raise spec_error(f"{expected}, got {shown(value)}")
        value = float(match["number"]) * _SECONDS[match["unit"].lower()]
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        raise spec_error(f"{expected}, got {shown(value)}")
    seconds = positive_number(value)
    if seconds < _SHORTEST_LEASE_S:
        raise spec_error(f"a lease has at least {_SHORTEST_LEASE_S:g} seconds, got {shown(value)}")
    return seconds


def parse_ports(value: object) -> tuple[PortRange, ...]:
    """Ports as sorted ranges that neither overlap nor touch: 80, "8000-8010", "80,443", a list of these."""
    if value is None:
        return ()
    items = value if isinstance(value, (list, tuple, set, frozenset)) else [value]
    return _merged(part for item in items for part in _port_ranges(item))


def _port_ranges(item: object) -> Iterable[PortRange]:
    if isinstance(item, PortRange):
        item = str(item)
    if isinstance(item, bool) or not isinstance(item, (int, str)):
        raise spec_error(f'expected a port such as 80 or "8000-8010", got {kind_of(item)}')
    for part in str(item).split(","):
        match = _PORTS.fullmatch(part)
        if match is None:
            raise spec_error(f'expected a port such as 80 or "8000-8010", got {shown(item)}')
        first, last = int(match["first"]), int(match["last"] or match["first"])
        if not 1 <= first <= last <= _LAST_PORT:
            raise spec_error(f"ports go from 1 to {_LAST_PORT}, the lower one first; got {shown(item)}")
        yield PortRange(first=first, last=last)


def _merged(ranges: Iterable[PortRange]) -> tuple[PortRange, ...]:
    merged: list[PortRange] = []
    for each in sorted(ranges):
        if merged and each.first <= merged[-1].last + 1:
            merged[-1] = PortRange(first=merged[-1].first, last=max(merged[-1].last, each.last))
        else:
            merged.append(each)
    return tuple(merged)


def _split_amount(value: object, expected: str) -> tuple[float, str, bool]:
    if isinstance(value, Amount):
        value = str(value)
    if isinstance(value, str):
        match = _AMOUNT.fullmatch(value.strip())
        if match is None:
            raise spec_error(f"{expected}, got {shown(value)}")
        return positive_number(float(match["number"])), match["unit"].lower(), bool(match["plus"])
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise spec_error(f"{expected}, got {shown(value)}")
    return positive_number(value), "", False


def _in_gb(number: float, unit: str, expected: str, value: object) -> float:
    if not unit:
        return number
    if unit not in _GB:
        raise spec_error(f"{expected}, got {shown(value)}")
    return positive_number(number * _GB[unit])
