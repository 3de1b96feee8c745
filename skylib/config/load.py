"""The configuration of one home: files, database, environment and overrides, checked against the schema.

Later layers win: defaults, `<home>/config.yaml` or the database that it names, `./.sky.yaml`, `SKYLIB_*` variables,
`Client(config=...)`, and for one launch or exec the task's `config:`.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs

from skylib.config.checking import checked, known_key, known_keys, nearest, refused
from skylib.config.database import OVERRIDES, database_setting, place_of
from skylib.config.document import read_layer
from skylib.config.layers import Layer, Origin, Setting, leaves, located, merge, placed
from skylib.config.schema import (
    DATABASE,
    SECTIONS,
    AgentConfig,
    Key,
    LocksConfig,
    LogsConfig,
    ProvisionConfig,
    RuntimeConfig,
    SshConfig,
    StagingConfig,
)
from skylib.errors import ConfigError
from skylib.models.secret import Secret
from skylib.models.spec_errors import kind_of
from skylib.paths import SkyHome

__all__ = ["Config", "Explained", "load_config"]

_DEFAULT = Origin(source="default")
_PROJECT_FILE = ".sky.yaml"
_PREFIX = "SKYLIB_"
_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@attrs.frozen(kw_only=True)
class Explained:
    """One key: its value, where that was written, what it would be otherwise, and what it means.

    hides: what earlier layers say, the nearest first. A password is in none of it.
    """

    key: str
    value: object
    origin: Origin
    default: object
    meaning: str
    hides: tuple[Setting, ...] = ()

    def __str__(self) -> str:
        hidden = " and ".join(f"{each.value!r} from {each.origin}" for each in self.hides)
        where = f"{self.origin}, which hides {hidden}" if hidden else str(self.origin)
        return f"{self.key} = {self.value!r} (from {where}; default {self.default!r}): {self.meaning}"


@attrs.frozen(kw_only=True)
class Config:
    """All settings, by section. `Config()` has the defaults."""

    ssh: SshConfig = attrs.field(factory=SshConfig)
    provision: ProvisionConfig = attrs.field(factory=ProvisionConfig)
    agent: AgentConfig = attrs.field(factory=AgentConfig)
    runtime: RuntimeConfig = attrs.field(factory=RuntimeConfig)
    locks: LocksConfig = attrs.field(factory=LocksConfig)
    logs: LogsConfig = attrs.field(factory=LogsConfig)
    staging: StagingConfig = attrs.field(factory=StagingConfig)
    _written: Mapping[str, tuple[Setting, ...]] = attrs.field(factory=dict, eq=False, repr=False)
    _database: Setting | None = attrs.field(default=None, eq=False, repr=False)

    @property
    def database(self) -> Secret | None:
        """The URL of the database that state and settings are kept in."""
        found = self._database
        return found.value if found is not None and isinstance(found.value, Secret) else None

    def explain(self, key: str) -> Explained:
        """Where the value of a dotted key ("ssh.keepalive_s") comes from; of `db` without its password.

        Raises ConfigError on an unknown key.
        """
        if key == DATABASE.name:
            return self._explain_database()
        known = known_key(key)
        section, name = key.split(".")
        written = self._written.get(key, ())
        return Explained(
            key=key,
            value=getattr(getattr(self, section), name),
            origin=written[-1].origin if written else _DEFAULT,
            default=known.default,
            meaning=known.meaning,
            hides=written[-2::-1],
        )

    def _explain_database(self) -> Explained:
        url = self.database
        return Explained(
            key=DATABASE.name,
            value=DATABASE.default if url is None else place_of(url).masked,
            origin=_DEFAULT if self._database is None else self._database.origin,
            default=DATABASE.default,
            meaning=DATABASE.meaning,
        )

    def tuned(self, values: Mapping[str, object], origin_of: Callable[[tuple[str, ...]], Origin]) -> Config:
        """These settings with a task's own on top. origin_of: where a path of `values` is written.

        Raises ConfigError on what a task cannot set, and on an unknown key or a wrong value.
        """
        return self._with(checked(placed(values, origin_of), per_task=True))

    def _with(self, layer: Layer) -> Config:
        """One more layer, already checked, on top."""
        written = dict(self._written)
        values: dict[str, dict[str, Any]] = {}
        for (section, name), setting in leaves(layer):
            key = f"{section}.{name}"
            written[key] = (*written.get(key, ()), setting)
            values.setdefault(section, {})[name] = setting.value
        sections: dict[str, Any] = {name: attrs.evolve(getattr(self, name), **new) for name, new in values.items()}
        return attrs.evolve(self, written=written, **sections)


def load_config(
    home: SkyHome,
    *,
    overrides: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stored: object = None,
) -> Config:
    """Read and merge all layers.

    overrides: nested as the file is, {"ssh": {"keepalive_s": 5}}. environ, cwd: by default those of this process.
    stored: what the database keeps, nested alike; it stands in the place of config.yaml where `db` is set.
    Raises ConfigError (facts: file, line, key) on an unknown key, a wrong type, a value out of bounds, a duplicate key,
    a file that is no YAML map, a `db` that cannot be used or stands where it cannot.
    """
    environment = os.environ if environ is None else environ
    given = dict(overrides or {})
    database = database_setting(home, given, environment)
    given.pop(DATABASE.name, None)
    config = Config(database=database)
    for layer in (
        _home_layer(home) if database is None else stored_layer(database, stored),
        _project_layer(cwd),
        _environment_layer(environment),
        located(given, OVERRIDES),
    ):
        config = config._with(checked(layer))
    return config


def stored_layer(database: Setting, stored: object) -> Layer:
    """The settings that a database keeps, with the database as their origin. Raises ConfigError when they are no map."""
    url = database.value
    label = place_of(url).label if isinstance(url, Secret) else ""
    origin = Origin(source=f"database {label}")
    if stored is not None and not isinstance(stored, Mapping):
        raise refused(origin, None, f"expected a map of settings, got {kind_of(stored)}")
    return located(stored or {}, origin)


def _home_layer(home: SkyHome) -> Layer:
    """The file's settings; an empty `db` in it says nothing."""
    layer = read_layer(home.config)
    return {name: setting for name, setting in layer.items() if name != DATABASE.name}


def _project_layer(cwd: Path | None) -> Layer:
    """Raises ConfigError when there is no current directory any more."""
    try:
        return read_layer((Path.cwd() if cwd is None else cwd) / _PROJECT_FILE)
    except FileNotFoundError as error:
        raise ConfigError("the current directory is gone, so its .sky.yaml cannot be looked for", file=None) from error


def _environment_layer(environ: Mapping[str, str]) -> Layer:
    """Variables that are a key's, or look as if they were meant so; all other SKYLIB_* names belong to others."""
    by_variable = {key.variable: key for key in known_keys().values()}
    meant = [*by_variable, DATABASE.variable]
    layer: Layer = {}
    for name in sorted(name for name in environ if name.startswith(_PREFIX) and name != DATABASE.variable):
        origin = Origin(source=f"${name}")
        word = name[len(_PREFIX) :].split("_")[0].lower()
        if name in by_variable:
            key = by_variable[name]
            section, field = key.name.split(".")
            layer = merge(layer, located({section: {field: _from_text(environ[name], key)}}, origin))
        elif word in (*SECTIONS, DATABASE.name) or difflib.get_close_matches(name, meant, n=1, cutoff=0.85):
            raise refused(origin, name, f"no setting has the variable {name}{nearest(name, meant)}")
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
