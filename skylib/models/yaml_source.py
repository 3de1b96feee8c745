"""YAML documents as plain values that remember their lines; and back to text.

Reading is stricter than PyYAML's safe_load and needs none of its constructors for containers: duplicate keys are
refused, keys are always the text that was written (`123: x` has the key "123", `~: x` the key "~"), dates and base-60
numbers (`12:30`) stay text, and only YAML's own simple tags exist, beside one of ours: `!verbatim`, for text in which
`$NAME` is not to be replaced. Documents that nest or repeat themselves without end are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from skylib.errors import InvalidSpecError
from skylib.models.spec_errors import Path, dotted

__all__ = ["Document", "Verbatim", "place_error", "read_documents", "write_document"]

_YAML = "tag:yaml.org,2002:"
_TEXT_TAGS = frozenset({"str", "timestamp", "value", "merge"})
_MOST_VALUES = 100_000
_LONGEST_NUMBER = 400
_BREAKS = "\r\x85\u2028\u2029\ufeff"  # what PyYAML would fold or drop outside of double quotes


class Verbatim(str):
    """Text in which `$NAME` stands for itself."""

    __slots__ = ()


@attrs.frozen(kw_only=True)
class Document:
    """One document of a stream. lines: of the key or item at each path, counted from 1; the root's path is ()."""

    value: object
    lines: Mapping[Path, int]
    file: str

    def line_of(self, path: Path) -> int:
        """The line of the nearest place around `path` that is written in the document."""
        while path not in self.lines:
            path = path[:-1]
        return self.lines[path]


def place_error(error: InvalidSpecError, *, file: str, line: int) -> InvalidSpecError:
    """The same error with its place: in front of the message, and as `file` and `line`."""
    facts = {name: value for name, value in vars(error).items() if name not in ("message", "file", "line")}
    return InvalidSpecError(f"{file}:{line}: {error.message}", **facts, file=file, line=line)


def read_documents(text: str, *, file: str) -> list[Document]:
    """The documents of `text`, empty ones left out. `file` is for messages.

    Raises InvalidSpecError with file and line for what is no YAML, duplicate keys and unknown tags.
    """
    import yaml

    try:
        nodes = [node for node in yaml.compose_all(text, Loader=yaml.SafeLoader) if node is not None]
        found = [_Reader(file).document(node) for node in nodes]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        raise _error(f"this is no YAML: {reason}", file, mark.line + 1 if mark else 1) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise _error(f"this is no YAML: character #x{_code(error.character):04x} is not allowed", file, line) from None
    except RecursionError:
        raise _error("this nests too deeply", file, 1) from None
    return [document for document in found if document.value is not None]


def write_document(plain: Mapping[str, object]) -> str:
    """YAML text of one document; read_documents gives an equal value. Scripts become blocks where that is exact."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: object) -> bool:
            return True

    def text(dumper: Any, data: str) -> Any:
        odd = any(character in data for character in _BREAKS)
        style = '"' if odd else "|" if "\n" in data[:-1] and data[0] not in " \t\n" else None
        return dumper.represent_scalar(f"{_YAML}str", data, style=style)

    def verbatim(dumper: Any, data: Verbatim) -> Any:
        return dumper.represent_scalar("!verbatim", str(data), style='"')

    Dumper.add_representer(str, text)
    Dumper.add_representer(Verbatim, verbatim)
    written = yaml.dump(
        dict(plain), Dumper=Dumper, sort_keys=False, default_flow_style=False, allow_unicode=True, width=2**31
    )
    return str(written)


def _code(character: object) -> int:
    return ord(character) if isinstance(character, str) else int(str(character))


def _error(reason: str, file: str, line: int, path: Path = (), hint: str | None = None) -> InvalidSpecError:
    field = dotted(path) or None
    bare = InvalidSpecError(f"{field}: {reason}" if field else reason, field=field, path=path, reason=reason, hint=hint)
    return place_error(bare, file=file, line=line)


class _Reader:
    """Builds the value of one document from its nodes."""

    def __init__(self, file: str) -> None:
        import yaml

        self._file = file
        self._scalars = yaml.constructor.SafeConstructor()
        self._lines: dict[Path, int] = {}
        self._left = _MOST_VALUES
        self._open: set[int] = set()

    def document(self, node: Any) -> Document:
        self._lines[()] = node.start_mark.line + 1
        return Document(value=self._value(node, ()), lines=self._lines, file=self._file)

    def _value(self, node: Any, path: Path) -> object:
        self._left -= 1
        if self._left < 0:
            raise self._error("this repeats itself too often (aliases inside aliases)", node)
        if id(node) in self._open:
            raise self._error("this contains itself (an alias of what it is in)", node, path)
        kind = node.tag.removeprefix(_YAML)
        if isinstance(node.value, str):
            return self._scalar(node, kind, path)
        self._open.add(id(node))
        try:
            if kind in ("map", "set") and node.id == "mapping":
                return dict(self._items(node, path))
            if kind == "seq" and node.id == "sequence":
                return [self._item(inner, (*path, index)) for index, inner in enumerate(node.value)]
        finally:
            self._open.discard(id(node))
        raise self._error(f"the tag {node.tag} is not known here", node, path)

    def _item(self, node: Any, path: Path) -> object:
        self._lines[path] = node.start_mark.line + 1
        return self._value(node, path)

    def _items(self, node: Any, path: Path) -> Iterator[tuple[str, object]]:
        """Key and value of each entry: first what `<<` brings in, then the map's own, which win."""
        own: dict[str, int] = {}
        for key, inner in node.value:
            if key.tag == f"{_YAML}merge":
                for source in reversed(inner.value) if inner.id == "sequence" else [inner]:
                    if source.id != "mapping":
                        raise self._error("expected a map, or a list of maps, after <<", source, path)
                    yield from self._items(source, path)
        for key, inner in node.value:
            if key.tag == f"{_YAML}merge":
                continue
            name, line = self._key(key, path), key.start_mark.line + 1
            place = (*path, name)
            if name in own:
                reason = f"this key stands twice, in lines {own[name]} and {line}"
                raise self._error(reason, key, place, hint="keep one of them")
            own[name] = line
            self._forget(place)
            self._lines[place] = line
            yield name, self._value(inner, place)

    def _forget(self, path: Path) -> None:
        """Lines below a key that a merged map had and the own one replaces."""
        if path in self._lines:
            for known in [known for known in self._lines if known[: len(path)] == path]:
                del self._lines[known]

    def _key(self, node: Any, path: Path) -> str:
        if not isinstance(node.value, str):
            raise self._error("a key must be text", node, path)
        return Verbatim(node.value) if node.tag == "!verbatim" else node.value

    def _scalar(self, node: Any, kind: str, path: Path) -> object:
        text: Any = node.value
        if kind in _TEXT_TAGS or (kind in ("int", "float") and ":" in text):
            return text
        if kind == "!verbatim":
            return Verbatim(text)
        if kind == "null":
            return None
        build = {
            "bool": self._scalars.construct_yaml_bool,
            "int": self._scalars.construct_yaml_int,
            "float": self._scalars.construct_yaml_float,
        }.get(kind)
        if build is None:
            raise self._error(f"the tag {node.tag} is not known here", node, path)
        try:
            if len(text) > _LONGEST_NUMBER:
                raise ValueError(text)
            return build(node)
        except (ValueError, KeyError, IndexError):
            raise self._error(f"this is no {kind}", node, path) from None

    def _error(self, reason: str, node: Any, path: Path = (), hint: str | None = None) -> InvalidSpecError:
        return _error(reason, self._file, node.start_mark.line + 1, path, hint)
