"""The places of a YAML text: what stands where, with aliases, comments and empty values as they are written.

PyYAML's nodes say where an alias's target is, not the alias, and a block's end only where the next thing begins; so the
tree is made of its events.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import attrs

__all__ = ["Entry", "Place", "Root", "comments_between", "read_places"]

_COMMENT = re.compile(r"#[^\n\r\x85\u2028\u2029]*")


@attrs.frozen(kw_only=True)
class Place:
    """One value. kind: "map", "seq", "scalar" or "alias". start, end: of its text, properties such as anchors included.

    end: behind the last character of what it holds; of a literal block behind its last line break. text: of a scalar.
    """

    kind: str
    start: int
    end: int
    line: int
    column: int
    flow: bool = False
    block: bool = False
    text: str = ""
    entries: tuple[Entry, ...] = ()
    items: tuple[Place, ...] = ()

    @property
    def inner(self) -> Iterator[Place]:
        """Keys and values of a map, items of a sequence."""
        yield from self.items
        for entry in self.entries:
            yield entry.key
            yield entry.value

    @property
    def empty(self) -> bool:
        """Nothing is written there."""
        return self.kind == "scalar" and self.start == self.end

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Of every scalar in it, in order; of a literal block without its first line, which may end in a comment."""
        if self.kind in ("scalar", "alias"):
            first_break = text.find("\n", self.start, self.end)
            yield (first_break if self.block and first_break >= 0 else self.start), self.end
        for inner in self.inner:
            yield from inner.spans(text)

    def entry(self, key: str) -> Entry | None:
        """The entry of a map with that key."""
        return next((each for each in self.entries if each.key.kind == "scalar" and each.key.text == key), None)


@attrs.frozen(kw_only=True)
class Entry:
    """One entry of a map."""

    key: Place
    value: Place


@attrs.frozen(kw_only=True)
class Root:
    """A document. value: None when nothing is in it. end: where more can be written: before `...`, else the text's end."""

    value: Place | None
    end: int


def read_places(text: str) -> Root:
    """The places of the one document of a text that is valid YAML. Raises yaml.YAMLError when it is not."""
    import yaml

    events: Iterator[Any] = iter(list(yaml.parse(text, Loader=yaml.SafeLoader)))
    value: Place | None = None
    end = len(text)
    for event in events:
        if isinstance(event, yaml.DocumentEndEvent):
            end = _at(event.start_mark) if event.explicit else len(text)
        elif not isinstance(event, (yaml.StreamStartEvent, yaml.StreamEndEvent, yaml.DocumentStartEvent)):
            value = _place(event, events)
    return Root(value=value, end=end)


def comments_between(text: str, start: int, end: int, root: Root) -> list[str]:
    """The comments in that stretch of the document, in order."""
    found = []
    at = start
    for begins, ends in [*(root.value.spans(text) if root.value else ()), (end, end)]:
        if begins >= at:
            found += _COMMENT.findall(text, at, min(begins, end))
        at = max(at, ends)
        if at >= end:
            break
    return found


def _at(mark: Any) -> int:
    return int(mark.index)


def _place(event: Any, events: Iterator[Any]) -> Place:
    import yaml

    end = _at(event.end_mark)
    if isinstance(event, yaml.AliasEvent):
        return _made("alias", event, end)
    if isinstance(event, yaml.ScalarEvent):
        return _made("scalar", event, end, text=event.value, block=event.style in ("|", ">"))
    items: list[Place] = []
    for inner in events:
        if isinstance(inner, yaml.CollectionEndEvent):
            end = _at(inner.end_mark) if event.flow_style else max([end, *(item.end for item in items)])
            break
        items.append(_place(inner, events))
    flow = bool(event.flow_style)
    if isinstance(event, yaml.SequenceStartEvent):
        return _made("seq", event, end, flow=flow, items=tuple(items))
    entries = tuple(Entry(key=key, value=value) for key, value in zip(items[::2], items[1::2], strict=True))
    return _made("map", event, end, flow=flow, entries=entries)


def _made(kind: str, event: Any, end: int, **facts: Any) -> Place:
    mark = event.start_mark
    return Place(kind=kind, start=mark.index, end=end, line=mark.line + 1, column=mark.column, **facts)
