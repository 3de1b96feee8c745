"""Accelerators as asked for: by name ("A100:8") or by device memory ("nvidia:24GB+:2")."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import attrs

from skylib.models.spec_errors import shown, spec_error, within
from skylib.models.units import Amount, format_number, parse_amount, parse_memory, positive_number

__all__ = ["Accelerator", "Accelerators", "parse_accelerators"]

_NAME = re.compile(r"(?=.*[A-Za-z])[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
_MEMORY = re.compile(r"[0-9.]+(?:e[+-]?[0-9]+)?\s*[kmgtp]i?b?\+?", re.ASCII | re.IGNORECASE)
_EXPECTED = 'expected an accelerator such as "A100", "A100:8", "80GB+" or "nvidia:24GB+:2"'


@attrs.frozen(kw_only=True)
class Accelerator:
    """`count` devices a node, each of model `name`, or each with `memory` (GiB), of `manufacturer` when given.

    Exactly one of name and memory is set. count may be a fraction below 1: a share of one device. Names are kept as
    written; matching them to devices is the catalog's business and ignores case.
    """

    name: str | None = None
    count: float = attrs.field(default=1.0, converter=float)
    memory: Amount | None = None
    manufacturer: str | None = None

    @classmethod
    def parse(cls, text: object, *, count: float | None = None) -> Accelerator:
        """One accelerator from its text; `count` when it stands beside the text, as in the map {A100: 8}."""
        if not isinstance(text, str):
            raise spec_error(f"{_EXPECTED}, got {shown(text)}")
        parts = [part.strip() for part in text.split(":")]
        maker = parts.pop(0) if len(parts) > 1 and _MEMORY.fullmatch(parts[1]) else None
        what, *counts = parts
        if len(counts) > 1 or (counts and count is not None) or (maker is not None and not _NAME.fullmatch(maker)):
            raise spec_error(f"{_EXPECTED}, got {shown(text)}")
        number = _count(counts[0], text) if counts else positive_number(1 if count is None else count)
        if _MEMORY.fullmatch(what):
            memory = parse_memory(what)
            return cls(memory=memory, count=number, manufacturer=maker.lower() if maker else None)
        if not _NAME.fullmatch(what):
            raise spec_error(f"{_EXPECTED}, got {shown(text)}")
        return cls(name=what, count=number)

    def __str__(self) -> str:
        what = self.name or ""
        if self.memory is not None:
            size = f"{format_number(self.memory.value)}GB" + ("+" if self.memory.at_least else "")
            what = f"{self.manufacturer}:{size}" if self.manufacturer else size
        return what if self.count == 1 else f"{what}:{format_number(self.count)}"


@attrs.frozen(kw_only=True)
class Accelerators:
    """The accelerators that would do: one, several in order of preference, or any of several (then sorted by text)."""

    options: tuple[Accelerator, ...]
    ordered: bool = False


def parse_accelerators(value: object) -> Accelerators | None:
    """None, one text, a map {name: count}, a list (preference), a set or map (any). InvalidSpecError else."""
    if value is None:
        return None
    if isinstance(value, Accelerators):
        value = value.options if value.ordered else set(value.options)
    if isinstance(value, (Accelerator, str)):
        return _from_text(str(value))
    if isinstance(value, Mapping):
        return _any_of([_entry(key, count) for key, count in value.items()])
    if isinstance(value, (set, frozenset)):
        return _any_of([_item(index, item) for index, item in enumerate(value)])
    if not isinstance(value, (list, tuple)):
        raise spec_error(f"{_EXPECTED}, got {shown(value)}")
    found = _any_of(options := [_item(index, item) for index, item in enumerate(value)])
    return found if len(found.options) == 1 else Accelerators(options=tuple(dict.fromkeys(options)), ordered=True)


def _from_text(text: str) -> Accelerators:
    """SkyPilot also reads the text of a map or set, "{A100:1, V100:1}", as YAML tools sometimes leave it."""
    stripped = text.strip()
    if stripped.startswith("{") and stripped.endswith("}"):
        parts: Iterable[str] = (part.strip().strip("'\"") for part in stripped[1:-1].split(",") if part.strip())
        return _any_of(Accelerator.parse(re.sub(r"\s*:\s*", ":", part)) for part in parts)
    return Accelerators(options=(Accelerator.parse(stripped),))


def _any_of(found: Iterable[Accelerator]) -> Accelerators:
    options = tuple(sorted(set(found), key=str))
    if not options:
        raise spec_error(f"{_EXPECTED}, got an empty collection")
    return Accelerators(options=options)


def _entry(key: object, count: object) -> Accelerator:
    with within(str(key)):
        return Accelerator.parse(key, count=None if count is None else positive_number(count))


def _item(index: int, item: object) -> Accelerator:
    with within(index):
        return Accelerator.parse(str(item) if isinstance(item, Accelerator) else item)


def _count(text: str, whole: str) -> float:
    amount = parse_amount(text)
    if amount.at_least:
        raise spec_error(f"{_EXPECTED}, got {shown(whole)}")
    return amount.value
