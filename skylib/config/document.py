"""YAML with line numbers: safe, duplicate keys refused, every value with the line that it stands on.

No error carries the text of the file, not even in its cause: a line may hold the URL of a database, with a password.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from skylib.config.layers import Layer, Origin, Setting, plain
from skylib.config.schema import DATABASE, SECTIONS
from skylib.errors import ConfigError
from skylib.models.secret import Secret
from skylib.models.spec_errors import kind_of, shown
from skylib.paths import read_small

if TYPE_CHECKING:
    import yaml

__all__ = ["read_document", "read_layer", "read_text"]

_PLAIN_TAGS = frozenset({"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"})
_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")
_MERGE_TAG = "tag:yaml.org,2002:merge"


def read_layer(path: Path) -> Layer:
    """The layer in a file; empty when there is no such file. Raises ConfigError with file and line."""
    return read_document(read_text(path), str(path))


def read_text(path: Path) -> str:
    """The text of a file, without a byte order mark; empty when there is no such file. Raises ConfigError, as read_small."""
    content = read_small(path) or b""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}, line {line}: not UTF-8", file=str(path), line=line) from None


def read_document(text: str, file: str) -> Layer:
    """The layer in a YAML text; every setting has the line of its key, `db` is a Secret. Raises ConfigError."""
    if not text.strip():
        return {}
    import yaml

    try:
        loader = yaml.SafeLoader(text)
        try:
            root = loader.get_single_node()
            if root is None:
                return {}
            found = _Reader(loader, file, text).value(root)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else None
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        hidden = line is not None and line in _lines_with_urls(text)
        raise _wrong(file, line, "not valid YAML" if hidden else f"not valid YAML: {problem}") from None
    except RecursionError:
        raise _wrong(file, None, "nested too deeply") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise _wrong(file, root.start_mark.line + 1, f"expected a map of settings, got {kind_of(found)}")
    url = found.get(DATABASE.name)
    if url is not None and isinstance(url.value, str):
        found[DATABASE.name] = Setting(value=Secret(url.value), origin=url.origin)
    return found


class _Reader:
    """Walks the nodes of one document; each node once, so that aliases cannot make it grow."""

    def __init__(self, loader: yaml.SafeLoader, file: str, text: str) -> None:
        self._loader = loader
        self._file = file
        self._quiet = _lines_with_urls(text)
        self._known: dict[int, object] = {}
        self._open: set[int] = set()

    def value(self, node: yaml.Node) -> object:
        """A Layer for a map, else the plain value."""
        import yaml

        if id(node) in self._known:
            return self._known[id(node)]
        if id(node) in self._open:
            raise _wrong(self._file, node.start_mark.line + 1, "a map or list that contains itself")
        if not isinstance(node, yaml.ScalarNode) and node.tag not in _PLAIN_TAGS:
            line = node.start_mark.line + 1
            what = "this tag" if line in self._quiet else f"the tag {node.tag}"
            raise _wrong(self._file, line, f"{what} is not taken")
        self._open.add(id(node))
        found: object
        if isinstance(node, yaml.MappingNode):
            found = self._map(node)
        elif isinstance(node, yaml.SequenceNode):
            items = [self.value(item) for item in node.value]
            found = [plain(item) if isinstance(item, dict) else item for item in items]
        else:
            found = self._scalar(node)
        self._open.discard(id(node))
        self._known[id(node)] = found
        return found

    def _scalar(self, node: yaml.Node) -> object:
        try:
            return self._loader.construct_object(node, deep=True)
        except (ValueError, TypeError, KeyError, IndexError) as error:
            line = node.start_mark.line + 1
            what = "" if line in self._quiet else f": {error}"
            raise _wrong(self._file, line, f"not a value{what}") from None

    def _map(self, node: yaml.MappingNode) -> Layer:
        found: Layer = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            quiet = line in self._quiet
            if key_node.tag == _MERGE_TAG:
                raise _wrong(self._file, line, "merge keys are not taken here: write the settings themselves", key="<<")
            key = self._scalar(key_node) if isinstance(key_node.value, str) else key_node.value
            if not isinstance(key, str):
                raise _wrong(self._file, line, f"keys are text{'' if quiet else f', not {shown(key)}'}")
            if key in found:
                first, known = found[key].origin.line, key in (*SECTIONS, DATABASE.name)
                name, fact = ("this key", None) if quiet and not known else (repr(key), key)
                raise _wrong(self._file, line, f"{name} stands here and on line {first}", key=fact)
            found[key] = Setting(value=self.value(value_node), origin=Origin(source=self._file, line=line, quiet=quiet))
        return found


def _lines_with_urls(text: str) -> frozenset[int]:
    """The lines, as YAML counts them, that may not be quoted."""
    return frozenset(number for number, line in enumerate(_BREAK.split(text), 1) if "://" in line)


def _wrong(file: str, line: int | None, problem: str, *, key: str | None = None) -> ConfigError:
    place = file if line is None else f"{file}, line {line}"
    return ConfigError(f"{place}: {problem}", file=file, line=line, key=key)
