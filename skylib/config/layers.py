"""Layers of configuration, each value with its origin, and how they merge. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import attrs

__all__ = ["Layer", "Origin", "Setting", "leaves", "located", "merge", "placed", "plain"]

Path = tuple[str, ...]


@attrs.frozen(kw_only=True)
class Origin:
    """Where a value was written. source: a file, "database host/name", "$VARIABLE", "Client(config=...)" or "default".

    quiet: nothing that stands there may be quoted: the line holds a URL, and with it perhaps a password.
    """

    source: str
    line: int | None = None
    quiet: bool = attrs.field(default=False, eq=False, repr=False)

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}, line {self.line}"


def _shown(value: object) -> str:
    """A URL may hold a password."""
    text = repr(value)
    return "<redacted>" if "://" in text and not isinstance(value, dict) else text


@attrs.frozen(kw_only=True)
class Setting:
    """A value and its origin. value: a Layer where a map was written, else a scalar or list; of `db`, a Secret."""

    value: object = attrs.field(repr=_shown)
    origin: Origin


Layer = dict[str, Setting]


def located(values: Mapping[str, object], origin: Origin) -> Layer:
    """A plain nested mapping as a layer of one origin."""
    return placed(values, lambda path: origin)


def placed(values: Mapping[str, object], origin_of: Callable[[Path], Origin], _above: Path = ()) -> Layer:
    """A plain nested mapping as a layer; origin_of: by the path of each key."""
    found: Layer = {}
    for key, value in values.items():
        path = (*_above, key)
        inner = placed(value, origin_of, path) if isinstance(value, Mapping) else value
        found[key] = Setting(value=inner, origin=origin_of(path))
    return found


def merge(base: Layer, over: Layer) -> Layer:
    """`over` on `base`: maps merge key by key, everything else, lists included, replaces. Neither is changed."""
    merged = dict(base)
    for key, setting in over.items():
        below = merged.get(key)
        if below is not None and isinstance(below.value, dict) and isinstance(setting.value, dict):
            setting = Setting(value=merge(below.value, setting.value), origin=setting.origin)
        merged[key] = setting
    return merged


def leaves(layer: Layer, prefix: Path = ()) -> Iterator[tuple[Path, Setting]]:
    """Every setting that is no map, with its path, in order."""
    for key, setting in layer.items():
        if isinstance(setting.value, dict):
            yield from leaves(setting.value, (*prefix, key))
        else:
            yield (*prefix, key), setting


def plain(layer: Layer) -> dict[str, object]:
    """The values alone; the inverse of `located`."""
    return {
        key: plain(setting.value) if isinstance(setting.value, dict) else setting.value for key, setting in layer.items()
    }
