"""The configuration of one home: files, environment and overrides, checked against the schema.

Later layers win: defaults, `<home>/config.yaml`, `./.sky.yaml`, `SKYLIB_*` variables, `Client(config=...)`.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from skylib.config.document import read_layer
from skylib.config.layers import Layer, Origin, Setting, leaves, located, merge
from skylib.config.schema import (
    SECTIONS,
    AgentConfig,
    Key,
    LocksConfig,
    LogsConfig,
    ProvisionConfig,
    RuntimeConfig,
    SshConfig,
    keys,
)
from skylib.errors import ConfigError
from skylib.models.spec_errors import shown
from skylib.paths import SkyHome

__all__ = ["Config", "Explained", "load_config"]

_OVERRIDES = Origin(source="Client(config=...)")
_DEFAULT = Origin(source="default")
_PROJECT_FILE = ".sky.yaml"
_PREFIX = "SKYLIB_"
_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@attrs.frozen(kw_only=True)
class Explained:
    """One key: its value, where that was written, what it would be otherwise, and what it means."""

    key: str
    value: object
    origin: Origin
    default: object
    meaning: str

    def __str__(self) -> str:
        return f"{self.key} = {self.value!r} (from {self.origin}; default {self.default!r}): {self.meaning}"


@attrs.frozen(kw_only=True)
class Config:
    """All settings, by section. `Config()` has the defaults."""

    ssh: SshConfig = attrs.field(factory=SshConfig)
    provision: ProvisionConfig = attrs.field(factory=ProvisionConfig)
    agent: AgentConfig = attrs.field(factory=AgentConfig)
    runtime: RuntimeConfig = attrs.field(factory=RuntimeConfig)
    locks: LocksConfig = attrs.field(factory=LocksConfig)
    logs: LogsConfig = attrs.field(factory=LogsConfig)
    _origins: Mapping[str, Origin] = attrs.field(factory=dict, eq=False, repr=False)

    def explain(self, key: str) -> Explained:
        """Where the value of a dotted key ("ssh.keepalive_s") comes from. Raises ConfigError on an unknown key."""
        known = {each.name: each for each in keys()}
        if key not in known:
            raise ConfigError(f"no configuration key {key!r}{_nearest(key, known)}", key=key)
        section, name = key.split(".")
        return Explained(
            key=key,
            value=getattr(getattr(self, section), name),
            origin=self._origins.get(key, _DEFAULT),
            default=known[key].default,
            meaning=known[key].meaning,
        )


def load_config(
    home: SkyHome,
    *,
    overrides: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Config:
    """Read and merge all layers.

    overrides: nested as the file is, {"ssh": {"keepalive_s": 5}}. environ, cwd: by default those of this process.
    Raises ConfigError (facts: file, line, key) on an unknown key, a wrong type, a value out of bounds, a duplicate key,
    a file that is no YAML map, and `db`, which is not supported yet.
    """
    known = {key.name: key for key in keys()}
    environment = os.environ if environ is None else environ
    merged: Layer = {}
    for layer in (
        read_layer(home.config),
        read_layer(_project_file(cwd)),
        _environment_layer(environment, known),
        located(overrides or {}, _OVERRIDES),
    ):
        merged = merge(merged, _checked(layer, known))
    values: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    origins: dict[str, Origin] = {}
    for (section, name), setting in leaves(merged):
        values[section][name] = setting.value
        origins[f"{section}.{name}"] = setting.origin
    return Config(
        origins=origins,
        ssh=SshConfig(**values["ssh"]),
        provision=ProvisionConfig(**values["provision"]),
        agent=AgentConfig(**values["agent"]),
        runtime=RuntimeConfig(**values["runtime"]),
        locks=LocksConfig(**values["locks"]),
        logs=LogsConfig(**values["logs"]),
    )


def _project_file(cwd: Path | None) -> Path:
    """Raises ConfigError when there is no current directory any more."""
    try:
        return (Path.cwd() if cwd is None else cwd) / _PROJECT_FILE
    except FileNotFoundError as error:
        raise ConfigError("the current directory is gone, so its .sky.yaml cannot be looked for", file=None) from error


def _environment_layer(environ: Mapping[str, str], known: Mapping[str, Key]) -> Layer:
    """Variables that are a key's, or look as if they were meant so; all other SKYLIB_* names belong to others."""
    by_variable = {key.variable: key for key in known.values()}
    layer: Layer = {}
    for name in sorted(name for name in environ if name.startswith(_PREFIX)):
        origin = Origin(source=f"${name}")
        if name in by_variable:
            key = by_variable[name]
            section, field = key.name.split(".")
            layer = merge(layer, located({section: {field: _from_text(environ[name], key)}}, origin))
        elif name[len(_PREFIX) :].split("_")[0].lower() in SECTIONS or difflib.get_close_matches(
            name, by_variable, n=1, cutoff=0.85
        ):
            raise _refused(origin, name, f"no setting has the variable {name}{_nearest(name, by_variable)}")
    return layer


def _from_text(text: str, key: Key) -> object:
    """A variable's text in the key's type; the text itself where it does not fit, for the check to refuse."""
    try:
        if key.kind is bool:
            return _WORDS.get(text.strip().lower(), text)
        if key.kind in (int, float):
            return key.kind(text.strip())
    except ValueError:
        return text
    return text


def _checked(layer: Layer, known: Mapping[str, Key]) -> Layer:
    """The layer with its values in the schema's types. Raises ConfigError on the first that is wrong."""
    checked: Layer = {}
    for section, found in layer.items():
        if section == "db":
            raise _refused(found.origin, "db", "'db' is not supported yet: state is kept in the home's SQLite file")
        if section not in SECTIONS:
            raise _refused(found.origin, section, f"unknown key {section!r}{_nearest(section, SECTIONS)}")
        content = {} if found.value is None else found.value
        if not isinstance(content, dict):
            raise _refused(found.origin, section, f"{section!r} is a map of settings, not {shown(content)}")
        settings = {name: _setting(f"{section}.{name}", setting, known) for name, setting in content.items()}
        checked[section] = Setting(value=settings, origin=found.origin)
    return checked


def _setting(name: str, found: Setting, known: Mapping[str, Key]) -> Setting:
    key = known.get(name)
    if key is None:
        raise _refused(found.origin, name, f"unknown key {name!r}{_nearest(name, known)}")
    value = float(found.value) if key.kind is float and type(found.value) is int else found.value
    if type(value) is not key.kind or (isinstance(value, float) and not math.isfinite(value)):
        raise _refused(found.origin, name, f"{name} is {_kind(key)}, not {shown(value)}")
    if key.choices and value not in key.choices:
        raise _refused(found.origin, name, f"{name} is one of {', '.join(key.choices)}, not {shown(value)}")
    if isinstance(value, (int, float)):
        if key.minimum is not None and value < key.minimum:
            raise _refused(found.origin, name, f"{name} is at least {key.minimum:g}, not {value:g}")
        if key.maximum is not None and value > key.maximum:
            raise _refused(found.origin, name, f"{name} is at most {key.maximum:g}, not {value:g}")
    return Setting(value=value, origin=found.origin)


def _kind(key: Key) -> str:
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[key.kind]


def _nearest(name: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; the nearest valid one is {near[0]!r}" if near else f"; valid ones: {', '.join(known)}"


def _refused(origin: Origin, key: str, problem: str) -> ConfigError:
    return ConfigError(f"{origin}: {problem}", file=origin.source, line=origin.line, key=key)
