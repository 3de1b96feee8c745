"""InvalidSpecError with a path: raised deep inside a spec, completed with its place on the way out.

`path` is the place from the spec's root, map keys as str and list positions as int; `field` is the same as dotted text
("resources.any_of[1].cpus"). `reason` is the message without the place, so that outer layers can add theirs.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import attrs

from skylib.errors import InvalidSpecError

__all__ = ["Path", "check_keys", "dotted", "kind_of", "place_errors", "shown", "spec_error", "within"]

Path = tuple[str | int, ...]

_KINDS = {dict: "a map", list: "a list", tuple: "a list", str: "text", bool: "a boolean", int: "an integer"}


def dotted(path: Path) -> str:
    """`("resources", "any_of", 1, "cpus")` as `resources.any_of[1].cpus`; keys that are no plain words in brackets."""
    text = ""
    for step in path:
        if isinstance(step, str) and step.replace("_", "a").isalnum():
            text += f".{step}" if text else step
        else:
            text += f"[{step}]"
    return text


def kind_of(value: object) -> str:
    """What a wrong value is, in the words of YAML; never the value itself."""
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        return "a map"
    return _KINDS.get(type(value), "a number" if isinstance(value, float) else type(value).__name__)


def shown(value: object) -> str:
    """A wrong value for a message: scalars as they are, at most 60 characters; containers by kind."""
    if value is None or isinstance(value, (Mapping, list, tuple, set, frozenset)):
        return kind_of(value)
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def spec_error(reason: str, *path: str | int, hint: str | None = None) -> InvalidSpecError:
    """The error of a wrong value at `path`. Facts: field, path, reason, hint; file and line are added by the reader."""
    field = dotted(path)
    return InvalidSpecError(
        f"{field}: {reason}" if field else reason, field=field or None, path=path, reason=reason, hint=hint
    )


@contextmanager
def within(*prefix: str | int) -> Iterator[None]:
    """Put `prefix` in front of the path of any InvalidSpecError that leaves the block."""
    try:
        yield
    except InvalidSpecError as error:
        inner: Path = getattr(error, "path", ())
        reason: str = getattr(error, "reason", error.message)
        raise spec_error(reason, *prefix, *inner, hint=error.hint) from error.__cause__


def check_keys(found: Collection[str], known: Collection[str]) -> None:
    """Raise InvalidSpecError for the first key of `found` that is not `known`, with the nearest one that is."""
    for key in found:
        if key in known:
            continue
        if not isinstance(key, str):
            raise spec_error(f"keys are text, not {kind_of(key)}")
        near = difflib.get_close_matches(key.lower(), sorted(known), n=1, cutoff=0.5)
        if near:
            raise spec_error(f"unknown key, the nearest valid one is '{near[0]}'", key, hint=f"did you mean '{near[0]}'?")
        raise spec_error("unknown key", key, hint="valid here: " + ", ".join(sorted(known)))


def place_errors(cls: type, fields: list[attrs.Attribute[Any]]) -> list[attrs.Attribute[Any]]:
    """An attrs field_transformer: an InvalidSpecError from a field's converter carries the field's name in its path."""
    return [field if field.converter is None else _placed(field) for field in fields]


def _placed(field: attrs.Attribute[Any]) -> attrs.Attribute[Any]:
    convert, name = field.converter, field.name

    def placed(value: object) -> object:
        with within(name):
            return convert(value)  # type: ignore[operator, misc]

    return field.evolve(converter=placed)
