"""From the loose forms of YAML and constructors to the fields' types. Raise InvalidSpecError without a field's name."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from skylib.models.frozen_map import FrozenMap, freeze
from skylib.models.spec_errors import Path, check_keys, kind_of, shown, spec_error, within

__all__ = [
    "any_text",
    "boolean",
    "choice",
    "env_map",
    "env_name",
    "env_text",
    "frozen_records",
    "frozen_tree",
    "open_map",
    "optional_text",
    "path_text",
    "script",
    "text",
    "text_map",
]

T = TypeVar("T")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_UNUSABLE = re.compile("[\0\ud800-\udfff]")


def any_text(value: object) -> str:
    """Text that can reach a node: no NUL and no lone surrogate in it. May be empty."""
    if not isinstance(value, str):
        raise spec_error(f"expected text, got {shown(value)}")
    if _UNUSABLE.search(value):
        raise spec_error("the text holds a NUL or a lone surrogate, which no shell can be given")
    return value


def text(value: object) -> str:
    """Text of at least one character that is not a blank."""
    if not any_text(value).strip():
        raise spec_error("expected text, got an empty one")
    return str(value)


def optional_text(value: str | None) -> str | None:
    """None, or a text as it is; InvalidSpecError for anything else."""
    return None if value is None else text(value)


def path_text(value: object) -> str:
    """A path or URL as text; os.PathLike is taken, too."""
    return text(os.fspath(value) if isinstance(value, os.PathLike) else value)


def boolean(value: object) -> bool:
    """True or False as they are; InvalidSpecError for anything else."""
    if not isinstance(value, bool):
        raise spec_error(f"expected true or false, got {shown(value)}")
    return value


def choice(value: object, among: tuple[str, ...]) -> str:
    """One of `among`, whatever its case."""
    if not isinstance(value, str) or value.lower() not in among:
        raise spec_error(f"expected one of {', '.join(among)}, got {shown(value)}")
    return value.lower()


def script(value: str | Iterable[str] | None) -> str | None:
    """A bash script: text, or a list of lines that are joined."""
    if value is None:
        return None
    if isinstance(value, (list, tuple)):
        lines = []
        for index, line in enumerate(value):
            with within(index):
                lines.append(any_text(line))
        return "\n".join(lines)
    return any_text(value)


def env_name(name: object) -> str:
    """A name that bash can export."""
    if not isinstance(name, str) or not _ENV_NAME.fullmatch(name):
        raise spec_error(
            f"{shown(name)} is no name for a variable", hint="letters, digits and '_', not beginning with a digit"
        )
    return name


def env_text(value: object) -> str:
    """A variable's value: text as it is, numbers and booleans as Python's str() has them (as SkyPilot does).

    The value is never part of an error's message: it may be a secret.
    """
    if isinstance(value, str):
        return any_text(value)
    if isinstance(value, (bool, int, float)):
        return str(value)
    raise spec_error(f"expected text or a number, got {kind_of(value)}")


def env_map(value: object) -> FrozenMap[str, str]:
    """Variables by name: names that bash can export, values through env_text. None is the empty one."""
    found = text_map(value, env_text, kind="a map of variables")
    for name in found:
        with within(name):
            env_name(name)
    return found


def text_map(value: object, convert: Callable[[object], T], *, kind: str = "a map") -> FrozenMap[str, T]:
    """A map with text for keys, each value through `convert`; None is the empty one."""
    if value is None:
        return FrozenMap()
    if not isinstance(value, Mapping):
        raise spec_error(f"expected {kind}, got {kind_of(value)}")
    found: dict[str, T] = {}
    for key, inner in value.items():
        with within(str(key)):
            found[text(key)] = convert(inner)
    return FrozenMap(found)


def open_map(value: Mapping[str, object] | None) -> FrozenMap[str, object]:
    """A map whose inside nobody here knows; frozen all the way down. None is the empty one."""
    if value is None:
        return FrozenMap()
    if not isinstance(value, Mapping):
        raise spec_error(f"expected a map, got {kind_of(value)}")
    _check_plain(value, ())
    frozen = freeze(value)
    return frozen if isinstance(frozen, FrozenMap) else FrozenMap()


def frozen_tree(value: object, known: Mapping[str, object]) -> FrozenMap[str, object]:
    """A map of which the keys are known: `known` has None, or the keys of the map below, for each key."""
    if not isinstance(value, Mapping):
        raise spec_error(f"expected a map, got {kind_of(value)}")
    check_keys(value, known)
    for key, inner in value.items():
        below = known[key]
        if isinstance(below, Mapping) and isinstance(inner, Mapping):
            with within(key):
                frozen_tree(inner, below)
    return open_map(value)


def frozen_records(value: object, known: Mapping[str, object]) -> tuple[FrozenMap[str, object], ...]:
    """A list of maps with known keys."""
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        raise spec_error(f"expected a list of maps, got {kind_of(value)}")
    found = []
    for index, item in enumerate(value):
        with within(index):
            found.append(frozen_tree(item, known))
    return tuple(found)


def _check_plain(value: object, path: Path) -> None:
    """Only what YAML can hold, with text for keys, so that the model is hashable and prints."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise spec_error(f"keys are text, not {kind_of(key)}", *path)
            with within(*path):
                any_text(key)
            _check_plain(inner, (*path, key))
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            _check_plain(inner, (*path, index))
    elif isinstance(value, str):
        with within(*path):
            any_text(value)
    elif (value is not None and not isinstance(value, (bool, int, float))) or value != value:
        raise spec_error(f"expected text, a number, a boolean, a list or a map, got {kind_of(value)}", *path)
