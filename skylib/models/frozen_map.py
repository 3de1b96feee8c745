"""FrozenMap: a mapping that can be a field of a frozen, hashable model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

__all__ = ["FrozenMap", "PlacedMap", "freeze", "map_strings", "thaw"]

K = TypeVar("K")
V = TypeVar("V")


class FrozenMap(Mapping[K, V]):
    """An immutable mapping: keeps its order for printing, compares and hashes without regard to it.

    Hashable when its values are. Equal to any mapping with the same items.
    """

    __slots__ = ("_hash", "_items")

    def __init__(self, items: Mapping[K, V] | Iterable[tuple[K, V]] = ()) -> None:
        self._items: dict[K, V] = dict(items)
        self._hash: int | None = None

    def __getitem__(self, key: K) -> V:
        return self._items[key]

    def __iter__(self) -> Iterator[K]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash(frozenset(self._items.items()))
        return self._hash

    def __repr__(self) -> str:
        return repr(self._items)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self._items,)


class PlacedMap(FrozenMap[str, V]):
    """A FrozenMap that was read from a file. lines: of its keys and of those below, by path; not compared."""

    __slots__ = ("file", "lines")

    def __init__(self, items: Mapping[str, V], *, file: str, lines: Mapping[tuple[str | int, ...], int]) -> None:
        super().__init__(items)
        self.file = file
        self.lines = dict(lines)

    def __reduce__(self) -> tuple[object, ...]:
        return _placed, (self._items, self.file, self.lines)


def _placed(items: Mapping[str, V], file: str, lines: Mapping[tuple[str | int, ...], int]) -> PlacedMap[V]:
    return PlacedMap(items, file=file, lines=lines)


def freeze(value: object) -> object:
    """Maps to FrozenMap and lists to tuples, all the way down; scalars stay."""
    if isinstance(value, Mapping):
        return FrozenMap({key: freeze(inner) for key, inner in value.items()})
    if isinstance(value, (list, tuple)):
        return tuple(freeze(inner) for inner in value)
    return value


def thaw(value: object) -> object:
    """The inverse of `freeze`: plain dicts and lists, as YAML and JSON writers want them."""
    if isinstance(value, Mapping):
        return {key: thaw(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [thaw(inner) for inner in value]
    return value


def map_strings(value: object, change: Callable[[str], str]) -> object:
    """`value` with every text in it changed, the keys of maps included; the containers' kinds stay."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, FrozenMap):
        return FrozenMap({map_strings(key, change): map_strings(inner, change) for key, inner in value.items()})
    if isinstance(value, Mapping):
        return {map_strings(key, change): map_strings(inner, change) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map_strings(inner, change) for inner in value)
    return value
