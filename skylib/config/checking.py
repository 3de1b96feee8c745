"""A layer against the schema: every key known, every value of its type and in its bounds. Pure."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping

from skylib.config.layers import Layer, Origin, Setting
from skylib.config.schema import DATABASE, SECTIONS, Key, keys
from skylib.errors import ConfigError
from skylib.models.spec_errors import kind_of, shown

__all__ = ["checked", "known_key", "known_keys", "nearest", "quoted", "refused", "refused_database"]

_ELSEWHERE = "db belongs in config.yaml of the home, $SKYLIB_DB or Client(config=...)"


def known_keys() -> dict[str, Key]:
    """The schema's settings by name, without `db`."""
    return {key.name: key for key in keys()}


def known_key(name: str) -> Key:
    """The setting of that name. Raises ConfigError, with the nearest one, when there is none."""
    known = known_keys()
    if not isinstance(name, str):
        raise ConfigError(f"a configuration key is text, as 'ssh.keepalive_s', not {kind_of(name)}", key=None)
    if name not in known:
        raise ConfigError(f"no configuration key {quoted(name)}{nearest(name, known)}", key=_key_fact(name))
    return known[name]


def checked(layer: Layer, *, per_task: bool = False) -> Layer:
    """The layer with its values in the schema's types. per_task: only with keys that a task may have.

    Raises ConfigError (facts: file, line, key) on the first key or value that is wrong, and on `db`.
    """
    known = known_keys()
    found: Layer = {}
    for section, setting in layer.items():
        if not isinstance(section, str):
            raise refused(setting.origin, None, f"keys are text, not {kind_of(section)}")
        if section == DATABASE.name:
            raise refused_database(setting.origin)
        if section not in SECTIONS:
            raise _unknown(setting.origin, section, SECTIONS)
        content = {} if setting.value is None else setting.value
        if not isinstance(content, dict):
            what = _shown(content, setting.origin)
            raise refused(setting.origin, section, f"{section!r} is a map of settings, not {what}")
        for name, inner in content.items():
            if f"{section}.{name}" not in known:
                raise _unknown(inner.origin, f"{section}.{name}", known)
            if per_task and not known[f"{section}.{name}"].per_task:
                raise _not_per_task(inner.origin, f"{section}.{name}", known)
        values = {name: _setting(known[f"{section}.{name}"], inner) for name, inner in content.items()}
        found[section] = Setting(value=values, origin=setting.origin)
    return found


def _setting(key: Key, found: Setting) -> Setting:
    name, value = key.name, found.value
    if key.kind is float and type(value) is int and abs(value) < 2**63:
        value = float(value)
    if type(value) is not key.kind or (isinstance(value, float) and not math.isfinite(value)):
        raise refused(found.origin, name, f"{name} is {_kind(key)}, not {_shown(found.value, found.origin)}")
    if key.choices and value not in key.choices:
        what = _shown(value, found.origin)
        raise refused(found.origin, name, f"{name} is one of {', '.join(key.choices)}, not {what}")
    if isinstance(value, (int, float)):
        if key.minimum is not None and value < key.minimum:
            raise refused(found.origin, name, f"{name} is at least {key.minimum:g}, not {_number(value)}")
        if key.maximum is not None and value > key.maximum:
            raise refused(found.origin, name, f"{name} is at most {key.maximum:g}, not {_number(value)}")
    return Setting(value=value, origin=found.origin)


def _number(value: float) -> str:
    """Whole numbers may be too long to be written, or to be a float."""
    return f"{value:g}" if abs(value) < 2**63 else "a number that large" if value > 0 else "a number that small"


def _kind(key: Key) -> str:
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[key.kind]


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name."""
    valid = list(known)
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"; the nearest valid one is {near[0]!r}" if near else f"; valid ones: {', '.join(valid)}"


def quoted(name: str, origin: Origin | None = None) -> str:
    """A name from outside for a message; a URL, or what shares a line with one, is not shown unless it is ours."""
    ours = name in SECTIONS or name == DATABASE.name or name in known_keys()
    quiet = not ours and ("://" in name or (origin is not None and origin.quiet))
    return "<redacted>" if quiet else repr(name)


def refused(origin: Origin, key: str | None, problem: str, *, hint: str | None = None) -> ConfigError:
    """The error for what is written there."""
    fact = None if key is None else _key_fact(key, origin)
    return ConfigError(f"{origin}: {problem}", file=origin.source, line=origin.line, key=fact, hint=hint)


def refused_database(origin: Origin) -> ConfigError:
    """The error for `db` where it cannot stand."""
    return refused(origin, DATABASE.name, "'db' cannot be set here", hint=_ELSEWHERE)


def _unknown(origin: Origin, name: str, known: Iterable[str]) -> ConfigError:
    valid = [*known, DATABASE.name] if "." not in name else known
    return refused(origin, name, f"unknown key {quoted(name, origin)}{nearest(name, valid)}")


def _not_per_task(origin: Origin, name: str, known: Mapping[str, Key]) -> ConfigError:
    valid = ", ".join(key.name for key in known.values() if key.per_task)
    hint = f"set it in config.yaml, or with client.config.set; a task may have {valid}"
    return refused(origin, name, f"{name} holds for all tasks of a home, a task cannot set it", hint=hint)


def _key_fact(name: str, origin: Origin | None = None) -> str | None:
    return None if quoted(name, origin) == "<redacted>" else name


def _shown(value: object, origin: Origin) -> str:
    text = _number(value) if type(value) is int and value.bit_length() > 10_000 else shown(value)
    return "<redacted>" if isinstance(value, str) and (origin.quiet or "://" in value) else text
