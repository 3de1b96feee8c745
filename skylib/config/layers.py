"""Layers of configuration, each value with its origin, and how they merge. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import attrs

__all__ = ["Layer", "Origin", "Setting", "leaves", "located", "merge", "plain"]


@attrs.frozen(kw_only=True)
class Origin:
    """Where a value was written. source: a file, "$VARIABLE", "Client(config=...)" or "default"."""

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}, line {self.line}"


@attrs.frozen(kw_only=True)
class Setting:
    """A value and its origin. value: a Layer where a map was written, else a scalar or list."""

    value: object
    origin: Origin


Layer = dict[str, Setting]


def located(values: Mapping[str, object], origin: Origin) -> Layer:
    """A plain nested mapping as a layer of one origin."""
    return {
        key: Setting(value=located(value, origin) if isinstance(value, Mapping) else value, origin=origin)
        for key, value in values.items()
    }


def merge(base: Layer, over: Layer) -> Layer:
    """`over` on `base`: maps merge key by key, everything else, lists included, replaces. Neither is changed."""
    merged = dict(base)
    for key, setting in over.items():
        below = merged.get(key)
        if below is not None and isinstance(below.value, dict) and isinstance(setting.value, dict):
            setting = Setting(value=merge(below.value, setting.value), origin=setting.origin)
        merged[key] = setting
    return merged


def leaves(layer: Layer, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Setting]]:
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
