"""One setting changed in a YAML text that a person wrote: everything else, comments and layout included, stays. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from skylib.config.document import read_document
from skylib.config.layers import plain
from skylib.config.places import Entry, Place, Root, comments_between, read_places
from skylib.errors import ConfigError

__all__ = ["changed"]

_PLAIN = re.compile(r"[\w./~-]+", re.ASCII)
_COMMA = re.compile(r"(?:[ \t\r\n]|#[^\n]*(?:\n|\Z))*(,)")


def changed(text: str, file: str, key: str, value: object) -> str:
    """`text` with the setting `key` ("section.name") at `value`; None takes it away.

    The result is read again, and is what was meant, with every comment that was there. Raises ConfigError that names
    the line to edit where the text's form (anchors, aliases, tags, lists) does not allow that; and for a text that is
    no valid configuration.
    """
    import yaml

    section, name = key.split(".")
    before = plain(read_document(text, file))
    wanted = _wanted(before, section, name, value)
    if _same(before, wanted):
        return text
    root = read_places(text)
    try:
        new = _without(text, root, section, name) if value is None else _with(text, root, section, name, _written(value))
        kept = new is not None and _comments(new) == _comments(text)
        if new is not None and kept and _same(plain(read_document(new, file)), wanted):
            return new
    except (ConfigError, yaml.YAMLError):
        pass
    line = _line(root, section, name)
    what = f"take {name} out of {section}" if value is None else f"write {name}: {_written(value)} under {section}"
    raise ConfigError(
        f"{file}, line {line}: {key} cannot be changed here without losing what else is written",
        file=file,
        line=line,
        key=key,
        hint=f"{what} yourself; nothing was changed",
    )


def _wanted(before: Mapping[str, object], section: str, name: str, value: object) -> dict[str, object]:
    content = before.get(section)
    settings = dict(content) if isinstance(content, Mapping) else {}
    settings.pop(name, None)
    return {**before, section: settings if value is None else {**settings, name: value}}


def _same(one: Mapping[str, object], other: Mapping[str, object]) -> bool:
    """Equal in value and type, whether an empty section is written or not."""
    left, right = ({key: value for key, value in each.items() if value not in (None, {})} for each in (one, other))
    return json.dumps(left, sort_keys=True, default=repr) == json.dumps(right, sort_keys=True, default=repr)


def _comments(text: str) -> list[str]:
    return sorted(each.rstrip() for each in comments_between(text, 0, len(text), read_places(text)))


def _written(value: object) -> str:
    """A scalar for a block and for a flow map."""
    import yaml

    style = '"' if isinstance(value, str) and not _PLAIN.fullmatch(value) else None
    dumped = yaml.safe_dump([value], default_flow_style=True, default_style=style, allow_unicode=True, width=2**31)
    return str(dumped).strip()[1:-1]


def _line(root: Root, section: str, name: str) -> int:
    """The nearest line to the setting."""
    at = root.value.entry(section) if root.value else None
    inner = at.value.entry(name) if at else None
    return (inner or at).key.line if inner or at else root.value.line if root.value else 1  # type: ignore[union-attr]


def _with(text: str, root: Root, section: str, name: str, new: str) -> str | None:
    """The text with the setting; None where its form is not known here."""
    top = root.value
    whole = f"{{{section}: {{{name}: {new}}}}}"
    if top is None or top.empty:
        return _append(text, root, "", f"{section}:", f"  {name}: {new}")
    if top.kind == "scalar":
        return _put(text, top, whole)
    at = top.entry(section)
    if at is None and top.flow:
        return _add_to_flow(text, top, whole[1:-1])
    if at is None:
        return _append(text, root, " " * top.column, f"{section}:", f"{_step(top)}{name}: {new}")
    if at.value.empty:
        return _fill(text, top, at, f"{name}: {new}")
    if at.value.kind == "scalar":
        return _put(text, at.value, f"{{{name}: {new}}}")
    if at.value.kind != "map":
        return None
    entry = at.value.entry(name)
    if entry is not None:
        return _put(text, entry.value, new) if entry.value.kind == "scalar" else None
    if at.value.flow:
        return _add_to_flow(text, at.value, f"{name}: {new}")
    return _insert(text, at.value.end, " " * at.value.column + f"{name}: {new}")


def _without(text: str, root: Root, section: str, name: str) -> str | None:
    at = root.value.entry(section) if root.value else None
    entry = at.value.entry(name) if at else None
    if at is None or entry is None or entry.value.kind not in ("scalar", "alias"):
        return None
    return _take_from_flow(text, at.value, entry) if at.value.flow else _take_lines(text, root, entry)


def _put(text: str, place: Place, new: str) -> str | None:
    """`new` in the place of a scalar. A comment behind the `|` of a literal block stays behind the value."""
    old = text[place.start : place.end]
    if old[:1] in ("&", "!"):
        return None
    if place.block:
        head, _, _ = old.partition("\n")
        comment = re.search(r"\s+#.*", head)
        new += (comment[0] if comment else "") + old[len(old.rstrip()) :]
    return text[: place.start] + new + text[place.end :]


def _fill(text: str, top: Place, at: Entry, content: str) -> str:
    """The first setting of a section that is written without any."""
    if not top.flow:
        return _insert(text, at.value.start, " " * top.column + _step(top) + content)
    colon = "" if ":" in text[at.key.end : at.value.start] else ":"
    return f"{text[: at.value.start]}{colon} {{{content}}}{text[at.value.start :]}"


def _add_to_flow(text: str, place: Place, content: str) -> str:
    if not place.entries:
        end = place.end - 1
        return text[:end] + content + text[end:]
    last = place.entries[-1]
    at = max(last.key.end, last.value.end)
    return f"{text[:at]}, {content}{text[at:]}"


def _append(text: str, root: Root, pad: str, *lines: str) -> str:
    """Lines at the end of the document."""
    head = text[: root.end]
    broken = "" if not head or head.endswith("\n") else _break(text)
    return head + broken + "".join(f"{pad}{line}{_break(text)}" for line in lines) + text[root.end :]


def _insert(text: str, at: int, line: str) -> str:
    """A line of its own behind the line of `at`."""
    begins = at if text[at - 1 : at] == "\n" else text.find("\n", at) + 1
    if begins <= 0:
        return f"{text}{_break(text)}{line}{_break(text)}"
    return f"{text[:begins]}{line}{_break(text)}{text[begins:]}"


def _take_lines(text: str, root: Root, entry: Entry) -> str:
    """Without the lines of an entry of a block; comments on them stay, each on a line."""
    start = text.rfind("\n", 0, entry.key.start) + 1
    at = max(entry.key.end, entry.value.end)
    end = at if text[at - 1 : at] == "\n" else text.find("\n", at) + 1 or len(text)
    pad = " " * entry.key.column
    head = text[start : entry.key.start]
    if head.strip():
        return text  # `? key`, or a map that begins on the line of what it is in
    kept = "".join(f"{pad}{comment}{_break(text)}" for comment in comments_between(text, start, end, root))
    return text[:start] + kept.replace("\r\r", "\r") + text[end:]


def _take_from_flow(text: str, place: Place, entry: Entry) -> str:
    """Without an entry and the comma that goes with it; what stands between them stays."""
    start, end = entry.key.start, max(entry.key.end, entry.value.end)
    comma = _COMMA.match(text, end)
    if comma is not None:
        gap, rest = text[end : comma.start(1)], text[comma.end(1) :]
        tidy = rest.lstrip(" ") if not rest.lstrip(" ").startswith("#") else rest
        return text[:start] + gap.lstrip(" ") + tidy
    number = place.entries.index(entry)
    if number == 0:
        return text[:start] + text[end:]
    before = place.entries[number - 1]
    comma = _COMMA.match(text, max(before.key.end, before.value.end))
    if comma is None:
        return text
    return text[: comma.start(1)] + text[comma.end(1) : start].rstrip(" ") + text[end:]


def _step(top: Place) -> str:
    """How deep sections are indented in this file."""
    for entry in top.entries:
        if entry.value.kind == "map" and not entry.value.flow and entry.value.column > top.column:
            return " " * (entry.value.column - top.column)
    return "  "


def _break(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"
